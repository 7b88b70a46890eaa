/* Before the first step: everything that can be refused is refused before the weights are read. */
#define _GNU_SOURCE
#include <string.h>
#include <unistd.h>

#include "cli/finetune.h"
#include "cli/output.h"

/* The adapter's own file says what these would. */
static const char *const adapter_options[] = {"rank", "alpha", "rslora", "dora", "init", "dropout", "target-modules", NULL};

static int check_options(finetune *f, const cli_args *args)
{
    ql_error err = {0};
    const finetune_values *v = f->v;
    if (v->valid && v->val_fraction > 0)
        return cli_wrong(args->command, "--valid and --val-fraction: one of them, please");
    if (v->log && v->report && strcmp(v->log, v->report) == 0)
        return cli_wrong(args->command, "--log and --report: each needs a file of its own");
    if (v->eval_every && !v->valid && v->val_fraction <= 0)
        return cli_wrong(args->command, "--eval-every needs --valid FILE or --val-fraction F");
    if (v->steps && cli_given(args, "epochs"))
        return cli_wrong(args->command, "--steps and --epochs: one of them, please");
    if (v->warmup_steps && v->warmup_ratio > 0)
        return cli_wrong(args->command, "--warmup-steps and --warmup-ratio: one of them, please");
    for (size_t i = 0; v->common.adapter && adapter_options[i]; i++)
        if (cli_given(args, adapter_options[i]))
            return cli_wrong(args->command, "--%s: the adapter given with --adapter sets this", adapter_options[i]);
    if (ql_modules_parse(&f->lora.modules, v->target_modules, &err))
        return cli_wrong(args->command, "--target-modules %s: %s", v->target_modules, err.message);
    if (ql_lora_init_parse(&f->lora.init, v->init, &err))
        return cli_wrong(args->command, "--init: %s", err.message);
    if (ql_schedule_parse(&f->train.schedule, v->schedule, &err))
        return cli_wrong(args->command, "--schedule %s: %s", v->schedule, err.message);
    if (ql_optim_parse(&f->train.optim, v->optim, &err))
        return cli_wrong(args->command, "--optim %s: %s", v->optim, err.message);
    return CLI_OK;
}

static void fill_options(finetune *f)
{
    const finetune_values *v = f->v;
    f->lora.rank = v->rank;
    f->lora.alpha = v->alpha;
    f->lora.use_rslora = v->rslora;
    f->lora.use_dora = v->dora;
    f->lora.dropout = v->dropout;
    f->lora.seed = v->seed;
    f->train.batch_size = v->batch_size;
    f->train.grad_accum = v->grad_accum;
    f->train.epochs = v->epochs;
    f->train.steps = v->steps;
    f->train.lr = v->lr;
    f->train.loraplus_ratio = v->loraplus_ratio;
    f->train.neftune_alpha = v->neftune_alpha;
    f->train.weight_decay = v->weight_decay;
    f->train.max_grad_norm = v->max_grad_norm;
    f->train.warmup_steps = v->warmup_steps;
    f->train.recompute_blocks = v->recompute;
    f->train.bf16_activations = strcmp(v->activations, "bf16") == 0;
    f->train.seed = v->seed;
    f->train.on_nonfinite = strcmp(v->on_nonfinite, "skip") == 0 ? QL_NONFINITE_SKIP : QL_NONFINITE_STOP;
}

int finetune_open_data(finetune *f)
{
    ql_error err = {0};
    int status = cli_open_data(&f->data, &f->session, f->v->data);
    if (status == CLI_OK && f->v->valid)
        status = cli_open_data(&f->valid, &f->session, f->v->valid);
    if (status == CLI_OK && f->v->val_fraction > 0 &&
        ql_dataset_split(f->data, f->v->val_fraction, NULL, &f->valid, &err))
        status = cli_failed(&err);
    return status;
}

/* A checkpoint is hours of work: a run that would write over one must be told to go on from it. */
static int find_checkpoint(finetune *f)
{
    snprintf(f->checkpoint, sizeof f->checkpoint, "%s/checkpoint.safetensors", f->v->output);
    cli_output_sweep(f->v->output);
    bool there = access(f->checkpoint, F_OK) == 0;
    if (f->v->resume && !there)
        return cli_failed_with("%s: not there, so there is nothing to --resume (a run that ended removes it)",
                               f->checkpoint);
    if (!f->v->resume && there)
        return cli_failed_with("%s: the checkpoint of a run that was stopped; add --resume to go on from it, or remove "
                               "it to begin anew",
                               f->checkpoint);
    return CLI_OK;
}

int finetune_read_options(finetune *f, const cli_args *args)
{
    f->v = args->values;
    f->lora = ql_lora_options_defaults();
    f->train = ql_train_options_defaults();
    int status = check_options(f, args);
    if (status == CLI_OK)
        fill_options(f);
    return status;
}

