/* qlora-bench step: what is timed, and what came out. */
#ifndef QL_BENCH_STEP_H
#define QL_BENCH_STEP_H

#include "qlora/train.h"
#include "roof.h"

typedef struct step_options {
    const char *shape;
    ql_model_config config;
    const char *format, *head_format;
    size_t seq, batch, rank, threads, runs, recompute; /* blocks that are computed again */
    ql_optim optim;
    bool bf16, bf16_activations, json;
} step_options;

/* The configuration of a named shape; false when there is none of the name. */
bool step_shape(ql_model_config *out, const char *name);

/* Multiplications and additions of a step by part. `wanted` is what the mathematics asks for, `done` counts what
 * recomputation does again too. */
typedef struct step_count {
    double wanted, done[QL_PARTS];
} step_count;
step_count step_operations(const step_options *o);

typedef struct step_result {
    double seconds, low, high; /* median and quartiles of a step */
    double share;              /* median, of the roof measured beside each step */
    double roof;               /* median, operations a second of all threads */
    double roof_width;         /* of the middle half of the roofs, as a part of the median */
    double speedup;            /* over the first number of threads that was asked for */
    const char *roof_name, *kernel;
    ql_part_times parts; /* of the median step */
    ql_model_bytes model;
    ql_trainer_bytes trainer;
    size_t threads, peak;
} step_result;

void step_print(const step_options *o, const step_result *r);
void step_print_json(const step_options *o, const step_result *r);

#endif
