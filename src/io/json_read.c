#include "io/json.h"

#include <string.h>

#include "base/error.h"

static const unsigned char byte_order_mark[3] = {0xef, 0xbb, 0xbf};

static size_t mark_length(const void *text, size_t length)
{
    size_t mark = sizeof byte_order_mark;
    return length >= mark && memcmp(text, byte_order_mark, mark) == 0 ? mark : 0;
}

static bool is_blank(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (text[i] != ' ' && text[i] != '\t' && text[i] != '\r' && text[i] != '\n')
            return false;
    return true;
}

/* Tokenizer configurations say "model_max_length": 1e30 in full digits, so that integers beyond 64 bits must
 * not spoil a file: it is read again with all integers as reals. */
static json_t *load(const char *text, size_t length, json_error_t *error)
{
    size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL;
    json_t *value = json_loadb(text, length, flags, error);
    if (!value && json_error_code(error) == json_error_numeric_overflow)
        value = json_loadb(text, length, flags | JSON_DECODE_INT_AS_REAL, error);
    return value;
}

/* line: of a JSON lines file; 0 for a whole file, whose lines the parser has counted. */
static ql_status refuse(const char *name, size_t line, const json_error_t *error, ql_error *err)
{
    if (json_error_code(error) == json_error_out_of_memory)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory while reading JSON", name);
    const char *what = json_error_code(error) == json_error_invalid_utf8 ? "invalid UTF-8: " : "";
    return ql_fail(err, QL_ERR_FORMAT, "%s:%zu:%d: %s%s", name, line ? line : (size_t)error->line, error->column, what,
                   error->text);
}

ql_status ql_json_parse(json_t **out, const char *name, const void *text, size_t length, ql_error *err)
{
    size_t mark = mark_length(text, length);
    const char *start = (const char *)text + mark;
    *out = NULL;
    if (is_blank(start, length - mark))
        return ql_fail(err, QL_ERR_FORMAT, "%s: the file is empty, JSON is expected", name);
    json_error_t error;
    *out = load(start, length - mark, &error);
    return *out ? QL_OK : refuse(name, 0, &error, err);
}

ql_status ql_json_read(json_t **out, const char *path, ql_error *err)
{
    ql_map map;
    *out = NULL;
    ql_status status = ql_map_open(&map, path, err);
    if (status == QL_OK)
        status = ql_json_parse(out, path, map.data, map.size, err);
    ql_map_close(&map);
    return status;
}

ql_status ql_jsonl_open(ql_jsonl *lines, const char *path, ql_error *err)
{
    *lines = (ql_jsonl){.path = path};
    ql_status status = ql_map_open(&lines->map, path, err);
    lines->at = mark_length(lines->map.data, lines->map.size);
    return status;
}

ql_status ql_jsonl_next(ql_jsonl *lines, json_t **out, ql_error *err)
{
    *out = NULL;
    while (lines->at < lines->map.size) {
        const char *start = (const char *)lines->map.data + lines->at;
        size_t left = lines->map.size - lines->at;
        const char *newline = memchr(start, '\n', left);
        size_t length = newline ? (size_t)(newline - start) : left;
        lines->at += length + (newline != NULL);
        lines->line++;
        if (is_blank(start, length))
            continue;
        json_error_t error;
        *out = load(start, length, &error);
        return *out ? QL_OK : refuse(lines->path, lines->line, &error, err);
    }
    return QL_OK;
}

void ql_jsonl_close(ql_jsonl *lines)
{
    ql_map_close(&lines->map);
    *lines = (ql_jsonl){0};
}