static int record(finetune *f, const cli_args *args)
{
    const finetune_values *v = f->v;
    cli_record_open(&f->record, args);
    int status = cli_record_add(&f->record, "model", v->common.model);
    if (status == CLI_OK)
        status = cli_record_add(&f->record, "adapter", v->common.adapter);
    if (status == CLI_OK)
        status = cli_record_add(&f->record, "data", v->data);
    if (status == CLI_OK)
        status = cli_record_add(&f->record, "valid", v->valid);
    if (status == CLI_OK && v->common.chat_template && access(v->common.chat_template, R_OK) == 0)
        status = cli_record_add(&f->record, "chat-template", v->common.chat_template);
    cli_record_compare(&f->record);
    return status;
}

int finetune_prepare(finetune *f, const cli_args *args)
{
    int status = finetune_read_options(f, args);
    if (status == CLI_OK)
        status = cli_session_open(&f->session, args);
    if (status == CLI_OK)
        status = finetune_open_data(f);
    if (status == CLI_OK)
        status = record(f, args);
    if (status == CLI_OK)
        status = cli_output_make(f->v->output, &f->made_output);
    if (status == CLI_OK)
        status = find_checkpoint(f);
    return status == CLI_OK ? cli_runlog_open(&f->log, f->v->log, f->v->report) : status;
}

size_t finetune_total(const ql_model_bytes *m, const ql_trainer_bytes *t)
{
    return m->codes + m->scales + m->dense + m->mapped + t->adapters + t->gradients + t->optimizer + t->activations +
           t->workspace;
}

/* What the process grows by in a run besides all that is listed, as measured (bench/NOTES.md): pages of code and tables
 * when they are first used, small allocations, stacks. */
enum { CODE_TO_COME = 700 << 10, STACK_OF_THREAD = 140 << 10 };

size_t finetune_process(const finetune *f)
{
    return f->process + CODE_TO_COME + STACK_OF_THREAD * ql_workers_count(f->session.workers);
}

size_t finetune_others(const finetune *f, const ql_model *model, ql_train_shape valid)
{
    return finetune_process(f) + (valid.samples ? ql_evaluate_bytes(model, valid, f->train.batch_size) : 0);
}

size_t finetune_recomputed(const finetune *f)
{
    size_t most = f->session.config.layers - 1, asked = f->train.recompute_blocks;
    return asked < most ? asked : most;
}

static ql_status fit(finetune *f, ql_error *err)
{
    if (!f->v->max_memory)
        return QL_OK;
    const ql_model *model = f->session.model;
    size_t others = finetune_others(f, model, f->valid ? ql_train_shape_of(f->valid) : (ql_train_shape){0});
    return ql_train_fit(&f->train, model, ql_train_shape_of(f->data), ql_workers_count(f->session.workers), others,
                        f->v->max_memory, err);
}

static ql_status plan(finetune *f, ql_error *err)
{
    ql_trainer_destroy(f->trainer);
    return ql_trainer_create(&f->trainer, f->session.model, f->data, &f->train, f->session.workers, err);
}

int finetune_load(finetune *f)
{
    ql_error err = {0};
    f->process = cli_resident_memory();
    int status = cli_session_load(&f->session);
    f->loaded = cli_resident_memory();
    if (status != CLI_OK)
        return status;
    const char *adapter = f->v->common.adapter;
    f->lora.workers = f->session.workers;
    ql_status made = adapter ? ql_adapter_load(f->session.model, adapter, true, &err)
                             : ql_model_attach(f->session.model, &f->lora, &err);
    if (made || fit(f, &err) || plan(f, &err))
        return cli_failed(&err);
    if (f->v->warmup_ratio > 0) { /* the trainer knows the steps, and they set the warm-up */
        f->train.warmup_steps = ql_warmup_steps(f->v->warmup_ratio, ql_trainer_steps(f->trainer));
        if (plan(f, &err))
            return cli_failed(&err);
    }
    if (f->train.warmup_steps >= ql_trainer_steps(f->trainer))
        fprintf(stderr,
                "qlora: warning: the learning rate rises for all %zu steps (--warmup-steps %zu) and is never %g\n",
                ql_trainer_steps(f->trainer), f->train.warmup_steps, f->train.lr);
    if (f->v->resume && ql_trainer_resume(f->trainer, f->checkpoint, &err))
        return cli_failed(&err);
    f->resumed_at = ql_trainer_done(f->trainer);
    return CLI_OK;
}

void finetune_close(finetune *f)
{
    if (f->made_output && !f->saved)
        rmdir(f->v->output);
    cli_runlog_close(&f->log);
    cli_record_close(&f->record);
    ql_trainer_destroy(f->trainer);
    ql_dataset_close(f->data);
    ql_dataset_close(f->valid);
    cli_session_close(&f->session);
    *f = (finetune){0};
}
