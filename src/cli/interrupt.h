/* SIGINT, SIGTERM and SIGHUP as a request to stop: the first is remembered, the second has its usual effect at once. */
#ifndef QL_SRC_CLI_INTERRUPT_H
#define QL_SRC_CLI_INTERRUPT_H

#include <stdbool.h>

/* From here on signals are caught. Before, they end the process: nothing is there to be saved. */
void cli_interrupt_catch(void);
bool cli_interrupted(void);

#endif
