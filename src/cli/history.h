/* A run as its log tells it (runlog.h). */
#ifndef QL_SRC_CLI_HISTORY_H
#define QL_SRC_CLI_HISTORY_H

#include <jansson.h>
#include <stdio.h>

#include "qlora/base.h"

/* Numbers that a line lacks, or that were not finite, are NaN. */
typedef struct cli_history_step {
    double step, loss, lr, grad_norm, seconds, tokens, tokens_per_second;
} cli_history_step;

typedef struct cli_history_eval {
    double step, loss, perplexity;
} cli_history_eval;

/* Zeroed is empty. */
typedef struct cli_history {
    json_t *start, *end;     /* the events of that name; NULL: none */
    json_t *samples;         /* array of such events */
    cli_history_step *steps; /* in the order of their numbers */
    cli_history_eval *evals;
    size_t step_count, step_capacity, eval_count, eval_capacity;
} cli_history;

/* Reads the log of the last run in it, with the runs that this one goes on from: steps that were done again count
 * once. Lines of other events are passed over; so is a last line without an end. QL_ERR_FORMAT names the line;
 * `name` is the file's. */
ql_status cli_history_read(cli_history *history, FILE *file, const char *name, ql_error *err);
void cli_history_free(cli_history *history);

#endif
