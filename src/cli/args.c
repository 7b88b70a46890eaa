#include "cli/args.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NAME = 40 };

int cli_wrong(const cli_command *command, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "qlora %s: ", command->name);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\nSee 'qlora %s --help'.\n", command->name);
    va_end(args);
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

static const char *option_name(const void *ctx, size_t index)
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

static bool one_of(const char *words, const char *text)
{
    size_t length = strlen(text);
    for (;; words++) {
        size_t word = strcspn(words, "|");
        if (word == length && memcmp(words, text, word) == 0)
            return true;
        words += word;
        if (!*words)
            return false;
    }
}

/* Reads a number of the option's kind; 0 when `text` is none or is out of range. */
static bool read_number(const cli_option *option, const char *text, void *field)
{
    char *end;
    errno = 0;
    if (option->kind == CLI_SIZE) {
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

/* Stores a value; returns CLI_OK, or complains. */
static int store(const cli_command *command, const cli_option *option, const char *text, void *values)
{
    void *field = (char *)values + option->offset;
    switch (option->kind) {
    case CLI_FLAG:
        *(bool *)field = strcmp(text, "yes") == 0;
        return CLI_OK;
    case CLI_SIZE:
    case CLI_REAL:
        if (read_number(option, text, field))
            return CLI_OK;
        return cli_wrong(command, "--%s %s: must be a %snumber, %.15g to %.15g", option->name, text,
                         option->kind == CLI_SIZE ? "whole " : "", option->min, option->max);
    case CLI_BYTES:
        if (read_bytes(text, field))
            return CLI_OK;
        return cli_wrong(command, "--%s %s: must be bytes, such as 900M, 2G or 1.5Gi", option->name, text);
    case CLI_CHOICE:
        if (!one_of(option->metavar, text))
            return cli_wrong(command, "--%s %s: must be one of %s", option->name, text, option->metavar);
        *(const char **)field = text;
        return CLI_OK;
    case CLI_TEXT:
        *(const char **)field = text;
        return CLI_OK;
    case CLI_LIST: {
        cli_list *list = field;
        if (list->count == sizeof list->items / sizeof *list->items)
            return cli_wrong(command, "--%s: given more than %zu times", option->name, list->count);
        list->items[list->count++] = text;
        return CLI_OK;
    }
    }
    return CLI_OK;
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
    const char *near = cli_nearest(typed, option_name, command);
    if (near)
        return cli_wrong(command, "unknown option --%s; did you mean --%s?", typed, near);
    return cli_wrong(command, "unknown option --%s", typed);
}

/* Takes the option at *argv, and its value where it needs one; returns the status, *used the words. */
static int take(cli_args *args, void *values, int argc, char **argv, int *used)
{
    const cli_command *command = args->command;
    const char *name = argv[0] + 2;
    size_t length = strcspn(name, "="), index;
    const char *value = name[length] ? name + length + 1 : NULL;
    bool off;
    const cli_option *option = find(command, name, length, &index, &off);
    if (!option)
        return unknown(command, name, length);
    if (args->given[index] && option->kind != CLI_LIST)
        return cli_wrong(command, "--%s is given twice", option->name);
    *used = 1;
    if (option->kind == CLI_FLAG) {
        if (value)
            return cli_wrong(command, "--%s takes no value; --no-%s turns it off", option->name, option->name);
        value = off ? "no" : "yes";
    } else if (!value) {
        if (argc < 2 || strncmp(argv[1], "--", 2) == 0)
            return cli_wrong(command, "--%s needs a value: --%s %s%s", option->name, option->name, option->metavar,
                             argc < 2 ? "" : " (write --name=value when it begins with --)");
        value = argv[1];
        *used = 2;
    }
    args->given[index] = value;
    return store(command, option, value, values);
}

bool cli_required(const cli_command *command, const cli_option *option)
{
    return option->required && (!command->sketch || strcmp(option->name, "model") == 0);
}

static int take_all(cli_args *args, void *values, int argc, char **argv)
{
    for (int i = 0; i < argc;) {
        int used = 0;
        if (strncmp(argv[i], "--", 2) != 0 || !argv[i][2])
            return cli_wrong(args->command, "unexpected argument '%s'", argv[i]);
        int status = take(args, values, argc - i, argv + i, &used);
        if (status != CLI_OK)
            return status;
        i += used;
    }
    const cli_option *option;
    for (size_t i = 0; (option = cli_option_at(args->command, i)) != NULL; i++)
        if (cli_required(args->command, option) && !args->given[i])
            return cli_wrong(args->command, "--%s %s is missing", option->name, option->metavar);
    return CLI_OK;
}

bool cli_given(const cli_args *args, const char *name)
{
    size_t index;
    bool off;
    return find(args->command, name, strlen(name), &index, &off) && args->given[index];
}

bool cli_parse(cli_args *args, const cli_command *command, int argc, char **argv, void *values, int *status)
{
    const cli_option *option;
    *args = (cli_args){.command = command, .values = values};
    memset(values, 0, command->values);
    for (size_t i = 0; (option = cli_option_at(command, i)) != NULL; i++)
        if (option->fallback)
            store(command, option, option->fallback, values);
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || (i == 0 && strcmp(argv[i], "-h") == 0)) {
            cli_help(command);
            *status = CLI_OK;
            return false;
        }
    *status = take_all(args, values, argc, argv);
    return *status == CLI_OK;
}
