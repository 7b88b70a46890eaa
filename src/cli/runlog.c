#define _GNU_SOURCE
#include "cli/runlog.h"

#include <string.h>

int cli_runlog_open(cli_runlog *log, const char *path, bool kept)
{
    if (!path && !kept)
        return CLI_OK;
    log->nameless = !path;
    log->file = path ? fopen(path, "ae") : tmpfile();
    log->path = path ? path : "the notes of the run";
    return log->file ? CLI_OK : cli_failed_with("--log %s: cannot write it (%m)", log->path);
}

/* A log that cannot be written costs a warning, not the training. */
void cli_runlog_put(cli_runlog *log)
{
    ql_error err = {0};
    ql_json_end(&log->json);
    if (ql_json_line(&log->json, log->file, log->path, &err)) {
        fprintf(stderr, "qlora: warning: %s; the run goes on without its log\n", err.message);
        cli_runlog_close(log);
    }
}

ql_json *cli_runlog_begin(cli_runlog *log, const char *event)
{
    if (!log->file)
        return NULL;
    ql_json_object(&log->json, NULL);
    ql_json_string(&log->json, "event", event);
    return &log->json;
}

void cli_runlog_step(cli_runlog *log, const ql_step_report *report)
{
    if (!cli_runlog_begin(log, "step"))
        return;
    ql_json_integer(&log->json, "step", (int64_t)report->step);
    ql_json_number(&log->json, "epoch", report->epoch);
    ql_json_number(&log->json, "loss", report->loss);
    ql_json_number(&log->json, "grad_norm", report->grad_norm);
    ql_json_number(&log->json, "lr", report->lr);
    if (report->skipped)
        ql_json_bool(&log->json, "skipped", true);
    ql_json_integer(&log->json, "tokens", (int64_t)report->tokens);
    ql_json_integer(&log->json, "learned", (int64_t)report->learned);
    ql_json_number(&log->json, "seconds", report->seconds);
    ql_json_number(&log->json, "tokens_per_second", report->seconds > 0 ? (double)report->tokens / report->seconds : 0);
    cli_runlog_put(log);
}

void cli_runlog_eval(cli_runlog *log, size_t step, const ql_eval_report *report)
{
    if (!cli_runlog_begin(log, "eval"))
        return;
    ql_json_integer(&log->json, "step", (int64_t)step);
    cli_json_eval(&log->json, report);
    cli_runlog_put(log);
}

FILE *cli_runlog_read(const cli_runlog *log)
{
    char path[64];
    if (!log->file)
        return NULL;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fileno(log->file)); /* with a place in the file of its own */
    return fopen(log->nameless ? path : log->path, "re");
}

void cli_runlog_close(cli_runlog *log)
{
    if (log->file)
        fclose(log->file);
    ql_json_free(&log->json);
    *log = (cli_runlog){0};
}
