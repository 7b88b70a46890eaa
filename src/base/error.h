/* Filling in a ql_error. */
#ifndef QL_SRC_BASE_ERROR_H
#define QL_SRC_BASE_ERROR_H

#include "qlora/base.h"

/* Formats the message and returns status, so that a failing line reads `return ql_fail(...)`. */
ql_status ql_fail(ql_error *err, ql_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the message that is already there and returns its status. */
ql_status ql_fail_in(ql_error *err, ql_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
