/* The folder that results go to. */
#ifndef QL_SRC_CLI_OUTPUT_H
#define QL_SRC_CLI_OUTPUT_H

#include <stdbool.h>

/* Makes the folder, its parents too, unless it is there, and tries to write into it. *made tells that it is new.
 * Returns the exit status, complaint made. */
int cli_output_make(const char *dir, bool *made);

/* Removes what a run that was killed while it wrote left half-written in the folder. */
void cli_output_sweep(const char *dir);

#endif
