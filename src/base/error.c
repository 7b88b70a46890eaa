#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *ql_status_name(ql_status status)
{
    static const char *const names[] = {"ok", "argument", "shape", "value", "memory", "io", "format", "unsupported"};
    size_t i = (size_t)status;
    return i < sizeof names / sizeof *names ? names[i] : "unknown";
}

ql_status ql_fail(ql_error *err, ql_status status, const char *format, ...)
{
    if (!err)
        return status;
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    err->status = status;
    return status;
}

ql_status ql_fail_in(ql_error *err, ql_status status, const char *format, ...)
{
    if (!err)
        return status;
    char old[sizeof err->message];
    memcpy(old, err->message, sizeof old);
    va_list args;
    va_start(args, format);
    int used = vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    if (used >= 0 && (size_t)used < sizeof err->message)
        snprintf(err->message + used, sizeof err->message - (size_t)used, ": %s", old);
    err->status = status;
    return status;
}
