/* qlora finetune: the options and the run. */
#include "cli/finetune.h"

#include <string.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/interrupt.h"

#define FIELD(name) offsetof(finetune_values, name)
#define FILES "Input and output"
#define ADAPTER "Adapter"
#define TRAINING "Training"
#define REPORTS "Running and reporting"

const cli_option finetune_file_options[] = {
    {"config", CLI_TEXT, FIELD(config), "FILE", NULL, 0, 0, false, FILES,
     "options from a YAML file, such as the run.yaml of another run: 'rank: 8' for --rank 8, 'recompute: all'; the "
     "command line goes first"},
    {"data", CLI_TEXT, FIELD(data), "FILE", NULL, 0, 0, true, FILES,
     "plain text (.txt), or JSON lines with \"text\", \"prompt\" and \"completion\", or \"messages\""},
    {"output", CLI_TEXT, FIELD(output), "DIR", NULL, 0, 0, true, FILES,
     "folder for adapter_config.json and adapter_model.safetensors, as PEFT reads them"},
    {"valid", CLI_TEXT, FIELD(valid), "FILE", NULL, 0, 0, false, FILES, "held-out data, in any of the same forms"},
    {"val-fraction", CLI_REAL, FIELD(val_fraction), "F", "0", 0, 0.9, false, FILES,
     "hold out the last part of --data instead"},
    {"adapter", CLI_TEXT, FIELD(common.adapter), "DIR", NULL, 0, 0, false, FILES,
     "go on training this PEFT adapter instead of a new one"},
    {"save-every", CLI_SIZE, FIELD(save_every), "N", "100", 0, 1e9, false, FILES,
     "write checkpoint.safetensors into --output every N steps; 0: only when the run is stopped"},
    {"resume", CLI_FLAG, FIELD(resume), NULL, "no", 0, 0, false, FILES,
     "go on from the checkpoint in --output, with the same options, to the same adapter"},
    {0},
};

