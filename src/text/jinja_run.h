/* Statements of a chat template at work. */
#ifndef QL_SRC_TEXT_JINJA_RUN_H
#define QL_SRC_TEXT_JINJA_RUN_H

#include "text/jinja_eval.h"

typedef enum ql_jflow { QL_J_ON, QL_J_BREAK, QL_J_CONTINUE } ql_jflow;

ql_jflow ql_jexecute(ql_jeval *e, const ql_jnode *body);

/* For each byte of the output whether a {% generation %} wrote it. */
const uint8_t *ql_janswered(ql_jeval *e);

#endif
