/* What qlora finetune writes into the log of the run, and the page made of it. */
#include "cli/finetune.h"
#include "cli/page.h"

static void put_options(ql_json *json, const cli_args *args, bool given)
{
    const cli_option *option;
    ql_json_object(json, given ? "options" : "defaults");
    for (size_t i = 0; (option = cli_option_at(args->command, i)) != NULL; i++) {
        const char *value = given ? args->given[i] : args->given[i] ? NULL : args->defaults[i];
        if (value)
            ql_json_string(json, option->name, value);
    }
    ql_json_end(json);
}

static void put_data(ql_json *json, const char *key, const ql_dataset *data)
{
    if (!data)
        return;
    ql_data_stats stats = ql_dataset_stats(data);
    ql_json_object(json, key);
    ql_json_integer(json, "samples", (int64_t)stats.samples);
    ql_json_integer(json, "tokens", (int64_t)stats.tokens);
    ql_json_integer(json, "learned", (int64_t)stats.learned);
    ql_json_integer(json, "longest", (int64_t)stats.longest);
    ql_json_integer(json, "truncated", (int64_t)stats.truncated);
    ql_json_integer(json, "skipped", (int64_t)stats.skipped);
    ql_json_end(json);
}

static void put_files(ql_json *json, const cli_record *record)
{
    ql_json_object(json, "files");
    for (size_t i = 0; i < record->count; i++) {
        const cli_record_file *file = &record->files[i];
        bool begins = i == 0 || file->role != record->files[i - 1].role;
        bool ends = i + 1 == record->count || file->role != record->files[i + 1].role;
        if (begins)
            ql_json_object(json, file->role);
        ql_json_string(json, file->name, file->digest.sha256);
        if (ends)
            ql_json_end(json);
    }
    ql_json_end(json);
}

static void put_plan(ql_json *json, const finetune *f)
{
    ql_train_shape valid = f->valid ? ql_train_shape_of(f->valid) : (ql_train_shape){0};
    size_t others = finetune_others(f, f->session.model, valid);
    ql_json_object(json, "memory");
    finetune_put_memory(json, f);
    ql_json_integer(json, "evaluation", (int64_t)(others - finetune_process(f)));
    ql_json_integer(json, "process", (int64_t)finetune_process(f));
    ql_json_integer(json, "total", (int64_t)finetune_planned(f));
    ql_json_end(json);
}

void finetune_log_start(finetune *f)
{
    char format[48];
    ql_json *json = cli_runlog_begin(&f->log, "start");
    const cli_session *s = &f->session;
    if (!json)
        return;
    const ql_model_config *shape = ql_model_shape(s->model);
    ql_json_string(json, "time", f->record.started);
    ql_json_string(json, "program", f->record.program);
    ql_json_string(json, "libraries", f->record.libraries);
    ql_json_string(json, "instructions", ql_cpu_describe());
    ql_json_integer(json, "threads", (int64_t)ql_workers_count(s->workers));
    ql_json_string(json, "model", s->common->model);
    ql_json_string(json, "architecture", ql_arch_name(shape->arch));
    ql_json_string(json, "format", ql_format_describe(s->format, format));
    ql_json_integer(json, "parameters", (int64_t)ql_model_config_parameters(shape));
    ql_json_integer(json, "trainable_parameters", (int64_t)ql_model_adapter_parameters(s->model));
    ql_json_integer(json, "steps", (int64_t)ql_trainer_steps(f->trainer));
    ql_json_integer(json, "resumed_at", (int64_t)f->resumed_at);
    ql_json_integer(json, "batch_size", (int64_t)f->train.batch_size); /* as --max-memory made them */
    ql_json_integer(json, "grad_accum", (int64_t)f->train.grad_accum);
    ql_json_integer(json, "recomputed_blocks", (int64_t)finetune_recomputed(f));
    put_options(json, s->args, true);
    put_options(json, s->args, false);
    put_data(json, "data", f->data);
    put_data(json, "held_out", f->valid);
    put_plan(json, f);
    put_files(json, &f->record);
    cli_runlog_put(&f->log);
}

void finetune_log_end(finetune *f)
{
    ql_json *json = cli_runlog_begin(&f->log, "end");
    if (!json)
        return;
    ql_json_integer(json, "steps", (int64_t)ql_trainer_done(f->trainer));
    ql_json_bool(json, "interrupted", f->interrupted);
    ql_json_number(json, "seconds", f->progress.seconds);
    ql_json_string(json, "adapter", f->v->output);
    ql_json_string(json, "adapter_sha256", *f->adapter_sha256 ? f->adapter_sha256 : NULL);
    ql_json_object(json, "memory"); /* resident at these moments */
    ql_json_integer(json, "process", (int64_t)f->process);
    ql_json_integer(json, "loaded", (int64_t)f->loaded);
    ql_json_integer(json, "trained", (int64_t)f->trained);
    ql_json_integer(json, "peak", (int64_t)cli_peak_memory());
    ql_json_end(json);
    cli_runlog_put(&f->log);
}

int finetune_page(finetune *f)
{
    ql_error err = {0};
    if (!f->v->report)
        return CLI_OK;
    FILE *log = cli_runlog_read(&f->log);
    if (!log)
        return cli_failed_with("--report %s: the log of the run cannot be read", f->v->report);
    ql_status status = cli_page_write(f->v->report, log, f->log.path, &err);
    fclose(log);
    return status ? cli_failed_with("--report %s", err.message) : CLI_OK;
}
