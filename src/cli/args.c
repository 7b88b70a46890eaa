#include "cli/args.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/settings.h"

enum { MAX_NAME = 40 };

void cli_clean(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
}

int cli_wrong(const cli_command *command, const char *format, ...)
{
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cli_clean(text);
    fprintf(stderr, "qlora %s: %s\nSee 'qlora %s --help'.\n", command->name, text, command->name);
    return CLI_USAGE;
}

const cli_option *cli_option_at(const cli_command *command, size_t index)
{
    for (size_t table = 0; command->options[table]; table++)
        for (const cli_option *option = command->options[table]; option->name; option++)
            if (index-- == 0)
                return option;
    return NULL;
}

const char *cli_option_name(const void *ctx, size_t index)
{
    const cli_option *option = cli_option_at(ctx, index);
    return option ? option->name : NULL;
}

/* Edits (insert, delete, replace, swap neighbours) between two names. */
static size_t distance(const char *a, const char *b)
{
    size_t rows[3][MAX_NAME + 1], n = strlen(b);
    size_t *before = rows[0], *above = rows[1], *row = rows[2];
    for (size_t j = 0; j <= n; j++)
        above[j] = j;
    for (size_t i = 1; a[i - 1]; i++) {
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t cost = above[j - 1] + (a[i - 1] != b[j - 1]);
            cost = above[j] + 1 < cost ? above[j] + 1 : cost;
            cost = row[j - 1] + 1 < cost ? row[j - 1] + 1 : cost;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < cost)
                cost = before[j - 2] + 1;
            row[j] = cost;
        }
        size_t *oldest = before;
        before = above, above = row, row = oldest;
    }
    return above[n];
}

const char *cli_nearest(const char *typed, const char *(*next)(const void *ctx, size_t index), const void *ctx)
{
    const char *best = NULL, *name;
    size_t least = SIZE_MAX, length = strlen(typed);
    if (length > MAX_NAME)
        return NULL;
    for (size_t i = 0; (name = next(ctx, i)) != NULL; i++) {
        size_t edits = distance(typed, name);
        if (length >= 4 && strncmp(typed, name, length) == 0)
            edits = 1; /* an abbreviation */
        if (edits < least)
            least = edits, best = name;
    }
    return least <= 1 + length / 3 ? best : NULL;
}

const char *cli_next_choice(const char **words, size_t *length)
{
    const char *word = *words;
    *length = strcspn(word, "|");
    *words = word + *length + (word[*length] == '|');
    return *length ? word : NULL;
}

static bool one_of(const char *words, const char *text)
{
    const char *word;
    size_t length;
    while ((word = cli_next_choice(&words, &length)) != NULL)
        if (strlen(text) == length && memcmp(word, text, length) == 0)
            return true;
    return false;
}

bool cli_on_by_default(const cli_option *option)
{
    return option->kind == CLI_FLAG && option->fallback && strcmp(option->fallback, "yes") == 0;
}

/* Reads a number of the option's kind; 0 when `text` is none or is out of range. */
static bool read_number(const cli_option *option, const char *text, void *field)
{
    char *end;
    errno = 0;
    if (option->kind != CLI_REAL) {
        if (text[0] < '0' || text[0] > '9')
            return false;
        unsigned long long n = strtoull(text, &end, 10);
        if (*end || errno || (double)n < option->min || (double)n > option->max)
            return false;
        *(size_t *)field = (size_t)n;
        return true;
    }
    double x = strtod(text, &end);
    if (end == text || *end || !(x >= option->min && x <= option->max))
        return false;
    *(double *)field = x;
    return true;
}

static bool read_count(const cli_option *option, const char *text, size_t *field)
{
    bool none = strcmp(text, "none") == 0;
    *field = none ? 0 : SIZE_MAX;
    return none || strcmp(text, "all") == 0 || read_number(option, text, field);
}

