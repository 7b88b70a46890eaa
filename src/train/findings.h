/* Sentences about what is wrong. */
#ifndef QL_SRC_TRAIN_FINDINGS_H
#define QL_SRC_TRAIN_FINDINGS_H

#include "qlora/inspect.h"

/* Adds a sentence; false: no memory for it. */
bool ql_found(ql_findings *findings, bool fault, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
