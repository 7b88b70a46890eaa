/* Sentences about what is wrong. */
#ifndef QL_SRC_TRAIN_FINDINGS_H
#define QL_SRC_TRAIN_FINDINGS_H

#include <stdarg.h>

#include "qlora/inspect.h"

/* These add a sentence; false: no memory for it. */
bool ql_found(ql_findings *findings, bool fault, const char *format, ...) __attribute__((format(printf, 3, 4)));
bool ql_found_with(ql_findings *findings, bool fault, const char *format, va_list args)
    __attribute__((format(printf, 3, 0)));

#endif
