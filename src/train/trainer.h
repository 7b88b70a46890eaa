/* The state of a run, which its files share: the step, the checkpoint, and what is said when numbers go bad. */
#ifndef QL_SRC_TRAIN_TRAINER_H
#define QL_SRC_TRAIN_TRAINER_H

#include "qlora/train.h"
#include "train/batch.h"

struct ql_trainer {
    ql_model *model;
    ql_workers *workers;
    ql_train_options options;
    ql_batcher batcher;
    ql_pass pass;
    ql_adamw optimizer;
    size_t *order;        /* [samples] of the epoch at hand */
    size_t ordered_epoch; /* whose order that is, counted from 1; 0: none yet */
    size_t samples;
    size_t steps_per_epoch, steps;
    size_t done;       /* steps */
    size_t skipped;    /* of these, that changed nothing */
    uint64_t forwards; /* micro-batches of the steps done, which numbers the dropout masks */
};

#endif
