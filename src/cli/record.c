#define _GNU_SOURCE
#include "cli/record.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <yaml.h>

#include "cli/settings.h"
#include "cli/yaml_write.h"

enum { WHOLE_BYTES = 64 << 20 };

#define PROGRAM "qlora " QLORA_VERSION
#ifdef __clang__
#define COMPILER __VERSION__
#else
#define COMPILER "gcc " __VERSION__
#endif

void cli_record_open(cli_record *record, const cli_args *args)
{
    time_t now = time(NULL);
    struct tm utc;
    size_t used = strlen(ql_libraries_describe(record->libraries, sizeof record->libraries));
    record->args = args;
    record->program = PROGRAM;
    snprintf(record->libraries + used, sizeof record->libraries - used, "; libyaml %s; compiled by " COMPILER,
             yaml_get_version_string());
    if (gmtime_r(&now, &utc))
        strftime(record->started, sizeof record->started, "%Y-%m-%dT%H:%M:%SZ", &utc);
}

static int add_file(cli_record *record, const char *role, const char *path)
{
    ql_error err = {0};
    cli_record_file *files = realloc(record->files, (record->count + 1) * sizeof *files);
    if (!files)
        return cli_failed_with("out of memory");
    record->files = files;
    const char *slash = strrchr(path, '/');
    cli_record_file *file = &files[record->count];
    *file = (cli_record_file){.role = role, .name = strdup(slash ? slash + 1 : path)};
    if (!file->name)
        return cli_failed_with("out of memory");
    record->count++;
    bool weights = strcmp(role, "model") == 0; /* often of many GB, and read page by page as they are needed */
    return ql_file_sha256(&file->digest, path, weights ? WHOLE_BYTES : 0, &err) ? cli_failed(&err) : CLI_OK;
}

static int matters(const struct dirent *entry)
{
    static const char *const endings[] = {".json", ".jinja", ".safetensors"};
    const char *dot = strrchr(entry->d_name, '.');
    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
        if (strcmp(dot, endings[i]) == 0)
            return entry->d_name[0] != '.';
    return 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

int cli_record_add(cli_record *record, const char *role, const char *path)
{
    struct stat info;
    struct dirent **entries;
    if (!path)
        return CLI_OK;
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode))
        return add_file(record, role, path);
    int status = CLI_OK, count = scandir(path, &entries, matters, by_name);
    if (count < 0)
        return cli_failed_with("%s: cannot read the folder (%m)", path);
    for (int i = 0; i < count; i++) {
        char name[4096 + 256];
        snprintf(name, sizeof name, "%s/%s", path, entries[i]->d_name);
        if (status == CLI_OK && stat(name, &info) == 0 && S_ISREG(info.st_mode))
            status = add_file(record, role, name);
        free(entries[i]);
    }
    free(entries);
    return status;
}

/* Warns when the record says other than `now`. */
static void compare(const cli_record *record, const char *key, const char *now, const char *what)
{
    const cli_settings *settings = record->args->settings;
    const char *then = cli_settings_recorded(settings, key);
    if (then && strcmp(then, now) != 0)
        fprintf(stderr, "qlora: warning: %s: %s was %s, and is %s now: the adapter may come out otherwise\n",
                cli_settings_file(settings), what, then, now);
}

void cli_record_compare(const cli_record *record)
{
    if (!record->args->settings)
        return;
    compare(record, "program", PROGRAM, "the program");
    compare(record, "libraries", record->libraries, "what it runs on");
    compare(record, "instructions", ql_cpu_describe(), "the set of instructions");
    for (size_t i = 0; i < record->count; i++) {
        char key[1024], what[1024];
        const cli_record_file *file = &record->files[i];
        snprintf(key, sizeof key, "%s/%s/%s", file->role, file->name, file->digest.whole ? "sha256" : "sha256-of-ends");
        snprintf(what, sizeof what, "the SHA-256 of %s (--%s)", file->name, file->role);
        compare(record, key, file->digest.sha256, what);
    }
}

