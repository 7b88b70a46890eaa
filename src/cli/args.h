/* The command line as data: tables of options, from which parsing, defaults and help are made. */
#ifndef QL_SRC_CLI_ARGS_H
#define QL_SRC_CLI_ARGS_H

#include <stdbool.h>
#include <stddef.h>

/* Exit statuses; every --help lists them. */
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

/* What an option takes, and the type of the field that its value goes to. */
typedef enum cli_kind {
    CLI_FLAG,   /* bool: --name or --no-name */
    CLI_SIZE,   /* size_t in [min, max] */
    CLI_REAL,   /* double in [min, max] */
    CLI_BYTES,  /* size_t: a number with k, M, G or T behind it (1000 each), or Ki, Mi, Gi, Ti (1024 each) */
    CLI_TEXT,   /* const char *, NULL when not given and without a default */
    CLI_CHOICE, /* const char *, one of the metavar's words: "constant|linear|cosine" */
    CLI_LIST,   /* cli_list: may be given several times */
} cli_kind;

typedef struct cli_list {
    const char *items[16];
    size_t count;
} cli_list;

typedef struct cli_option {
    const char *name; /* without the dashes */
    cli_kind kind;
    size_t offset; /* of the field in the command's values */
    const char *metavar;
    const char *fallback; /* the default, written as on the command line; NULL: none */
    double min, max;      /* of numbers */
    bool required;
    const char *group; /* heading in the help; options of a group stand together */
    const char *help;
} cli_option;

enum { CLI_MAX_OPTIONS = 64 };

struct cli_command;

/* A parsed command line. */
typedef struct cli_args {
    const struct cli_command *command;
    const void *values;                 /* the command's struct, filled */
    const char *given[CLI_MAX_OPTIONS]; /* values as typed ("yes" or "no" for flags), by cli_option_at() index;
                                           NULL: not given, the default holds */
} cli_args;

typedef struct cli_command {
    const char *name, *summary;
    const char *about;                /* one paragraph */
    const char *const *examples;      /* pairs of a command line and what it does, ended by NULL */
    const char *notes;                /* ends the help: exit statuses that are the command's own, ...; or NULL */
    const cli_option *const *options; /* tables, each ended by a row without a name; the list by NULL */
    bool sketch;                      /* of the required options only --model is */
    size_t values;                    /* size of the struct that the options fill */
    int (*run)(const cli_args *args);
} cli_command;

/* Fills *args and `values` with defaults, then with argv[0 .. argc). False: the run ends now with *status, after
 * --help or after a complaint on stderr. Strings are borrowed from argv and from the tables. */
bool cli_parse(cli_args *args, const cli_command *command, int argc, char **argv, void *values, int *status);

/* Whether the option was on the command line; the name must be one of the command's. */
bool cli_given(const cli_args *args, const char *name);

/* Complains on stderr in one line, points to --help, and returns CLI_USAGE. */
int cli_wrong(const cli_command *command, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Whether the command cannot do without the option. */
bool cli_required(const cli_command *command, const cli_option *option);

void cli_help(const cli_command *command);

/* The candidate nearest to a mistyped name, or NULL when none is near. next(ctx, i) returns candidate i or NULL. */
const char *cli_nearest(const char *typed, const char *(*next)(const void *ctx, size_t index), const void *ctx);

/* Option `index`, counted over all tables; NULL after the last. */
const cli_option *cli_option_at(const cli_command *command, size_t index);

#endif