static bool read_bytes(const char *text, size_t *field)
{
    static const char units[] = "kMGT";
    char *end;
    double bytes = strtod(text, &end);
    if (end == text || text[0] < '0' || text[0] > '9')
        return false;
    const char *unit = *end ? strchr(units, *end == 'K' ? 'k' : *end) : NULL;
    if (unit) {
        double base = end[1] == 'i' ? 1024 : 1000;
        for (ptrdiff_t i = unit - units; i >= 0; i--)
            bytes *= base;
        end += base == 1024 ? 2 : 1;
    }
    if (*end == 'B')
        end++;
    if (*end || !(bytes >= 1 && bytes < 9e18))
        return false;
    *field = (size_t)bytes;
    return true;
}

void cli_expects(const cli_option *option, char what[CLI_WHY])
{
    switch (option->kind) {
    case CLI_FLAG:
        snprintf(what, CLI_WHY, "must be true or false");
        break;
    case CLI_SIZE:
    case CLI_REAL:
        snprintf(what, CLI_WHY, "must be a %snumber, %.15g to %.15g", option->kind == CLI_SIZE ? "whole " : "",
                 option->min, option->max);
        break;
    case CLI_COUNT:
        snprintf(what, CLI_WHY, "must be none, all or a whole number up to %.15g", option->max);
        break;
    case CLI_BYTES:
        snprintf(what, CLI_WHY, "must be bytes, such as 900M, 2G or 1.5Gi");
        break;
    case CLI_CHOICE:
        snprintf(what, CLI_WHY, "must be one of %s", option->metavar);
        break;
    case CLI_TEXT:
    case CLI_NAMES:
        snprintf(what, CLI_WHY, "must be a text");
        break;
    case CLI_LIST:
        snprintf(what, CLI_WHY, "given more than %zu times", sizeof(((cli_list *)0)->items) / sizeof(char *));
        break;
    }
}

bool cli_store(const cli_option *option, const char *text, void *values)
{
    void *field = (char *)values + option->offset;
    switch (option->kind) {
    case CLI_FLAG:
        *(bool *)field = strcmp(text, "yes") == 0;
        return true;
    case CLI_SIZE:
    case CLI_REAL:
        return read_number(option, text, field);
    case CLI_COUNT:
        return read_count(option, text, field);
    case CLI_BYTES:
        return read_bytes(text, field);
    case CLI_CHOICE:
    case CLI_TEXT:
    case CLI_NAMES:
        *(const char **)field = text;
        return option->kind != CLI_CHOICE || one_of(option->metavar, text);
    case CLI_LIST: {
        cli_list *list = field;
        if (list->count == sizeof list->items / sizeof *list->items)
            return false;
        list->items[list->count++] = text;
        return true;
    }
    }
    return false;
}

/* The option with that name, or NULL; *off for the --no- form of a flag. */
static const cli_option *find(const cli_command *command, const char *name, size_t length, size_t *index, bool *off)
{
    const cli_option *option;
    for (size_t i = 0; (option = cli_option_at(command, i)) != NULL; i++) {
        *index = i;
        *off = false;
        if (strlen(option->name) == length && memcmp(option->name, name, length) == 0)
            return option;
        *off = true;
        if (option->kind == CLI_FLAG && length > 3 && memcmp(name, "no-", 3) == 0 &&
            strlen(option->name) == length - 3 && memcmp(option->name, name + 3, length - 3) == 0)
            return option;
    }
    return NULL;
}

static int unknown(const cli_command *command, const char *name, size_t length)
{
    char typed[MAX_NAME + 2];
    snprintf(typed, sizeof typed, "%.*s", length > MAX_NAME ? MAX_NAME + 1 : (int)length, name);
    const char *near = cli_nearest(typed, cli_option_name, command);
    if (near)
        return cli_wrong(command, "unknown option --%s; did you mean --%s?", typed, near);
    return cli_wrong(command, "unknown option --%s", typed);
}

static int keep(cli_args *args, void *values, const cli_option *option, size_t index, const char *value)
{
    char what[CLI_WHY];
    args->given[index] = value;
    if (cli_store(option, value, values))
        return CLI_OK;
    cli_expects(option, what);
    return cli_wrong(args->command, "--%s %s: %s", option->name, value, what);
}

/* Takes the option at `name`, behind its dashes, and its value, from the next word where it needs one; returns the
 * status, *used the words. */
