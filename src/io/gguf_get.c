/* Typed access to the metadata of a GGUF file. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/gguf_file.h"

static const struct {
    const char *name;
    size_t width;
} types[] = {
    [QL_GGUF_U8] = {"u8", 1},          [QL_GGUF_I8] = {"i8", 1},     [QL_GGUF_U16] = {"u16", 2},
    [QL_GGUF_I16] = {"i16", 2},        [QL_GGUF_U32] = {"u32", 4},   [QL_GGUF_I32] = {"i32", 4},
    [QL_GGUF_F32] = {"f32", 4},        [QL_GGUF_BOOL] = {"bool", 1}, [QL_GGUF_STRING] = {"a string", 0},
    [QL_GGUF_ARRAY] = {"an array", 0}, [QL_GGUF_U64] = {"u64", 8},   [QL_GGUF_I64] = {"i64", 8},
    [QL_GGUF_F64] = {"f64", 8},
};

size_t ql_gguf_width(ql_gguf_type type)
{
    return types[type].width;
}

size_t ql_gguf_count(const ql_gguf *gguf)
{
    return gguf->count;
}

const ql_gguf_value *ql_gguf_at(const ql_gguf *gguf, size_t index)
{
    return index < gguf->count ? &gguf->values[index] : NULL;
}

static int compare_key(const void *key, const void *value)
{
    return strcmp(key, ((const ql_gguf_value *)value)->key);
}

const ql_gguf_value *ql_gguf_find(const ql_gguf *gguf, const char *key)
{
    return bsearch(key, gguf->values, gguf->count, sizeof *gguf->values, compare_key);
}

static ql_status refuse(const ql_gguf *gguf, const char *key, const char *expected, ql_error *err)
{
    const ql_gguf_value *value = ql_gguf_find(gguf, key);
    if (!value)
        return ql_fail(err, QL_ERR_FORMAT, "%s: metadata %s is missing (%s is expected)", gguf->path, key, expected);
    return ql_fail(err, QL_ERR_FORMAT, "%s: metadata %s: expected %s, got %s%s", gguf->path, key, expected,
                   types[value->type].name, value->type == QL_GGUF_ARRAY ? " of another type" : "");
}

static bool is_float(ql_gguf_type type)
{
    return type == QL_GGUF_F32 || type == QL_GGUF_F64;
}

static bool is_integer(ql_gguf_type type)
{
    return types[type].width > 0 && !is_float(type) && type != QL_GGUF_BOOL;
}

static bool is_signed(ql_gguf_type type)
{
    return type == QL_GGUF_I8 || type == QL_GGUF_I16 || type == QL_GGUF_I32 || type == QL_GGUF_I64;
}

/* The bits of an integer, the sign carried to all 64. */
static uint64_t load_integer(const unsigned char *data, ql_gguf_type type)
{
    size_t width = types[type].width;
    uint64_t bits = ql_gguf_load(data, width), sign = UINT64_C(1) << (8 * width - 1);
    return is_signed(type) ? (bits ^ sign) - sign : bits;
}

static double load_double(const unsigned char *data, ql_gguf_type type)
{
    float single;
    double value;
    if (type == QL_GGUF_F32) {
        memcpy(&single, data, sizeof single);
        return single;
    }
    if (type == QL_GGUF_F64) {
        memcpy(&value, data, sizeof value);
        return value;
    }
    uint64_t bits = load_integer(data, type);
    return is_signed(type) ? (double)(int64_t)bits : (double)bits;
}

ql_status ql_gguf_get_int(const ql_gguf *gguf, const char *key, int64_t min, int64_t max, int64_t *out, ql_error *err)
{
    const ql_gguf_value *value = ql_gguf_find(gguf, key);
    if (!value || !is_integer(value->type))
        return refuse(gguf, key, "an integer", err);
    uint64_t bits = load_integer(value->data, value->type);
    int64_t integer = (int64_t)bits;
    if ((!is_signed(value->type) && bits > INT64_MAX) || integer < min || integer > max)
        return ql_fail(err, QL_ERR_FORMAT, "%s: metadata %s: expected an integer from %lld to %lld, got %.17g",
                       gguf->path, key, (long long)min, (long long)max, load_double(value->data, value->type));
    *out = integer;
    return QL_OK;
}

ql_status ql_gguf_get_double(const ql_gguf *gguf, const char *key, double min, double max, double *out, ql_error *err)
{
    const ql_gguf_value *value = ql_gguf_find(gguf, key);
    if (!value || (!is_integer(value->type) && !is_float(value->type)))
        return refuse(gguf, key, "a number", err);
    double number = load_double(value->data, value->type);
    if (!(number >= min && number <= max))
        return ql_fail(err, QL_ERR_FORMAT, "%s: metadata %s: expected a number from %g to %g, got %g", gguf->path, key,
                       min, max, number);
    *out = number;
    return QL_OK;
}

ql_status ql_gguf_get_bool(const ql_gguf *gguf, const char *key, bool *out, ql_error *err)
{
    const ql_gguf_value *value = ql_gguf_find(gguf, key);
    if (!value || value->type != QL_GGUF_BOOL)
        return refuse(gguf, key, "a bool", err);
    *out = value->data[0];
    return QL_OK;
}

ql_status ql_gguf_get_string(const ql_gguf *gguf, const char *key, const char **text, size_t *length, ql_error *err)
{
    const ql_gguf_value *value = ql_gguf_find(gguf, key);
    if (!value || value->type != QL_GGUF_STRING)
        return refuse(gguf, key, "a string", err);
    size_t at = 0;
    *text = ql_gguf_next_string(value, &at, length);
    return QL_OK;
}

ql_status ql_gguf_get_strings(const ql_gguf *gguf, const char *key, const ql_gguf_value **out, ql_error *err)
{
    *out = ql_gguf_find(gguf, key);
    if (*out && (*out)->type == QL_GGUF_ARRAY && (*out)->element == QL_GGUF_STRING)
        return QL_OK;
    *out = NULL;
    return refuse(gguf, key, "an array of strings", err);
}

ql_status ql_gguf_get_numbers(const ql_gguf *gguf, const char *key, const ql_gguf_value **out, ql_error *err)
{
    *out = ql_gguf_find(gguf, key);
    if (*out && (*out)->type == QL_GGUF_ARRAY && (is_integer((*out)->element) || is_float((*out)->element)))
        return QL_OK;
    *out = NULL;
    return refuse(gguf, key, "an array of numbers", err);
}

const char *ql_gguf_next_string(const ql_gguf_value *value, size_t *at, size_t *length)
{
    *length = (size_t)ql_gguf_load(value->data + *at, 8);
    const char *text = (const char *)value->data + *at + 8;
    *at += 8 + *length;
    return text;
}

double ql_gguf_number_at(const ql_gguf_value *value, size_t index)
{
    assert(value->type == QL_GGUF_ARRAY && index < value->count);
    return load_double(value->data + index * types[value->element].width, value->element);
}