static const cli_changed *find(const cli_changed *changed, const char *name)
{
    for (; changed->name; changed++)
        if (strcmp(changed->name, name) == 0)
            return changed;
    return NULL;
}

static void put_value(cli_yaml_writer *out, const cli_option *option, const char *value)
{
    if (option->kind == CLI_FLAG)
        value = strcmp(value, "yes") == 0 ? "true" : "false";
    cli_yaml_put(out, option->name, value, option->kind == CLI_TEXT || option->kind == CLI_NAMES);
}

/* Options as keys: those that were given, or the defaults of the others. How a run reports, and that it goes on from
 * a checkpoint, make no other adapter. */
static void put_options(cli_yaml_writer *out, const cli_args *args, const cli_changed *changed, bool given)
{
    static const char *const others[] = {"config", "resume", "json", "quiet"};
    const cli_option *option;
    for (size_t i = 0; (option = cli_option_at(args->command, i)) != NULL; i++) {
        const cli_changed *other = find(changed, option->name);
        const char *value = args->given[i];
        bool left_out = false;
        for (size_t j = 0; j < sizeof others / sizeof *others; j++)
            left_out |= strcmp(option->name, others[j]) == 0;
        if (left_out)
            continue;
        if (given && other)
            value = other->value;
        if (given ? value != NULL : !args->given[i] && !other && args->defaults[i])
            put_value(out, option, given ? value : args->defaults[i]);
    }
}

static void put_files(cli_yaml_writer *out, const cli_record *record)
{
    for (size_t i = 0; i < record->count; i++) {
        char bytes[32];
        const cli_record_file *file = &record->files[i];
        if (i == 0 || strcmp(file->role, record->files[i - 1].role) != 0)
            cli_yaml_map(out, file->role);
        cli_yaml_map(out, file->name);
        snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)file->digest.bytes);
        cli_yaml_put(out, "bytes", bytes, false);
        cli_yaml_put(out, file->digest.whole ? "sha256" : "sha256-of-ends", file->digest.sha256, true);
        cli_yaml_end(out);
        if (i + 1 == record->count || strcmp(file->role, record->files[i + 1].role) != 0)
            cli_yaml_end(out);
    }
}

ql_status cli_record_write(const cli_record *record, const char *folder, const cli_changed *changed, size_t steps,
                           const char *adapter_sha256, ql_error *err)
{
    char path[4096 + 16], number[32], *here = getcwd(NULL, 0);
    cli_yaml_writer out;
    snprintf(path, sizeof path, "%s/run.yaml", folder);
    cli_yaml_begin(&out, "# Written by qlora finetune. To do the same again: qlora finetune --config run.yaml --output "
                         "another-folder\n# Paths are relative to the folder that it was started in (see below).\n");
    put_options(&out, record->args, changed, true);
    cli_yaml_map(&out, "record");
    cli_yaml_put(&out, "program", PROGRAM, true);
    cli_yaml_put(&out, "libraries", record->libraries, true);
    cli_yaml_put(&out, "instructions", ql_cpu_describe(), true);
    cli_yaml_put(&out, "started", record->started, true);
    cli_yaml_put(&out, "folder", here ? here : "", true);
    cli_yaml_map(&out, "defaults");
    put_options(&out, record->args, changed, false);
    cli_yaml_end(&out);
    put_files(&out, record);
    cli_yaml_map(&out, "result");
    snprintf(number, sizeof number, "%zu", steps);
    cli_yaml_put(&out, "steps", number, false);
    if (adapter_sha256)
        cli_yaml_put(&out, "adapter-sha256", adapter_sha256, true);
    cli_yaml_end(&out);
    cli_yaml_end(&out);
    free(here);
    return cli_yaml_write(&out, path, err);
}

const char *cli_record_wanted(const cli_record *record)
{
    const cli_settings *settings = record->args->settings;
    return settings ? cli_settings_recorded(settings, "result/adapter-sha256") : NULL;
}

void cli_record_close(cli_record *record)
{
    for (size_t i = 0; i < record->count; i++)
        free(record->files[i].name);
    free(record->files);
    *record = (cli_record){0};
}
