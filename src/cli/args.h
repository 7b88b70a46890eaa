/* The command line as data: tables of options, from which parsing, defaults, help, manual pages, shell completion and
 * the settings of a YAML file are made. */
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
    CLI_COUNT,  /* size_t: "none", "all" (SIZE_MAX) or a number up to max; --name alone is "all" */
    CLI_REAL,   /* double in [min, max] */
    CLI_BYTES,  /* size_t: a number with k, M, G or T behind it (1000 each), or Ki, Mi, Gi, Ti (1024 each) */
    CLI_TEXT,   /* const char *, NULL when not given and without a default */
    CLI_CHOICE, /* const char *, one of the metavar's words: "constant|linear|cosine" */
    CLI_NAMES,  /* const char *, as CLI_TEXT: words with commas between them */
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

enum { CLI_MAX_OPTIONS = 96, CLI_WHY = 256 };

struct cli_command;
struct cli_settings;

/* What the user asked for. */
typedef struct cli_args {
    const struct cli_command *command;
    const void *values;                    /* the command's struct, filled */
    const char *given[CLI_MAX_OPTIONS];    /* values as typed ("yes" or "no" for flags), by cli_option_at() index;
                                              NULL: not given, the default holds */
    const char *defaults[CLI_MAX_OPTIONS]; /* the defaults in force, in the same way; NULL: none */
    bool from_file[CLI_MAX_OPTIONS];       /* given in the file of --config, not on the command line */
    struct cli_settings *settings;         /* that file, or NULL */
} cli_args;

typedef struct cli_command {
    const char *name, *summary;
    const char *about;                /* one paragraph */
    const char *const *examples;      /* pairs of a command line and what it does, ended by NULL */
    const char *notes;                /* ends the help: exit statuses that are the command's own, ...; or NULL */
    const cli_option *const *options; /* tables, each ended by a row without a name; the list by NULL */
    const char *operand;              /* the option that a word without dashes is the value of; or NULL */
    bool sketch;                      /* of the required options only --model is */
    size_t values;                    /* size of the struct that the options fill */
    int (*run)(const cli_args *args);
} cli_command;

/* The commands, ended by NULL (commands.c). */
extern const cli_command *const cli_commands[];
const cli_command *cli_find_command(const char *name); /* or NULL */

/* Fills *args and `values`: defaults, then argv[0 .. argc), then what that leaves open from the YAML file of the
 * option --config where the command has one. False: the run ends now with *status, after --help or after a complaint
 * on stderr. Strings are borrowed from argv, the tables and args->settings. cli_args_free() in either case. */
bool cli_parse(cli_args *args, const cli_command *command, int argc, char **argv, void *values, int *status);
void cli_args_free(cli_args *args);

/* Whether the option was on the command line or in the file of --config; the name must be one of the command's. */
bool cli_given(const cli_args *args, const char *name);

/* Reads a value ("yes" or "no" for flags; lists grow by it) into the option's field. False: it is none, and
 * cli_expects() says in words what would be one ("must be a whole number, 1 to 1024"). */
bool cli_store(const cli_option *option, const char *text, void *values);
void cli_expects(const cli_option *option, char what[CLI_WHY]);

/* Complains on stderr in one line, points to --help, and returns CLI_USAGE. */
int cli_wrong(const cli_command *command, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Control characters, which must not reach a terminal or break a line of complaint, become question marks. */
void cli_clean(char *text);

/* Whether the command cannot do without the option. */
bool cli_required(const cli_command *command, const cli_option *option);

bool cli_is_operand(const cli_command *command, const cli_option *option);

void cli_help(const cli_command *command);

/* Where the words of a metavar such as "stop|skip" are choices: the next one from *words on, its length in *length,
 * and *words after it; NULL at the end. */
const char *cli_next_choice(const char **words, size_t *length);

/* Whether --no-NAME is the form that changes something. */
bool cli_on_by_default(const cli_option *option);

/* The candidate nearest to a mistyped name, or NULL when none is near. next(ctx, i) returns candidate i or NULL. */
const char *cli_nearest(const char *typed, const char *(*next)(const void *ctx, size_t index), const void *ctx);

/* Its name, for cli_nearest(); ctx is the command. */
const char *cli_option_name(const void *ctx, size_t index);

/* Option `index`, counted over all tables; NULL after the last. */
const cli_option *cli_option_at(const cli_command *command, size_t index);

#endif
