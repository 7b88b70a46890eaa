/* run.yaml: what a run was made of, written beside its adapter. Its options can be read again with --config, and below
 * "record" stand the program, its libraries, the processor's instructions, the defaults in force, and the sizes and
 * SHA-256 of the files that were read. */
#ifndef QL_SRC_CLI_RECORD_H
#define QL_SRC_CLI_RECORD_H

#include "cli/common.h"

typedef struct cli_record_file {
    const char *role; /* the option that named it, or its folder */
    char *name;       /* without its folder */
    ql_file_digest digest;
} cli_record_file;

/* Zeroed is empty. */
typedef struct cli_record {
    const cli_args *args;
    cli_record_file *files;
    size_t count;
    const char *program;
    char libraries[512], started[32];
} cli_record;

/* An option that did not stay as it was given. */
typedef struct cli_changed {
    const char *name;
    const char *value; /* NULL: left out */
} cli_changed;

/* cli_record_open() notes the program and what it runs on, cli_record_add() the files of an option: a file, or the .json,
 * .jinja and .safetensors of a folder. Of a model's files over 64 MiB only the ends are read. Returns the exit status. */
void cli_record_open(cli_record *record, const cli_args *args);
int cli_record_add(cli_record *record, const char *role, const char *path);

/* Where --config named the record of another run: warns of everything that is another now. */
void cli_record_compare(const cli_record *record);

/* Writes FOLDER/run.yaml for an adapter with that SHA-256. `changed` ends with a row without a name. */
ql_status cli_record_write(const cli_record *record, const char *folder, const cli_changed *changed, size_t steps,
                           const char *adapter_sha256, ql_error *err);

/* What the record of --config says of its adapter; NULL when there is no record, or of a run that was stopped. */
const char *cli_record_wanted(const cli_record *record);

void cli_record_close(cli_record *record);

#endif
