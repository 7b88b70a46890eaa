/* Training progress: one line rewritten on a terminal, plain lines now and then elsewhere. */
#ifndef QL_SRC_CLI_PROGRESS_H
#define QL_SRC_CLI_PROGRESS_H

#include <stdio.h>

#include "qlora/train.h"

/* Zeroed is valid and prints nothing. */
typedef struct cli_progress {
    FILE *out; /* NULL: print nothing */
    bool terminal, line_open;
    size_t steps, done, tokens, learned;
    double seconds;    /* of the steps */
    double loss;       /* exponential mean of the last steps' losses, by steps */
    double weight;     /* of that mean: 1 - decay^done */
    double first_loss; /* of step 1 */
    double printed;    /* when the last plain line was */
} cli_progress;

void cli_progress_start(cli_progress *progress, FILE *out, size_t steps);
void cli_progress_step(cli_progress *progress, const ql_step_report *report);

/* Ends the rewritten line, so that something else can be printed. */
void cli_progress_break(cli_progress *progress);

double cli_progress_loss(const cli_progress *progress);              /* smoothed */
double cli_progress_tokens_per_second(const cli_progress *progress); /* mean of the run */

#endif