const cli_option finetune_train_options[] = {
    {"rank", CLI_SIZE, FIELD(rank), "N", "8", 1, 1024, false, ADAPTER,
     "rank of the adapters; more of it can learn more, and takes more memory"},
    {"alpha", CLI_REAL, FIELD(alpha), "X", "16", 0, 65536, false, ADAPTER, "the adapter is scaled by alpha / rank"},
    {"rslora", CLI_FLAG, FIELD(rslora), NULL, "no", 0, 0, false, ADAPTER, "scale by alpha / sqrt(rank) instead"},
    {"init", CLI_CHOICE, FIELD(init), "default|gaussian|pissa|loftq", "default", 0, 0, false, ADAPTER,
     "what the adapters begin with: nothing (B = 0), the largest singular values of each weight (pissa), or those of what "
     "quantization takes away (loftq)"},
    {"dora", CLI_FLAG, FIELD(dora), NULL, "no", 0, 0, false, ADAPTER,
     "DoRA: learn the magnitude of each row of the weights apart from its direction"},
    {"dropout", CLI_REAL, FIELD(dropout), "P", "0", 0, 0.95, false, ADAPTER, "dropout of the adapters' input"},
    {"target-modules", CLI_NAMES, FIELD(target_modules), "NAMES", "all-linear", 0, 0, false, ADAPTER,
     "layers that get adapters: all-linear, or names such as q_proj,v_proj"},
    {"epochs", CLI_REAL, FIELD(epochs), "X", "1", 0.001, 1e6, false, TRAINING, "passes over the data"},
    {"steps", CLI_SIZE, FIELD(steps), "N", "0", 0, 1e9, false, TRAINING, "optimizer steps; 0: as --epochs says"},
    {"batch-size", CLI_SIZE, FIELD(batch_size), "N", "4", 1, 65536, false, TRAINING, "samples computed at a time"},
    {"grad-accum", CLI_SIZE, FIELD(grad_accum), "N", "1", 1, 65536, false, TRAINING,
     "batches that make one optimizer step"},
    {"lr", CLI_REAL, FIELD(lr), "X", "2e-4", 0, 10, false, TRAINING,
     "peak learning rate; too high where the loss jumps, too low where it hardly falls"},
    {"schedule", CLI_CHOICE, FIELD(schedule), "constant|linear|cosine", "cosine", 0, 0, false, TRAINING,
     "how the learning rate falls"},
    {"warmup-steps", CLI_SIZE, FIELD(warmup_steps), "N", "0", 0, 1e9, false, TRAINING,
     "steps in which the learning rate rises"},
    {"warmup-ratio", CLI_REAL, FIELD(warmup_ratio), "F", "0", 0, 1, false, TRAINING, "the same as a part of all steps"},
    {"optim", CLI_CHOICE, FIELD(optim), "adamw|adamw8bit", "adamw", 0, 0, false, TRAINING,
     "adamw8bit keeps AdamW's moments in 8 bits: a quarter of their memory"},
    {"loraplus-ratio", CLI_REAL, FIELD(loraplus_ratio), "X", "1", 1e-6, 1e6, false, TRAINING,
     "B learns with X times the rate of A (LoRA+; 16 is common)"},
    {"neftune-alpha", CLI_REAL, FIELD(neftune_alpha), "X", "0", 0, 1e6, false, TRAINING,
     "noise on the embeddings while training (NEFTune; 5 is common); 0: none"},
    {"weight-decay", CLI_REAL, FIELD(weight_decay), "X", "0", 0, 10, false, TRAINING, "AdamW's decoupled decay"},
    {"max-grad-norm", CLI_REAL, FIELD(max_grad_norm), "X", "1", 0, 1e9, false, TRAINING,
     "gradients are clipped to this norm; 0: not at all"},
    {"seed", CLI_SIZE, FIELD(seed), "N", "0", 0, 9007199254740991, false, TRAINING,
     "of the adapters, the order of the data and dropout"},
    {"recompute", CLI_COUNT, FIELD(recompute), "none|all|N", "none", 0, 1e6, false, TRAINING,
     "compute the activations of all blocks, or of N of them, twice to keep fewer: less memory, a step with all of them "
     "a third to a half slower; --recompute alone is all"},
    {"activations", CLI_CHOICE, FIELD(activations), "f32|bf16", "bf16", 0, 0, false, TRAINING,
     "how activations wait for the backward pass; attention's are always f32"},
    {"on-nonfinite", CLI_CHOICE, FIELD(on_nonfinite), "stop|skip", "stop", 0, 0, false, TRAINING,
     "when the loss or the gradient is not a finite number: end the run, or leave the step out and count it"},
    {"max-memory", CLI_BYTES, FIELD(max_memory), "SIZE", NULL, 0, 0, false, TRAINING,
     "fit into this much, such as 2G: with smaller batches (and more of them a step), then with --recompute of as few blocks "
     "as it takes"},
    {"eval-every", CLI_SIZE, FIELD(eval_every), "N", "0", 0, 1e9, false, REPORTS,
     "measure held-out loss every N steps too; 0: only before and after"},
    {"log", CLI_TEXT, FIELD(log), "FILE", NULL, 0, 0, false, REPORTS,
     "append a JSON line for each step and evaluation"},
    {"report", CLI_TEXT, FIELD(report), "FILE", NULL, 0, 0, false, REPORTS,
     "write the run as a page to look at in a browser: curves, memory, samples, settings"},
    {"samples", CLI_SIZE, FIELD(samples), "N", "2", 0, 64, false, REPORTS,
     "with --report: texts to write before and after training, from the beginnings of held-out samples"},
    {0},
};

static int measure(finetune *f, size_t step, const char *when, ql_eval_report *report)
{
    ql_error err = {0};
    if (ql_evaluate(report, f->session.model, f->valid, f->train.batch_size, f->session.workers, &err))
        return cli_failed(&err);
    cli_progress_break(&f->progress);
    cli_say(&f->session, "Held-out loss %s: %.4f (perplexity %.2f)\n", when, report->loss, report->perplexity);
    cli_runlog_eval(&f->log, step, report);
    return CLI_OK;
}

