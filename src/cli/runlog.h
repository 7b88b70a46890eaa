/* The log of a run as JSON lines, each flushed when it is written: {"event": "start" | "step" | "eval" | "sample" |
 * "end", ...}. history.h reads it back. */
#ifndef QL_SRC_CLI_RUNLOG_H
#define QL_SRC_CLI_RUNLOG_H

#include "cli/common.h"
#include "qlora/io.h"

/* Zeroed is valid and logs nothing. */
typedef struct cli_runlog {
    const char *path;
    FILE *file;
    bool nameless;
    ql_json json;
} cli_runlog;

/* Opens for appending: runs that go on from each other may share a log. A NULL path: no log, or, when it is to be
 * `kept`, one without a name for cli_runlog_read(). */
int cli_runlog_open(cli_runlog *log, const char *path, bool kept);

/* Begins an event, whose members the caller adds; NULL when nothing is logged. cli_runlog_put() ends and writes it. */
ql_json *cli_runlog_begin(cli_runlog *log, const char *event);
void cli_runlog_put(cli_runlog *log);

void cli_runlog_step(cli_runlog *log, const ql_step_report *report);
void cli_runlog_eval(cli_runlog *log, size_t step, const ql_eval_report *report);

/* What was logged so far, from the start; NULL when that cannot be read. The caller closes it. */
FILE *cli_runlog_read(const cli_runlog *log);
void cli_runlog_close(cli_runlog *log);

#endif
