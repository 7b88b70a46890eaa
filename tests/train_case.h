/* A small run for the tests of the trainer: random model, ragged samples, everything on. */
#ifndef QL_TESTS_TRAIN_CASE_H
#define QL_TESTS_TRAIN_CASE_H

#include "qlora/train.h"

enum { TRAIN_CASE_SAMPLES = 11 };

typedef struct train_setup {
    ql_model_config config;
    ql_format format, head; /* of code F32: as stored */
    uint64_t weights; /* seed of the base */
    ql_lora_options lora;
    ql_train_options train;
    size_t threads;
    int32_t shift; /* of every token id: other data of the same shape */
} train_setup;

/* 3 layers of 72, a vocabulary of 97; NF4; rank 4, dropout; batches of 2, 2 a step, 3 steps an epoch and 3 epochs,
 * cosine schedule with warm-up, shuffled. */
train_setup train_setup_defaults(void);

typedef struct train_case {
    ql_workers *workers;
    ql_model *model;
    ql_dataset *data;
    ql_trainer *trainer;
} train_case;

void train_case_open(train_case *c, const train_setup *setup);
void train_case_close(train_case *c);

/* Steps until `done` of the run are done. */
void train_case_run(train_case *c, size_t done);

#endif
