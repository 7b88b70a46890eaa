/* YAML as far as settings need it: mappings of plain values, of lists of plain values, and of mappings. */
#ifndef QL_SRC_CLI_YAML_READ_H
#define QL_SRC_CLI_YAML_READ_H

#include <stdbool.h>
#include <stddef.h>

typedef enum cli_yaml_kind {
    CLI_YAML_VALUE,
    CLI_YAML_LIST, /* its items follow */
    CLI_YAML_ITEM,
    CLI_YAML_MAP, /* its members follow */
} cli_yaml_kind;

typedef struct cli_yaml_entry {
    cli_yaml_kind kind;
    char *path;  /* the keys from the outermost inwards, with '/' between them */
    char *value; /* of values and items */
    bool quoted;
    size_t line;
} cli_yaml_entry;

/* Zeroed is empty. */
typedef struct cli_yaml {
    cli_yaml_entry *entries; /* in the order of the file */
    size_t count, capacity;
} cli_yaml;

enum { CLI_YAML_WHY = 512 };

/* Reads the file. Returns CLI_OK; CLI_FAILED when it cannot be read; CLI_USAGE for what is no YAML, and for aliases,
 * keys given twice, several documents, mappings in lists. why[] names the file and the line. Free it in any case. */
int cli_yaml_read(cli_yaml *yaml, const char *path, char why[CLI_YAML_WHY]);
void cli_yaml_free(cli_yaml *yaml);

/* The entry at that path (never an item), or NULL. */
const cli_yaml_entry *cli_yaml_find(const cli_yaml *yaml, const char *path);

#endif
