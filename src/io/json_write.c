#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/grow.h"
#include "base/utf8.h"
#include "qlora/io.h"

#define MAX_DEPTH 64

static void append(ql_json *json, const char *text, size_t length)
{
    if (json->status != QL_OK)
        return;
    if (length == SIZE_MAX || !ql_grow((void **)&json->text, &json->capacity, json->length, length + 1, 1)) {
        json->status = QL_ERR_MEMORY;
        return;
    }
    memcpy(json->text + json->length, text, length);
    json->length += length;
    json->text[json->length] = '\0';
}

/* text[bytes] is a NUL, others may be inside. */
static void append_quoted(ql_json *json, const char *text, size_t bytes)
{
    append(json, "\"", 1);
    for (const char *end = text + bytes; text < end;) {
        unsigned char c = (unsigned char)*text;
        size_t length = c ? ql_utf8_length(text) : 1;
        const char *shorthand = c ? strchr("\bb\ff\nn\rr\tt", c) : NULL;
        if (length == 0) {
            append(json, "\xef\xbf\xbd", 3);
            length = 1;
        } else if (c == '"' || c == '\\') {
            append(json, (char[]){'\\', (char)c}, 2);
        } else if (c < 0x20 && shorthand) {
            append(json, (char[]){'\\', shorthand[1]}, 2);
        } else if (c < 0x20) {
            char code[8];
            append(json, code, (size_t)snprintf(code, sizeof code, "\\u%04x", c));
        } else {
            append(json, text, length);
        }
        text += length;
    }
    append(json, "\"", 1);
}

static void new_line(ql_json *json)
{
    if (!json->pretty)
        return;
    append(json, "\n", 1);
    for (unsigned i = 0; i < json->depth; i++)
        append(json, "  ", 2);
}

static bool in_array(const ql_json *json)
{
    return json->depth > 0 && (json->arrays >> (json->depth - 1) & 1);
}

/* What stands before a value: comma, line and key. */
static void begin_value(ql_json *json, const char *key)
{
    bool wants_key = json->depth > 0 && !in_array(json);
    if (wants_key != (key != NULL) || (json->depth == 0 && json->length > 0)) {
        if (json->status == QL_OK)
            json->status = QL_ERR_ARG;
        return;
    }
    if (json->started)
        append(json, ",", 1);
    json->started = true;
    if (json->depth > 0)
        new_line(json);
    if (key) {
        append_quoted(json, key, strlen(key));
        append(json, ": ", json->pretty ? 2 : 1);
    }
}

static void open_container(ql_json *json, const char *key, bool array)
{
    begin_value(json, key);
    if (json->depth == MAX_DEPTH && json->status == QL_OK)
        json->status = QL_ERR_ARG;
    if (json->status != QL_OK)
        return;
    append(json, array ? "[" : "{", 1);
    uint64_t bit = UINT64_C(1) << json->depth;
    json->arrays = array ? json->arrays | bit : json->arrays & ~bit;
    json->depth++;
    json->started = false;
}

void ql_json_object(ql_json *json, const char *key)
{
    open_container(json, key, false);
}

void ql_json_array(ql_json *json, const char *key)
{
    open_container(json, key, true);
}

void ql_json_end(ql_json *json)
{
    if (json->depth == 0 && json->status == QL_OK)
        json->status = QL_ERR_ARG;
    if (json->status != QL_OK)
        return;
    bool array = in_array(json);
    json->depth--;
    if (json->started)
        new_line(json);
    append(json, array ? "]" : "}", 1);
    json->started = true;
}

void ql_json_string(ql_json *json, const char *key, const char *value)
{
    if (value)
        ql_json_text(json, key, value, strlen(value));
    else
        ql_json_null(json, key);
}

void ql_json_text(ql_json *json, const char *key, const char *value, size_t length)
{
    begin_value(json, key);
    append_quoted(json, value, length);
}

void ql_json_integer(ql_json *json, const char *key, int64_t value)
{
    char text[24];
    begin_value(json, key);
    append(json, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)value));
}

/* The locale's decimal point, whatever its bytes, is the only thing in a number that is not one of these. */
static size_t use_plain_point(char *text)
{
    size_t kept = strspn(text, "-+0123456789e"), rest = kept;
    if (!text[kept])
        return kept;
    rest += strcspn(text + kept, "-+0123456789e");
    text[kept++] = '.';
    memmove(text + kept, text + rest, strlen(text + rest) + 1);
    return strlen(text);
}

void ql_json_number(ql_json *json, const char *key, double value)
{
    if (!isfinite(value)) {
        ql_json_null(json, key);
        return;
    }
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    begin_value(json, key);
    append(json, text, use_plain_point(text));
}

void ql_json_bool(ql_json *json, const char *key, bool value)
{
    begin_value(json, key);
    append(json, value ? "true" : "false", value ? 4 : 5);
}

void ql_json_null(ql_json *json, const char *key)
{
    begin_value(json, key);
    append(json, "null", 4);
}

static ql_status finish(ql_json *json, const char *name, ql_error *err)
{
    if (json->status == QL_OK && (json->depth > 0 || json->length == 0))
        json->status = QL_ERR_ARG;
    append(json, "\n", 1);
    if (json->status == QL_ERR_MEMORY)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory while building JSON", name);
    if (json->status != QL_OK)
        return ql_fail(err, QL_ERR_ARG, "%s: the JSON text is not complete, or keys and values do not alternate", name);
    return QL_OK;
}

static void restart(ql_json *json)
{
    *json = (ql_json){.text = json->text, .capacity = json->capacity, .pretty = json->pretty};
}

ql_status ql_json_line(ql_json *json, FILE *file, const char *name, ql_error *err)
{
    ql_status status = finish(json, name, err);
    if (status == QL_OK && (fwrite(json->text, 1, json->length, file) != json->length || fflush(file)))
        status = ql_fail(err, QL_ERR_IO, "%s: cannot write: %m", name);
    restart(json);
    return status;
}

ql_status ql_json_write(ql_json *json, const char *path, ql_error *err)
{
    ql_status status = finish(json, path, err);
    if (status == QL_OK)
        status = ql_file_write(path, json->text, json->length, err);
    restart(json);
    return status;
}

void ql_json_free(ql_json *json)
{
    free(json->text);
    *json = (ql_json){0};
}
