#define _GNU_SOURCE
#include "cli/settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/yaml_read.h"

#define DEFAULTS "record/defaults/"

struct cli_settings {
    const char *file;
    cli_yaml yaml;
    char *joined[CLI_MAX_OPTIONS]; /* lists of names as one text, by option */
};

/* Reads into an option. */
typedef struct target {
    cli_args *args;
    void *values;
    const cli_option *option;
    size_t index;
    bool given; /* no: a default */
} target;

static int complain(const cli_args *args, const cli_yaml_entry *entry, const char *what)
{
    const char *key =
        strncmp(entry->path, DEFAULTS, strlen(DEFAULTS)) == 0 ? entry->path + strlen(DEFAULTS) : entry->path;
    bool shown = entry->value && *entry->value;
    return cli_wrong(args->command, "%s:%zu: %s%s%s: %s", args->settings->file, entry->line, key, shown ? ": " : "",
                     shown ? entry->value : "", what);
}

static bool is_one_of(const char *text, const char *const *words)
{
    for (; *words; words++)
        if (strcmp(text, *words) == 0)
            return true;
    return false;
}

static const char *flag_of(const char *text)
{
    static const char *const on[] = {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON", NULL};
    static const char *const off[] = {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF", NULL};
    return is_one_of(text, on) ? "yes" : is_one_of(text, off) ? "no" : NULL;
}

static bool is_null(const cli_yaml_entry *entry)
{
    static const char *const words[] = {"null", "Null", "NULL", "~", NULL};
    return !entry->quoted && is_one_of(entry->value, words);
}

static int store(target *t, const cli_yaml_entry *entry, const char *text)
{
    char why[CLI_WHY];
    cli_expects(t->option, why);
    if (t->option->kind == CLI_FLAG && (text = flag_of(text)) == NULL)
        return complain(t->args, entry, why);
    if (t->option->kind == CLI_COUNT && flag_of(text))
        text = strcmp(flag_of(text), "yes") == 0 ? "all" : "none";
    (t->given ? t->args->given : t->args->defaults)[t->index] = text;
    t->args->from_file[t->index] |= t->given;
    return cli_store(t->option, text, t->values) ? CLI_OK : complain(t->args, entry, why);
}

static int take_value(target *t, const cli_yaml_entry *entry)
{
    if (is_null(entry))
        return CLI_OK; /* as if it were not there */
    if (!*entry->value && !entry->quoted)
        return complain(t->args, entry, "has no value; leave the line out for the default");
    if (t->option->kind == CLI_LIST)
        memset((char *)t->values + t->option->offset, 0, sizeof(cli_list));
    return store(t, entry, entry->value);
}

/* "a,b,c" from the items behind `entry`; NULL when memory is out. */
static char *join(const cli_yaml_entry *entry, const cli_yaml_entry *end)
{
    char *text = NULL;
    size_t length = 0;
    FILE *file = open_memstream(&text, &length);
    for (const cli_yaml_entry *item = entry + 1; file && item < end && item->kind == CLI_YAML_ITEM; item++)
        fprintf(file, "%s%s", item > entry + 1 ? "," : "", item->value);
    return file && fclose(file) == 0 ? text : NULL;
}

static int take_list(target *t, const cli_yaml_entry *entry, const cli_yaml_entry *end)
{
    char why[CLI_WHY + 16];
    cli_settings *settings = t->args->settings;
    if (t->option->kind == CLI_NAMES) {
        free(settings->joined[t->index]);
        settings->joined[t->index] = join(entry, end);
        return settings->joined[t->index] ? store(t, entry, settings->joined[t->index])
                                          : complain(t->args, entry, "out of memory");
    }
    if (t->option->kind != CLI_LIST) {
        cli_expects(t->option, why);
        strcat(why, ", not a list");
        return complain(t->args, entry, why);
    }
    memset((char *)t->values + t->option->offset, 0, sizeof(cli_list));
    int status = CLI_OK;
    for (const cli_yaml_entry *item = entry + 1; item < end && item->kind == CLI_YAML_ITEM && !status; item++)
        status = store(t, item, item->value);
    return status;
}

static int unknown(const cli_args *args, const cli_yaml_entry *entry, const char *key)
{
    const char *near = cli_nearest(key, cli_option_name, args->command);
    return cli_wrong(args->command, "%s:%zu: unknown key '%s'%s%s%s", args->settings->file, entry->line, key,
                     near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

/* Entries with that beginning of the path go to the options called as the rest. */
static int take_all(cli_args *args, void *values, const char *prefix, bool given)
{
    char why[CLI_WHY + 16];
    const cli_yaml *yaml = &args->settings->yaml;
    for (size_t i = 0; i < yaml->count; i++) { /* none, and no entries either, of an empty file */
        const cli_yaml_entry *entry = &yaml->entries[i], *end = yaml->entries + yaml->count;
        if (strncmp(entry->path, prefix, strlen(prefix)) != 0 || entry->kind == CLI_YAML_ITEM)
            continue;
        const char *key = entry->path + strlen(prefix);
        if (given && (strcmp(key, "record") == 0 || strncmp(key, "record/", 7) == 0))
            continue;
        target t = {args, values, NULL, 0, given};
        while ((t.option = cli_option_at(args->command, t.index)) != NULL && strcmp(t.option->name, key) != 0)
            t.index++;
        if (!t.option && !given)
            continue; /* the option of a program before or after this one */
        if (!t.option)
            return unknown(args, entry, key);
        if (strcmp(key, "config") == 0)
            return complain(args, entry, "a file of settings cannot name another one");
        if (args->given[t.index])
            continue;
        int status;
        if (entry->kind == CLI_YAML_MAP) {
            cli_expects(t.option, why);
            status = complain(args, entry, strcat(why, ", not a mapping"));
        } else {
            status = entry->kind == CLI_YAML_LIST ? take_list(&t, entry, end) : take_value(&t, entry);
        }
        if (status != CLI_OK)
            return status;
    }
    return CLI_OK;
}

static const char *config_file(const cli_args *args)
{
    const cli_option *option;
    for (size_t i = 0; (option = cli_option_at(args->command, i)) != NULL; i++)
        if (strcmp(option->name, "config") == 0)
            return args->given[i];
    return NULL;
}

int cli_settings_apply(cli_args *args, void *values)
{
    char why[CLI_YAML_WHY];
    const char *file = config_file(args);
    if (!file)
        return CLI_OK;
    args->settings = calloc(1, sizeof *args->settings);
    if (!args->settings)
        return cli_wrong(args->command, "--config %s: out of memory", file);
    args->settings->file = file;
    int status = cli_yaml_read(&args->settings->yaml, file, why);
    if (status == CLI_FAILED)
        fprintf(stderr, "qlora: error: --config %s\n", why);
    else if (status == CLI_USAGE)
        cli_wrong(args->command, "%s", why);
    if (status == CLI_OK)
        status = take_all(args, values, "", true);
    return status == CLI_OK ? take_all(args, values, DEFAULTS, false) : status;
}

const char *cli_settings_file(const cli_settings *settings)
{
    return settings->file;
}

const char *cli_settings_recorded(const cli_settings *settings, const char *key)
{
    char path[4096];
    snprintf(path, sizeof path, "record/%s", key);
    const cli_yaml_entry *entry = cli_yaml_find(&settings->yaml, path);
    return entry ? entry->value : NULL;
}

void cli_settings_close(cli_settings *settings)
{
    if (!settings)
        return;
    for (size_t i = 0; i < CLI_MAX_OPTIONS; i++)
        free(settings->joined[i]);
    cli_yaml_free(&settings->yaml);
    free(settings);
}
