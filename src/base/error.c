#include "base/error.h"
#include "base/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *ql_status_name(ql_status status)
{
    static const char *const names[] = {"ok", "argument", "shape", "value", "memory", "io", "format", "unsupported"};
    size_t i = (size_t)status;
    return i < sizeof names / sizeof *names ? names[i] : "unknown";
}

/* Messages quote names and values from files: control characters must not reach a terminal or break the line,
 * and a cut in the middle of a character must not leave invalid UTF-8. */
static void clean(char *message)
{
    for (size_t length; *message; message += length) {
        length = ql_utf8_length(message);
        if (length == 0 || (unsigned char)*message < 0x20 || *message == 0x7f) {
            *message = '?';
            length = 1;
        }
    }
}

ql_status ql_fail(ql_error *err, ql_status status, const char *format, ...)
{
    if (!err)
        return status;
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    clean(err->message);
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
    clean(err->message);
    err->status = status;
    return status;
}
