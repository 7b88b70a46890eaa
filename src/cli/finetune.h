/* The state of one `qlora finetune`, shared by its files: setup, run, report, log, samples. */
#ifndef QL_SRC_CLI_FINETUNE_H
#define QL_SRC_CLI_FINETUNE_H

#include "cli/common.h"
#include "cli/progress.h"
#include "cli/record.h"
#include "cli/runlog.h"

typedef struct finetune_values {
    cli_common common;
    const char *config, *data, *output, *valid, *log, *report;
    double val_fraction;
    size_t rank;
    double alpha, dropout;
    bool rslora, dora;
    const char *target_modules, *init;
    size_t batch_size, grad_accum, steps, warmup_steps, eval_every, seed;
    double epochs, lr, warmup_ratio, weight_decay, max_grad_norm;
    const char *schedule;
    const char *optim;
    double loraplus_ratio, neftune_alpha;
    size_t recompute; /* blocks */
    bool resume;
    bool time; /* qlora plan only */
    const char *activations;
    size_t samples, save_every, max_memory;
    const char *on_nonfinite;
} finetune_values;

/* Zeroed is empty; finetune_close() takes any state. */
typedef struct finetune {
    cli_session session;
    const finetune_values *v;
    ql_lora_options lora;
    ql_train_options train;
    bool made_output;
    char checkpoint[4096 + 32]; /* its path in the output folder */
    size_t resumed_at;         /* steps done before this run */
    ql_dataset *data, *valid;
    ql_trainer *trainer;
    size_t process; /* bytes resident before the weights were read: code, tokenizer, data */
    size_t loaded, trained; /* bytes resident after they were read, and after the last step */
    cli_runlog log;
    cli_record record;
    char adapter_sha256[65]; /* of the file that was saved last; empty: none */
    cli_progress progress;
    ql_eval_report before, after; /* held-out loss; samples 0: not measured */
    double last_loss;
    bool saved, interrupted;
} finetune;

/* The options of `qlora finetune` besides the common ones; `qlora plan` takes all of them too. */
extern const cli_option finetune_file_options[], finetune_train_options[];

/* Checks the options and fills in f->lora and f->train; opens --data, --valid or the held-out part. Return the exit
 * status. */
int finetune_read_options(finetune *f, const cli_args *args);
int finetune_open_data(finetune *f);

/* Bytes that the run takes, all in all; those of the process itself; and all that the trainer does not hold: these, and
 * what evaluation takes where there is held-out data of that shape. */
size_t finetune_total(const ql_model_bytes *model, const ql_trainer_bytes *trainer);
size_t finetune_process(const finetune *f);
size_t finetune_others(const finetune *f, const ql_model *model, ql_train_shape valid);

/* Checks options, files and folders, then reads the weights and plans the run. Return the exit status. */
int finetune_prepare(finetune *f, const cli_args *args);
int finetune_load(finetune *f);
void finetune_close(finetune *f);

/* Blocks that are computed again in the backward pass: the last never is. */
size_t finetune_recomputed(const finetune *f);

/* What will be done, for people. */
void finetune_introduce(const finetune *f);
/* What was done; with --json the object on stdout. Returns the exit status. */
int finetune_conclude(const finetune *f);
/* Bytes of the plan in all; members with the bytes of the model and the trainer by class. */
size_t finetune_planned(const finetune *f);
void finetune_put_memory(ql_json *json, const finetune *f);

/* With --report: writes texts into the log; the page from the log so far. Return the exit status. */
int finetune_samples(finetune *f);
int finetune_page(finetune *f);
/* Events of the log. */
void finetune_log_start(finetune *f);
void finetune_log_end(finetune *f);
/* On stderr: the command that goes on from what was saved. */
void finetune_say_how_to_go_on(const finetune *f);

#endif
