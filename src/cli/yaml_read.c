#define _GNU_SOURCE
#include "cli/yaml_read.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "cli/args.h"

enum { DEPTH = 8, PATH = 4096, MOST_BYTES = 1 << 20, MOST_ENTRIES = 4096 };

typedef struct reader {
    cli_yaml *yaml;
    const char *file;
    char *why;
    yaml_parser_t parser;
    struct level {
        bool list;
        size_t length; /* of the path of the container */
    } levels[DEPTH];
    size_t depth;
    bool has_key; /* the next event is the value of the key at the path's end */
    size_t key_line;
    char path[PATH];
    size_t length; /* of path */
} reader;

static bool __attribute__((format(printf, 3, 4))) wrong(reader *r, size_t line, const char *format, ...)
{
    va_list args;
    int used = snprintf(r->why, CLI_YAML_WHY, "%s:%zu: ", r->file, line);
    va_start(args, format);
    if (used < CLI_YAML_WHY)
        vsnprintf(r->why + used, (size_t)(CLI_YAML_WHY - used), format, args);
    va_end(args);
    cli_clean(r->why);
    return false;
}

static bool add(reader *r, cli_yaml_kind kind, const yaml_event_t *scalar, size_t line)
{
    cli_yaml *yaml = r->yaml;
    if (yaml->count == MOST_ENTRIES)
        return wrong(r, line, "more than %d values", MOST_ENTRIES);
    if (yaml->count == yaml->capacity) {
        size_t capacity = yaml->capacity ? 2 * yaml->capacity : 64;
        cli_yaml_entry *entries = realloc(yaml->entries, capacity * sizeof *entries);
        if (!entries)
            return wrong(r, line, "out of memory");
        yaml->entries = entries;
        yaml->capacity = capacity;
    }
    cli_yaml_entry entry = {.kind = kind, .path = strndup(r->path, r->length), .line = line};
    if (scalar) {
        entry.value = strdup((const char *)scalar->data.scalar.value);
        entry.quoted = scalar->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    }
    yaml->entries[yaml->count++] = entry;
    return entry.path && (entry.value || !scalar) ? true : wrong(r, line, "out of memory");
}

static bool take_key(reader *r, const yaml_event_t *event, size_t line)
{
    const char *key = (const char *)event->data.scalar.value;
    size_t begin = r->length + (r->length > 0), length = event->data.scalar.length;
    if (!length)
        return wrong(r, line, "a key is empty");
    if (begin + length >= PATH)
        return wrong(r, line, "the key %.20s... is too long", key);
    if (r->length)
        r->path[r->length] = '/';
    memcpy(r->path + begin, key, length + 1);
    r->length = begin + length;
    const cli_yaml_entry *other = cli_yaml_find(r->yaml, r->path);
    if (other)
        return wrong(r, line, "'%s' is given twice; the first time in line %zu", key, other->line);
    r->has_key = true;
    r->key_line = line;
    return true;
}

/* A value is complete: the path goes back to that of its container. */
static void leave(reader *r)
{
    r->has_key = false;
    if (r->depth && !r->levels[r->depth - 1].list)
        r->length = r->levels[r->depth - 1].length;
}

static bool take_scalar(reader *r, const yaml_event_t *event, size_t line)
{
    if (strlen((const char *)event->data.scalar.value) != event->data.scalar.length)
        return wrong(r, line, "a text with a NUL in it");
    if (!r->depth)
        return wrong(r, line, "not settings: lines such as 'rank: 8' are needed");
    bool item = r->levels[r->depth - 1].list;
    if (!item && !r->has_key)
        return take_key(r, event, line);
    if (!add(r, item ? CLI_YAML_ITEM : CLI_YAML_VALUE, event, item ? line : r->key_line))
        return false;
    leave(r);
    return true;
}

static bool enter(reader *r, bool list, size_t line)
{
    if (r->depth == DEPTH)
        return wrong(r, line, "nested too deeply");
    if (r->depth ? r->levels[r->depth - 1].list : list)
        return wrong(r, line, r->depth ? "a list holds plain values only" : "not settings: a list");
    if (r->depth && !r->has_key)
        return wrong(r, line, "a key must be a plain word");
    if (r->depth && !add(r, list ? CLI_YAML_LIST : CLI_YAML_MAP, NULL, r->key_line))
        return false;
    r->levels[r->depth++] = (struct level){list, r->length};
    r->has_key = false;
    return true;
}

static bool take(reader *r, const yaml_event_t *event, bool *done)
{
    size_t line = event->start_mark.line + 1;
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return take_scalar(r, event, line);
    case YAML_MAPPING_START_EVENT:
    case YAML_SEQUENCE_START_EVENT:
        return enter(r, event->type == YAML_SEQUENCE_START_EVENT, line);
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT:
        r->depth--;
        leave(r);
        return true;
    case YAML_ALIAS_EVENT:
        return wrong(r, line, "aliases (*name) are not taken here: write the value out");
    case YAML_DOCUMENT_START_EVENT:
        return r->yaml->count ? wrong(r, line, "a second document begins here; one is taken") : true;
    case YAML_STREAM_END_EVENT:
        *done = true;
        return true;
    default:
        return true;
    }
}

static bool read_events(reader *r)
{
    for (bool done = false; !done;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&r->parser, &event))
            return wrong(r, r->parser.problem_mark.line + 1, "not YAML: %s%s%s",
                         r->parser.problem ? r->parser.problem : "out of memory", r->parser.context ? ", " : "",
                         r->parser.context ? r->parser.context : "");
        bool taken = take(r, &event, &done);
        yaml_event_delete(&event);
        if (!taken)
            return false;
    }
    return true;
}

int cli_yaml_read(cli_yaml *yaml, const char *path, char why[CLI_YAML_WHY])
{
    int status = CLI_USAGE;
    reader *r = calloc(1, sizeof *r);
    unsigned char *text = malloc(MOST_BYTES);
    FILE *file = fopen(path, "re");
    *yaml = (cli_yaml){0};
    snprintf(why, CLI_YAML_WHY, "%s: cannot read it (%m)", path);
    size_t length = file && text ? fread(text, 1, MOST_BYTES, file) : 0;
    if (!file || !text || !r || ferror(file)) {
        status = CLI_FAILED;
    } else if (length == MOST_BYTES) {
        snprintf(why, CLI_YAML_WHY, "%s: larger than settings are (%d bytes)", path, MOST_BYTES);
    } else if (yaml_parser_initialize(&r->parser)) {
        r->yaml = yaml;
        r->file = path;
        r->why = why;
        yaml_parser_set_input_string(&r->parser, text, length);
        status = read_events(r) ? CLI_OK : CLI_USAGE;
        yaml_parser_delete(&r->parser);
    }
    if (file)
        fclose(file);
    free(text);
    free(r);
    return status;
}

void cli_yaml_free(cli_yaml *yaml)
{
    for (size_t i = 0; i < yaml->count; i++) {
        free(yaml->entries[i].path);
        free(yaml->entries[i].value);
    }
    free(yaml->entries);
    *yaml = (cli_yaml){0};
}

const cli_yaml_entry *cli_yaml_find(const cli_yaml *yaml, const char *path)
{
    for (size_t i = 0; i < yaml->count; i++)
        if (yaml->entries[i].kind != CLI_YAML_ITEM && strcmp(yaml->entries[i].path, path) == 0)
            return &yaml->entries[i];
    return NULL;
}
