/* Fine-tuning and evaluation: batches -> forward -> loss -> backward -> clip -> AdamW. */
#ifndef QLORA_TRAIN_H
#define QLORA_TRAIN_H

#include "qlora/base.h"
#include "qlora/data.h"
#include "qlora/model.h"
#include "qlora/optim.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a step does whose loss or gradient is not finite. */
typedef enum ql_nonfinite {
    QL_NONFINITE_STOP, /* it fails, and is not done */
    QL_NONFINITE_SKIP, /* it is done, but leaves adapters and moments as they were */
} ql_nonfinite;

typedef struct ql_train_options {
    size_t batch_size; /* samples a micro-batch (4) */
    size_t grad_accum; /* micro-batches an optimizer step (1) */
    double epochs;     /* passes over the data (1); used when steps is 0 */
    size_t steps;      /* optimizer steps; 0: from epochs */
    double lr;         /* 2e-4 */
    ql_optim optim;                         /* moments in fp32 */
    double beta1, beta2, eps, weight_decay; /* 0.9, 0.999, 1e-8, 0 */
    double loraplus_ratio;                  /* B's learning rate is so many times that of A (LoRA+); 1 */
    double neftune_alpha;                   /* noise on the embeddings (ql_trainer_step); 0: none */
    double max_grad_norm;                   /* 1; 0: no clipping */
    ql_schedule schedule;                   /* cosine */
    size_t warmup_steps;                    /* 0 */
    size_t recompute_blocks;                /* 0: so many blocks, from the first, keep only inputs and are computed
                                               again in the backward pass; SIZE_MAX: all. The last never needs to be */
    bool bf16_activations;                  /* true: what is kept waits in bf16, all but attention's arrays */
    bool shuffle;                           /* true: a seeded permutation each epoch */
    uint64_t seed;
    ql_nonfinite on_nonfinite; /* stop */
} ql_train_options;
QL_API ql_train_options ql_train_options_defaults(void);

typedef struct ql_trainer ql_trainer;

/* Plans and allocates everything: nothing is allocated in a step. The model must have trainable adapters;
 * model, data and workers must outlive the trainer. The caller owns *out. */
QL_API ql_status ql_trainer_create(ql_trainer **out, ql_model *model, const ql_dataset *data,
                                   const ql_train_options *options, ql_workers *workers, ql_error *err);

/* Optimizer steps of the whole run. */
QL_API size_t ql_trainer_steps(const ql_trainer *trainer);

/* Steps done so far, those before a checkpoint included. */
QL_API size_t ql_trainer_done(const ql_trainer *trainer);
QL_API size_t ql_trainer_skipped(const ql_trainer *trainer); /* of these, that changed nothing */

typedef struct ql_step_report {
    size_t step;           /* 1 for the first */
    double epoch;          /* passes over the data so far */
    double loss;           /* nats a learned token, before the step */
    double grad_norm;      /* before clipping */
    double lr;             /* of this step */
    size_t tokens, learned; /* tokens computed, and those that the loss counts */
    double seconds;
    bool skipped;          /* loss or grad_norm is not finite: nothing was changed; *err says where */
} ql_step_report;

/* One optimizer step. With neftune_alpha the embeddings of a sequence of L tokens of width d get noise, uniform in
 * +-alpha / sqrt(L d), new in each step and the same for any number of threads (NEFTune: Jain et al. 2023; transformers
 * counts the padding of a batch in L, which does not exist here).
 *
 * QL_ERR_VALUE when the loss or the gradient is not finite: the message names the step, the
 * sample (its index in the data set) and the layer where that begins; adapters, moments and the place in the data
 * are unchanged. Where on_nonfinite is to skip it is QL_OK with report->skipped, and the message is in *err; but
 * adapters that are not finite themselves always fail: before the step, or after it when the update made them so,
 * and then the trainer is of no more use. QL_ERR_ARG when the run is complete. */
QL_API ql_status ql_trainer_step(ql_trainer *trainer, ql_step_report *report, ql_error *err);

/* Writes a checkpoint between two steps: adapter masters, Adam's moments, the place in the data and in the schedule,
 * the counters of dropout, and what tells whether another run may go on from it. One safetensors file, which
 * appears whole or not at all: what was there stays until it is durable. */
QL_API ql_status ql_trainer_save(const ql_trainer *trainer, const char *path, ql_error *err);

/* Goes on from a checkpoint: the steps that follow leave the same adapter, bit for bit, as if the run had never been
 * stopped (on the same instruction set; threads may differ). The trainer is a new one of the same model, adapters
 * (their values do not matter), data and options. QL_ERR_ARG names the first thing that would make the mathematics
 * differ, with both values: weights, format, data, rank, ..., batch size, learning rate, seed. `steps` may differ
 * where the schedule does not depend on it (constant), recompute_blocks where activations are not in bf16; threads and
 * on_nonfinite may always.
 * QL_ERR_FORMAT for a file that is no checkpoint, of another version, or damaged. On error nothing has changed. */
