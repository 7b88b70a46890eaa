/* The log of a run as JSON lines, each flushed when it is written: {"event": "start" | "step" | "eval", ...}. */
#ifndef QL_SRC_CLI_RUNLOG_H
#define QL_SRC_CLI_RUNLOG_H

#include "cli/common.h"
#include "qlora/io.h"

/* Zeroed is valid and logs nothing. */
typedef struct cli_runlog {
    const char *path;
    FILE *file;
    ql_json json;
} cli_runlog;

/* Opens for appending: runs that go on from each other may share a log. A NULL path: no log. */
int cli_runlog_open(cli_runlog *log, const char *path);
void cli_runlog_start(cli_runlog *log, const cli_session *session, size_t steps, size_t resumed_at);
void cli_runlog_step(cli_runlog *log, const ql_step_report *report);
void cli_runlog_eval(cli_runlog *log, size_t step, const ql_eval_report *report);
void cli_runlog_close(cli_runlog *log);

#endif
