/* SIGINT, SIGTERM and SIGHUP. */
#ifndef QL_SRC_CLI_INTERRUPT_H
#define QL_SRC_CLI_INTERRUPT_H

#include <stdbool.h>

/* From here on they end the process as ever, but take half-written files along. */
void cli_interrupt_tidy(void);

/* And this folder, which must outlive the process, when nothing is in it. */
void cli_interrupt_remove(const char *folder);

/* From here on the first of them is a request to stop, and is remembered; the second ends the process. */
void cli_interrupt_catch(void);
bool cli_interrupted(void);

#endif