QL_API ql_status ql_trainer_resume(ql_trainer *trainer, const char *path, ql_error *err);

/* Bytes held, by class. */
typedef struct ql_trainer_bytes {
    size_t adapters;    /* FP16 values and fp32 masters */
    size_t gradients, optimizer;
    size_t activations; /* and their gradients, of one micro-batch */
    size_t workspace;   /* scratch of the threads; the batch and the order of the samples */
} ql_trainer_bytes;
QL_API ql_trainer_bytes ql_trainer_memory(const ql_trainer *trainer);

/* The data as far as memory and time ask. */
typedef struct ql_train_shape {
    size_t samples, longest; /* longest: tokens of a sample */
    size_t tokens;           /* of all samples; 0: each is as long as the longest */
    const ql_dataset *data;  /* NULL: made up, with any word in it */
} ql_train_shape;
QL_API ql_train_shape ql_train_shape_of(const ql_dataset *data);

/* What a run over that data holds of the model: of an embedding that is mapped and is not the LM head too, only the
 * pages of words that the data has, as the system maps them (16 at a time). */
QL_API ql_model_bytes ql_train_model_bytes(const ql_model *model, ql_train_shape data);

/* What a trainer with these options would hold, from the code that lays it out: exact, where the workers have not
 * been used for anything larger. The model may be one of ql_model_plan(), with adapters attached. */
QL_API ql_status ql_train_plan(ql_trainer_bytes *out, const ql_model *model, ql_train_shape data,
                               const ql_train_options *options, size_t threads, ql_error *err);

/* Seconds of an optimizer step, extrapolated from a few steps of a model in small: of the same shape but with two
 * layers, random weights and a part of the vocabulary. The model may be a planned one. Takes memory for the time of the
 * call: two layers with their activations; and some seconds. */
typedef struct ql_step_estimate {
    double kept, recomputed; /* seconds: activations kept, and all of them recomputed */
    double asked;            /* seconds, with options->recompute_blocks of them */
    double tokens;           /* of a step, on average */
    double took;             /* seconds of the measurement */
} ql_step_estimate;
QL_API ql_status ql_train_estimate(ql_step_estimate *out, const ql_model *model, ql_train_shape data,
                                   const ql_train_options *options, ql_workers *workers, ql_error *err);

/* Makes model and trainer fit in `budget` bytes together with `other` bytes: as asked if that fits; else with smaller
 * micro-batches and more of them (the step stays the same batch) as long as they have 512 tokens; else with the largest
 * of those below that, and recomputation of as few blocks as let it fit. QL_ERR_MEMORY says what the smallest way would need; *options
 * is then that way. */
QL_API ql_status ql_train_fit(ql_train_options *options, const ql_model *model, ql_train_shape data, size_t threads,
                              size_t other, size_t budget, ql_error *err);
QL_API void ql_trainer_destroy(ql_trainer *trainer); /* NULL is fine */

/* Mean loss in nats over the learned tokens of all samples, `batch_size` samples at a time. */
typedef struct ql_eval_report {
    double loss, perplexity;
    size_t samples, tokens, learned;
    double seconds;
} ql_eval_report;
/* Bytes that ql_evaluate() takes for the time of its run, scratch of the threads not counted. */
QL_API size_t ql_evaluate_bytes(const ql_model *model, ql_train_shape data, size_t batch_size);
QL_API ql_status ql_evaluate(ql_eval_report *report, const ql_model *model, const ql_dataset *data, size_t batch_size,
                             ql_workers *workers, ql_error *err);

/* Loads a PEFT adapter folder, also one that another program wrote; `trainable` keeps fp32 masters and
 * gradients to go on training. What cannot be honoured (other modules, ...) is refused by name. */
QL_API ql_status ql_adapter_load(ql_model *model, const char *dir, bool trainable, ql_error *err);

/* Writes adapter_config.json and adapter_model.safetensors (fp32) in PEFT's names, each atomically.
 * base_name goes to base_model_name_or_path. The numbers are those that the products use, FP16's, so that any program
 * that loads them computes what was trained; a checkpoint has the masters. */
QL_API ql_status ql_adapter_save(const ql_model *model, const char *dir, const char *base_name, ql_error *err);

/* Names and versions of the libraries at work, as one line; returns text[size]. */
QL_API const char *ql_libraries_describe(char *text, size_t size);

#ifdef __cplusplus
}
#endif
#endif
