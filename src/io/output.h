/* Files that appear whole or not at all: written beside their place, made durable, then renamed. */
#ifndef QL_SRC_IO_OUTPUT_H
#define QL_SRC_IO_OUTPUT_H

#include <stdio.h>

#include "qlora/base.h"

/* Zeroed is closed. Errors of write and printf are kept: it is enough to check the commit. */
typedef struct ql_output {
    FILE *file;
    char *path, *temp;
    int error;        /* errno of the first write that failed */
    uint64_t written; /* bytes given to write */
} ql_output;

/* Opens a temporary file beside `path`, in the same folder. */
ql_status ql_output_open(ql_output *output, const char *path, ql_error *err);

void ql_output_write(ql_output *output, const void *data, size_t bytes);
void ql_output_printf(ql_output *output, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Flushes, syncs, renames into place and syncs the folder. On any error the temporary file is gone and
 * what was at the path is untouched. The output is closed in either case. */
ql_status ql_output_commit(ql_output *output, ql_error *err);

/* Throws the temporary file away. Fine on a closed output: one cleanup serves every exit. */
void ql_output_abort(ql_output *output);

#endif
