/* Writes a YAML mapping of values and of mappings. */
#ifndef QL_SRC_CLI_YAML_WRITE_H
#define QL_SRC_CLI_YAML_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <yaml.h>

#include "qlora/base.h"

/* What goes wrong is remembered until it is written. */
typedef struct cli_yaml_writer {
    yaml_emitter_t emitter;
    char *text;
    size_t length;
    bool failed;
} cli_yaml_writer;

/* Begins the outermost mapping, below lines of remarks. */
void cli_yaml_begin(cli_yaml_writer *out, const char *remarks);
void cli_yaml_map(cli_yaml_writer *out, const char *key); /* until cli_yaml_end */
void cli_yaml_end(cli_yaml_writer *out);
void cli_yaml_put(cli_yaml_writer *out, const char *key, const char *value, bool quoted);

/* Writes the file, whole or not at all, after the outermost mapping's end, and frees the rest. */
ql_status cli_yaml_write(cli_yaml_writer *out, const char *path, ql_error *err);

#endif
