/* The parts of `qlora inspect`: files, and data. */
#ifndef QL_SRC_CLI_INSPECT_H
#define QL_SRC_CLI_INSPECT_H

#include "cli/common.h"
#include "qlora/inspect.h"

typedef struct inspect_values {
    cli_common common;
    const char *file, *color;
    size_t samples, tokens, tensors;
    bool values;
} inspect_values;

/* Whether standard output takes colours: --color, NO_COLOR, and whether it is a terminal. */
bool inspect_color(const inspect_values *v);

/* Text of files for a terminal: control characters are spelled, and a line's end is shown and kept. */
void inspect_put(const char *text, size_t length);

/* Findings as lines, or as the arrays "faults" and "warnings". */
void inspect_tell_findings(const ql_findings *findings, bool color);
void inspect_json_findings(ql_json *json, const ql_findings *findings);

/* Data over a tokenizer, and any other file. Return the exit status. */
int inspect_data(const cli_args *args);
int inspect_file(const cli_args *args);

#endif