/* What it costs when it fails is a warning, not the training. */
static void save_record(finetune *f)
{
    char path[4096 + 32], batch[24], accum[24], recompute[24];
    ql_error err = {0};
    ql_file_digest adapter;
    size_t done = ql_trainer_done(f->trainer);
    const ql_train_options *t = &f->train;
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", f->v->output);
    snprintf(batch, sizeof batch, "%zu", t->batch_size);
    snprintf(accum, sizeof accum, "%zu", t->grad_accum);
    snprintf(recompute, sizeof recompute, "%zu", finetune_recomputed(f));
    const cli_changed fitted[] = {{"max-memory", NULL}, /* what it chose, which another day it might not */
                                  {"batch-size", batch},
                                  {"grad-accum", accum},
                                  {"recompute", recompute},
                                  {NULL, NULL}},
                      *none = &fitted[4];
    ql_status status = ql_file_sha256(&adapter, path, 0, &err);
    memcpy(f->adapter_sha256, adapter.sha256, sizeof adapter.sha256);
    if (!status)
        status = cli_record_write(&f->record, f->v->output, f->v->max_memory ? fitted : none, done,
                                  done == ql_trainer_steps(f->trainer) ? adapter.sha256 : NULL, &err);
    if (status)
        fprintf(stderr, "qlora: warning: %s; the run is not recorded\n", err.message);
}

static int save(finetune *f)
{
    ql_error err = {0};
    cli_progress_break(&f->progress);
    if (ql_adapter_save(f->session.model, f->v->output, f->v->common.model, &err))
        return cli_failed(&err);
    f->saved = true;
    save_record(f);
    return CLI_OK;
}

static int save_checkpoint(finetune *f)
{
    ql_error err = {0};
    if (ql_trainer_save(f->trainer, f->checkpoint, &err)) {
        cli_progress_break(&f->progress);
        return cli_failed(&err);
    }
    return CLI_OK;
}

/* A run that ends before its last step leaves its adapter and a checkpoint. */
static int save_both(finetune *f)
{
    int status = save(f);
    return status == CLI_OK ? save_checkpoint(f) : status;
}

/* A step that fails leaves the adapters as the step before it made them: they are worth keeping. */
static int give_up(finetune *f, const ql_error *err)
{
    cli_progress_break(&f->progress);
    cli_failed(err);
    if (f->progress.done && save_both(f) == CLI_OK)
        finetune_say_how_to_go_on(f);
    return CLI_FAILED;
}

/* What is due after a step besides the log: held-out loss, a checkpoint. */
static int after_step(finetune *f, size_t step)
{
    size_t every = f->v->eval_every;
    if (f->v->save_every && step % f->v->save_every == 0 && save_checkpoint(f) != CLI_OK)
        return CLI_FAILED;
    if (every && step % every == 0 && !cli_interrupted()) {
        char when[48];
        snprintf(when, sizeof when, "at step %zu", step);
        if (measure(f, step, when, &f->after) != CLI_OK)
            return give_up(f, &(ql_error){.message = "the held-out data could not be evaluated"});
        finetune_page(f);
    }
    return CLI_OK;
}

static int train(finetune *f)
{
    ql_error err = {0};
    size_t steps = ql_trainer_steps(f->trainer);
    cli_progress_start(&f->progress, f->v->common.quiet ? NULL : stderr, steps);
    cli_interrupt_catch();
    while (ql_trainer_done(f->trainer) < steps && !cli_interrupted()) {
        ql_step_report report;
        if (ql_trainer_step(f->trainer, &report, &err))
            return give_up(f, &err);
        if (report.skipped) {
            cli_progress_break(&f->progress);
            fprintf(stderr, "qlora: warning: left out: %s\n", err.message);
        } else {
            f->last_loss = report.loss;
        }
        cli_progress_step(&f->progress, &report);
        cli_runlog_step(&f->log, &report);
        if (report.step < steps && after_step(f, report.step) != CLI_OK)
            return CLI_FAILED;
    }
    f->trained = cli_resident_memory();
    f->interrupted = ql_trainer_done(f->trainer) < steps;
    if (f->interrupted)
        return save_both(f);
    int status = save(f);
    if (status == CLI_OK)
        unlink(f->checkpoint); /* only now: the adapter is durable */
    return status;
}

