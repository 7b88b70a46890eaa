#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "io/json.h"

#define EXACT_INTEGERS 9007199254740992.0 /* 2^53: reals up to here hold every integer */

ql_json_at ql_json_root(const char *file, const json_t *value)
{
    return (ql_json_at){.value = value, .file = file};
}

ql_json_at ql_jsonl_root(const ql_jsonl *lines, const json_t *value)
{
    return (ql_json_at){.value = value, .file = lines->path, .line = lines->line};
}

static ql_json_at member_at(const ql_json_at *object, const char *key)
{
    ql_json_at at = *object;
    at.value = json_object_get(object->value, key);
    snprintf(at.path, sizeof at.path, "%.80s%s%.80s", object->path, object->path[0] ? "." : "", key);
    return at;
}

ql_json_at ql_json_element(const ql_json_at *array, size_t index)
{
    ql_json_at at = *array;
    at.value = json_array_get(array->value, index);
    snprintf(at.path, sizeof at.path, "%.80s[%zu]", array->path, index);
    return at;
}

const json_t *ql_json_member(const ql_json_at *object, const char *key)
{
    return json_object_get(object->value, key);
}

static const char *describe(const json_t *value, char text[64])
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        snprintf(text, 64, json_string_length(value) > 40 ? "\"%.40s...\"" : "\"%s\"", json_string_value(value));
        return text;
    case JSON_INTEGER:
        snprintf(text, 64, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        return text;
    case JSON_REAL:
        snprintf(text, 64, "%.17g", json_real_value(value));
        return text;
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        return "null";
    }
    return "?";
}

ql_status ql_json_expected(const ql_json_at *at, const char *what, ql_error *err)
{
    char text[64], line[24] = "";
    if (at->line)
        snprintf(line, sizeof line, ":%zu", at->line);
    if (!at->value)
        return ql_fail(err, QL_ERR_FORMAT, "%s%s: %s is missing (%s is expected)", at->file, line, at->path, what);
    return ql_fail(err, QL_ERR_FORMAT, "%s%s: %s%sexpected %s, got %s", at->file, line, at->path,
                   at->path[0] ? ": " : "", what, describe(at->value, text));
}

/* Finds the member. at->value stays NULL when it may be left out and is. */
static ql_status find(ql_json_at *at, const ql_json_at *object, const char *key, ql_json_need need, const char *what,
                      ql_error *err)
{
    *at = *object;
    if (!json_is_object(object->value))
        return ql_json_expected(object, "an object", err);
    *at = member_at(object, key);
    if (need == QL_OPTIONAL && json_is_null(at->value))
        at->value = NULL;
    return need == QL_REQUIRED && !at->value ? ql_json_expected(at, what, err) : QL_OK;
}

static bool to_integer(const json_t *value, int64_t *out)
{
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
        return true;
    }
    double real = json_is_real(value) ? json_real_value(value) : 0.5;
    if (real != floor(real) || fabs(real) > EXACT_INTEGERS)
        return false;
    *out = (int64_t)real;
    return true;
}

static ql_status take_integer(const ql_json_at *at, int64_t min, int64_t max, int64_t *out, ql_error *err)
{
    int64_t value;
    if (at->value && to_integer(at->value, &value) && value >= min && value <= max) {
        *out = value;
        return QL_OK;
    }
    char what[80];
    snprintf(what, sizeof what, "an integer from %lld to %lld", (long long)min, (long long)max);
    return ql_json_expected(at, what, err);
}

ql_status ql_json_get_int(const ql_json_at *object, const char *key, ql_json_need need, int64_t min, int64_t max,
                          int64_t *out, ql_error *err)
{
    ql_json_at at;
    ql_status status = find(&at, object, key, need, "an integer", err);
    return status != QL_OK || !at.value ? status : take_integer(&at, min, max, out, err);
}

static ql_status take_size(const ql_json_at *at, size_t min, size_t max, size_t *out, ql_error *err)
{
    assert(max <= INT64_MAX);
    int64_t value = 0;
    ql_status status = take_integer(at, (int64_t)min, (int64_t)max, &value, err);
    if (status == QL_OK)
        *out = (size_t)value;
    return status;
}

ql_status ql_json_get_size(const ql_json_at *object, const char *key, ql_json_need need, size_t min, size_t max,
                           size_t *out, ql_error *err)
{
    ql_json_at at;
    ql_status status = find(&at, object, key, need, "an integer", err);
    return status != QL_OK || !at.value ? status : take_size(&at, min, max, out, err);
}

ql_status ql_json_get_size_at(const ql_json_at *array, size_t index, size_t min, size_t max, size_t *out, ql_error *err)
{
    ql_json_at at = ql_json_element(array, index);
    return take_size(&at, min, max, out, err);
}

ql_status ql_json_get_double(const ql_json_at *object, const char *key, ql_json_need need, double min, double max,
                             double *out, ql_error *err)
{
    char what[80];
    snprintf(what, sizeof what, "a number from %g to %g", min, max);
    ql_json_at at;
    ql_status status = find(&at, object, key, need, what, err);
    if (status != QL_OK || !at.value)
        return status;
    double value = json_number_value(at.value);
    if (!json_is_number(at.value) || !(value >= min && value <= max))
        return ql_json_expected(&at, what, err);
    *out = value;
    return QL_OK;
}

ql_status ql_json_get_bool(const ql_json_at *object, const char *key, ql_json_need need, bool *out, ql_error *err)
{
    ql_json_at at;
    ql_status status = find(&at, object, key, need, "true or false", err);
    if (status != QL_OK || !at.value)
        return status;
    if (!json_is_boolean(at.value))
        return ql_json_expected(&at, "true or false", err);
    *out = json_is_true(at.value);
    return QL_OK;
}

ql_status ql_json_get_string(const ql_json_at *object, const char *key, ql_json_need need, const char **out,
                             size_t *length, ql_error *err)
{
    const char *what = length ? "a string" : "a string without NUL";
    ql_json_at at;
    ql_status status = find(&at, object, key, need, what, err);
    if (status != QL_OK || !at.value)
        return status;
    const char *text = json_string_value(at.value);
    if (!text || (!length && strlen(text) != json_string_length(at.value)))
        return ql_json_expected(&at, what, err);
    *out = text;
    if (length)
        *length = json_string_length(at.value);
    return QL_OK;
}

static ql_status get_container(const ql_json_at *object, const char *key, ql_json_need need, json_type type,
                               const char *what, ql_json_at *out, ql_error *err)
{
    ql_json_at at;
    ql_status status = find(&at, object, key, need, what, err);
    if (status == QL_OK && at.value && json_typeof(at.value) != type)
        status = ql_json_expected(&at, what, err);
    *out = at;
    if (status != QL_OK)
        out->value = NULL;
    return status;
}

ql_status ql_json_get_object(const ql_json_at *object, const char *key, ql_json_need need, ql_json_at *out,
                             ql_error *err)
{
    return get_container(object, key, need, JSON_OBJECT, "an object", out, err);
}

ql_status ql_json_get_array(const ql_json_at *object, const char *key, ql_json_need need, ql_json_at *out,
                            ql_error *err)
{
    return get_container(object, key, need, JSON_ARRAY, "an array", out, err);
}