static int take(cli_args *args, void *values, const char *name, const char *next, int *used)
{
    const cli_command *command = args->command;
    size_t length = strcspn(name, "="), index;
    const char *value = name[length] ? name + length + 1 : NULL;
    bool off;
    const cli_option *option = find(command, name, length, &index, &off);
    if (!option)
        return unknown(command, name, length);
    if (args->given[index] && option->kind != CLI_LIST)
        return cli_wrong(command, "--%s is given twice", option->name);
    if (option->kind == CLI_FLAG) {
        if (value)
            return cli_wrong(command, "--%s takes no value; --no-%s turns it off", option->name, option->name);
        value = off ? "no" : "yes";
    } else if (!value && option->kind == CLI_COUNT && (!next || *next == '-')) {
        value = "all";
    } else if (!value) {
        if (!next || strncmp(next, "--", 2) == 0)
            return cli_wrong(command, "--%s needs a value: --%s %s%s", option->name, option->name, option->metavar,
                             next ? " (write --name=value when it begins with --)" : "");
        value = next;
        *used = 2;
    }
    return keep(args, values, option, index, value);
}

/* A word without dashes: the value of the command's operand. */
static int take_operand(cli_args *args, void *values, const char *word)
{
    const cli_command *command = args->command;
    size_t index;
    bool off;
    if (!command->operand || (word[0] == '-' && word[1]))
        return cli_wrong(command, "unexpected argument '%s'", word);
    const cli_option *option = find(command, command->operand, strlen(command->operand), &index, &off);
    if (args->given[index] && option->kind != CLI_LIST)
        return cli_wrong(command, "unexpected argument '%s': %s is given already (%s)", word, option->metavar,
                         args->given[index]);
    return keep(args, values, option, index, word);
}

bool cli_is_operand(const cli_command *command, const cli_option *option)
{
    return command->operand && strcmp(command->operand, option->name) == 0;
}

bool cli_required(const cli_command *command, const cli_option *option)
{
    return option->required && (!command->sketch || strcmp(option->name, "model") == 0);
}

/* The long name of a short option. */
static const char *long_form(const char *word)
{
    return strcmp(word, "-o") == 0 ? "--output" : word;
}

static int take_all(cli_args *args, void *values, int argc, char **argv)
{
    for (int i = 0; i < argc;) {
        int used = 1, status;
        const char *word = long_form(argv[i]);
        if (strncmp(word, "--", 2) == 0 && word[2])
            status = take(args, values, word + 2, argc - i - 1 ? argv[i + 1] : NULL, &used);
        else
            status = take_operand(args, values, word);
        if (status != CLI_OK)
            return status;
        i += used;
    }
    return CLI_OK;
}

static int check_required(const cli_args *args)
{
    const cli_option *option;
    for (size_t i = 0; (option = cli_option_at(args->command, i)) != NULL; i++) {
        if (args->given[i] || !cli_required(args->command, option))
            continue;
        if (cli_is_operand(args->command, option))
            return cli_wrong(args->command, "%s is missing: %s", option->metavar, option->help);
        return cli_wrong(args->command, "--%s %s is missing", option->name, option->metavar);
    }
    return CLI_OK;
}

bool cli_given(const cli_args *args, const char *name)
{
    size_t index;
    bool off;
    return find(args->command, name, strlen(name), &index, &off) && args->given[index];
}

static bool asks_for_help(int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || (i == 0 && strcmp(argv[i], "-h") == 0))
            return true;
    return false;
}

bool cli_parse(cli_args *args, const cli_command *command, int argc, char **argv, void *values, int *status)
{
    const cli_option *option;
    *args = (cli_args){.command = command, .values = values};
    memset(values, 0, command->values);
    for (size_t i = 0; (option = cli_option_at(command, i)) != NULL; i++)
        if ((args->defaults[i] = option->fallback) != NULL)
            cli_store(option, option->fallback, values);
    if (asks_for_help(argc, argv)) {
        cli_help(command);
        *status = CLI_OK;
        return false;
    }
    *status = take_all(args, values, argc, argv);
    if (*status == CLI_OK)
        *status = cli_settings_apply(args, values);
    if (*status == CLI_OK)
        *status = check_required(args);
    return *status == CLI_OK;
}

void cli_args_free(cli_args *args)
{
    cli_settings_close(args->settings);
    args->settings = NULL;
}