static int finish(finetune *f)
{
    if (f->interrupted) {
        finetune_say_how_to_go_on(f);
        f->after = (ql_eval_report){0};
    } else if (f->valid) {
        int status = measure(f, ql_trainer_done(f->trainer), "after", &f->after);
        if (status != CLI_OK)
            return status;
    }
    int status = f->interrupted ? CLI_OK : finetune_samples(f);
    finetune_log_end(f);
    if (status == CLI_OK)
        status = finetune_page(f);
    return status == CLI_OK ? finetune_conclude(f) : status;
}

/* The page is written now too: a place where it cannot be is better known before the training. */
static int begin(finetune *f)
{
    int status = CLI_OK;
    finetune_log_start(f);
    if (f->valid)
        status = measure(f, f->resumed_at, f->resumed_at ? "where it goes on" : "before", &f->before);
    if (status == CLI_OK && !f->resumed_at)
        status = finetune_samples(f);
    return status == CLI_OK ? finetune_page(f) : status;
}

static int run(const cli_args *args)
{
    finetune f = {0};
    int status = finetune_prepare(&f, args);
    if (status == CLI_OK)
        status = finetune_load(&f);
    if (status == CLI_OK) {
        finetune_introduce(&f);
        status = begin(&f);
    }
    if (status == CLI_OK)
        status = train(&f);
    if (status == CLI_OK)
        status = finish(&f);
    else if (f.progress.done)
        finetune_page(&f);
    finetune_close(&f);
    return status;
}

static const char *const examples[] = {
    "qlora finetune --model Qwen2.5-0.5B --data train.jsonl --output my-adapter",
    "One pass over the data: NF4 weights with double quantization, adapters of rank 8 on all linear layers.",
    "qlora finetune --model Qwen2.5-0.5B --data book.txt --val-fraction 0.1 --epochs 3 --output my-adapter",
    "Plain text, the last tenth held out: its loss is printed before and after.",
    "qlora finetune --model Qwen2.5-0.5B --data more.jsonl --adapter my-adapter --output better-adapter",
    "Goes on from an adapter, one that PEFT wrote too.",
    "qlora finetune --model Qwen2.5-0.5B --data train.jsonl --output my-adapter --max-memory 2G --report run.html",
    "In 2 GB, with a page of curves and samples to look at in a browser.",
    "qlora finetune --config my-adapter/run.yaml --output again",
    "The same run once more: each run writes its options, versions and files into run.yaml.",
    NULL,
};

static const cli_option *const options[] = {cli_model_options, finetune_file_options, cli_format_options,
                                            cli_compute_options, cli_data_options, finetune_train_options,
                                            cli_run_options, NULL};

const cli_command cli_finetune = {
    .name = "finetune",
    .summary = "train a LoRA adapter over a quantized model",
    .about = "Trains a LoRA adapter over a frozen model that is quantized to 4 bits while it is read (QLoRA). Of "
             "prompts with completions and of chats, the completions and the assistant's turns count in the loss, "
             "nothing else. A line of data is {\"prompt\": \"...\", \"completion\": \"...\"}, {\"text\": \"...\"} or "
             "{\"messages\": [{\"role\": \"user\", \"content\": \"...\"}, {\"role\": \"assistant\", \"content\": "
             "\"...\"}]}.",
    .examples = examples,
    .notes = "Ctrl-C or SIGTERM ends after the current step, saves the adapter and a checkpoint, says how to go on, "
             "and exits with 0. A run that is killed loses at most the steps since its last checkpoint; one that ends "
             "removes it. Resumed runs leave the adapter that an unbroken one would have left, bit for bit; other "
             "--steps or --epochs are fine where --schedule is constant. Before the first step, or a second time, "
             "Ctrl-C quits at once without saving (130 in a shell, 143 for SIGTERM); what was in the output folder "
             "stays as it was.",
    .options = options,
    .values = sizeof(finetune_values),
    .run = run,
};
