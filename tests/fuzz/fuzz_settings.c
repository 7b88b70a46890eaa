/* A YAML file of settings (--config) for a command with options of every kind. */
#include <stdlib.h>
#include <string.h>

#include "cli/args.h"
#include "cli/settings.h"
#include "cli/yaml_read.h"
#include "fuzz.h"

typedef struct values {
    bool flag;
    size_t size, bytes;
    double real;
    const char *text, *choice, *names, *config;
    cli_list list;
} values;

static const cli_option options[] = {
    {"flag", CLI_FLAG, offsetof(values, flag), NULL, "yes", 0, 0, false, "Some", "a flag"},
    {"size", CLI_SIZE, offsetof(values, size), "N", "3", 1, 1000, false, "Some", "a size"},
    {"real", CLI_REAL, offsetof(values, real), "X", "0.5", 0, 1, false, "Some", "a number"},
    {"bytes", CLI_BYTES, offsetof(values, bytes), "BYTES", NULL, 0, 0, false, "Some", "bytes"},
    {"text", CLI_TEXT, offsetof(values, text), "TEXT", NULL, 0, 0, false, "Some", "a text"},
    {"choice", CLI_CHOICE, offsetof(values, choice), "one|two", "one", 0, 0, false, "Some", "a word"},
    {"names", CLI_NAMES, offsetof(values, names), "NAMES", "a,b", 0, 0, false, "Some", "names"},
    {"list", CLI_LIST, offsetof(values, list), "TEXT", NULL, 0, 0, false, "Some", "texts"},
    {"config", CLI_TEXT, offsetof(values, config), "FILE", NULL, 0, 0, false, "Some", "the file"},
    {0},
};
static const cli_option *const tables[] = {options, NULL};
static const cli_command command = {.name = "test", .summary = "", .options = tables, .values = sizeof(values)};

static size_t length_of(const char *text)
{
    return text ? strlen(text) : 0;
}

static void use(const cli_args *args, const values *v)
{
    volatile size_t sum = length_of(v->text) + length_of(v->names) + length_of(v->config);
    FUZZ_CHECK(v->size >= 1 && v->size <= 1000 && v->real >= 0 && v->real <= 1);
    FUZZ_CHECK(strcmp(v->choice, "one") == 0 || strcmp(v->choice, "two") == 0);
    FUZZ_CHECK(v->list.count <= sizeof v->list.items / sizeof *v->list.items);
    for (size_t i = 0; i < v->list.count; i++)
        sum += length_of(v->list.items[i]);
    for (size_t i = 0; cli_option_at(&command, i); i++)
        sum += length_of(args->given[i]) + length_of(args->defaults[i]);
    sum += length_of(cli_settings_recorded(args->settings, "adapter"));
    (void)sum;
}

/* Whether it may be shown on a terminal, in one line. */
static bool is_plain(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            return false;
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *path = fuzz_file("x.yaml", (fuzz_part){data, size});
    char option[] = "--config", file[256], *argv[] = {option, file};
    char why[CLI_YAML_WHY];
    int status;
    cli_args args;
    cli_yaml yaml;
    values v;
    if (cli_yaml_read(&yaml, path, why) != CLI_OK)
        FUZZ_CHECK(why[0] && is_plain(why));
    cli_yaml_free(&yaml);
    strcpy(file, path);
    if (cli_parse(&args, &command, 2, argv, &v, &status))
        use(&args, &v);
    else
        FUZZ_CHECK(status == CLI_USAGE);
    cli_args_free(&args);
    return 0;
}
