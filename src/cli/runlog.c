#define _GNU_SOURCE
#include "cli/runlog.h"

#include <string.h>

int cli_runlog_open(cli_runlog *log, const char *path)
{
    if (!path)
        return CLI_OK;
    log->file = fopen(path, "ae");
    if (!log->file)
        return cli_failed_with("--log %s: cannot write it (%m)", path);
    log->path = path;
    return CLI_OK;
}

/* A log that cannot be written costs a warning, not the training. */
static void put(cli_runlog *log)
{
    ql_error err = {0};
    ql_json_end(&log->json);
    if (ql_json_line(&log->json, log->file, log->path, &err)) {
        fprintf(stderr, "qlora: warning: %s; the run goes on without its log\n", err.message);
        cli_runlog_close(log);
    }
}

static void begin(cli_runlog *log, const char *event)
{
    ql_json_object(&log->json, NULL);
    ql_json_string(&log->json, "event", event);
}

void cli_runlog_start(cli_runlog *log, const cli_session *session, size_t steps, size_t resumed_at)
{
    char format[48];
    if (!log->file)
        return;
    begin(log, "start");
    ql_json_string(&log->json, "model", session->common->model);
    ql_json_string(&log->json, "format", ql_format_describe(session->format, format));
    ql_json_integer(&log->json, "steps", (int64_t)steps);
    ql_json_integer(&log->json, "resumed_at", (int64_t)resumed_at);
    ql_json_object(&log->json, "options"); /* as given on the command line */
    const cli_option *option;
    for (size_t i = 0; (option = cli_option_at(session->args->command, i)) != NULL; i++)
        if (session->args->given[i])
            ql_json_string(&log->json, option->name, session->args->given[i]);
    ql_json_end(&log->json);
    put(log);
}

void cli_runlog_step(cli_runlog *log, const ql_step_report *report)
{
    if (!log->file)
        return;
    begin(log, "step");
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
    put(log);
}

void cli_runlog_eval(cli_runlog *log, size_t step, const ql_eval_report *report)
{
    if (!log->file)
        return;
    begin(log, "eval");
    ql_json_integer(&log->json, "step", (int64_t)step);
    cli_json_eval(&log->json, report);
    put(log);
}

void cli_runlog_close(cli_runlog *log)
{
    if (log->file)
        fclose(log->file);
    ql_json_free(&log->json);
    *log = (cli_runlog){0};
}
