/* The structure of a GGUF file: counts, metadata, tensor infos, padding, data. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"
#include "io/gguf.h"
#include "io/gguf_file.h"
#include "io/safetensors.h"

#define MAX_NAME 65535
#define MAX_DIMS 4
#define MIN_VALUE_BYTES (8 + 4 + 1)    /* an empty key, its type, a byte */
#define MIN_INFO_BYTES (8 + 4 + 4 + 8) /* an empty name, no dimensions, type, offset */

/* Tensor types by their number in the file; elements and bytes of a block. */
static const struct {
    const char *name;
    uint16_t elements, bytes;
} tensor_types[] = {
    [0] = {"F32", 1, 4},         [1] = {"F16", 1, 2},         [2] = {"Q4_0", 32, 18},      [3] = {"Q4_1", 32, 20},
    [6] = {"Q5_0", 32, 22},      [7] = {"Q5_1", 32, 24},      [8] = {"Q8_0", 32, 34},      [9] = {"Q8_1", 32, 36},
    [10] = {"Q2_K", 256, 84},    [11] = {"Q3_K", 256, 110},   [12] = {"Q4_K", 256, 144},   [13] = {"Q5_K", 256, 176},
    [14] = {"Q6_K", 256, 210},   [15] = {"Q8_K", 256, 292},   [16] = {"IQ2_XXS", 256, 66}, [17] = {"IQ2_XS", 256, 74},
    [18] = {"IQ3_XXS", 256, 98}, [19] = {"IQ1_S", 256, 50},   [20] = {"IQ4_NL", 32, 18},   [21] = {"IQ3_S", 256, 110},
    [22] = {"IQ2_S", 256, 82},   [23] = {"IQ4_XS", 256, 136}, [24] = {"I8", 1, 1},         [25] = {"I16", 1, 2},
    [26] = {"I32", 1, 4},        [27] = {"I64", 1, 8},        [28] = {"F64", 1, 8},        [29] = {"IQ1_M", 256, 56},
    [30] = {"BF16", 1, 2},       [34] = {"TQ1_0", 256, 54},   [35] = {"TQ2_0", 256, 66},   [39] = {"MXFP4", 32, 17},
};

int ql_gguf_tensor_type(const char *name, size_t *elements, size_t *bytes)
{
    for (size_t i = 0; i < sizeof tensor_types / sizeof *tensor_types; i++) {
        if (!tensor_types[i].name || strcmp(tensor_types[i].name, name) != 0)
            continue;
        *elements = tensor_types[i].elements;
        *bytes = tensor_types[i].bytes;
        return (int)i;
    }
    return -1;
}

typedef struct reader {
    const char *path;
    const unsigned char *data;
    size_t size, at;
    ql_error *err;
} reader;

static ql_status too_short(const reader *r, const char *what)
{
    return ql_fail(r->err, QL_ERR_FORMAT, "%s: the file ends at byte %zu, inside of %s that starts at byte %zu",
                   r->path, r->size, what, r->at);
}

static ql_status take_u32(reader *r, uint32_t *out, const char *what)
{
    if (r->size - r->at < 4)
        return too_short(r, what);
    *out = (uint32_t)ql_gguf_load(r->data + r->at, 4);
    r->at += 4;
    return QL_OK;
}

static ql_status take_u64(reader *r, uint64_t *out, const char *what)
{
    if (r->size - r->at < 8)
        return too_short(r, what);
    *out = ql_gguf_load(r->data + r->at, 8);
    r->at += 8;
    return QL_OK;
}

static ql_status skip(reader *r, uint64_t bytes, const char *what)
{
    if (bytes > r->size - r->at)
        return too_short(r, what);
    r->at += (size_t)bytes;
    return QL_OK;
}

static ql_status skip_string(reader *r, const char *what)
{
    uint64_t length = 0;
    ql_status status = take_u64(r, &length, what);
    return status == QL_OK ? skip(r, length, what) : status;
}

/* A key or the name of a tensor, as a C string of its own. */
static ql_status take_name(reader *r, char **out, const char *what)
{
    uint64_t length = 0;
    size_t start = r->at;
    ql_status status = take_u64(r, &length, what);
    if (status == QL_OK && length > MAX_NAME)
        return ql_fail(r->err, QL_ERR_FORMAT, "%s: %s at byte %zu has %ju bytes, the most are %d", r->path, what, start,
                       (uintmax_t)length, MAX_NAME);
    const char *text = (const char *)r->data + r->at;
    if (status == QL_OK)
        status = skip(r, length, what);
    if (status != QL_OK)
        return status;
    *out = strndup(text, (size_t)length);
    if (!*out)
        return ql_fail(r->err, QL_ERR_MEMORY, "%s: out of memory", r->path);
    bool good = strlen(*out) == length && length > 0;
    for (size_t i = 0, step; good && i < length; i += step) {
        step = ql_utf8_length(*out + i);
        good = step > 0;
    }
    return good
               ? QL_OK
               : ql_fail(r->err, QL_ERR_FORMAT, "%s: %s at byte %zu is empty or not valid UTF-8", r->path, what, start);
}

static ql_status take_type(reader *r, const char *key, ql_gguf_type *out)
{
    uint32_t type = 0;
    ql_status status = take_u32(r, &type, "the type of a metadata value");
    if (status == QL_OK && type >= QL_GGUF_TYPES)
        return ql_fail(r->err, QL_ERR_FORMAT, "%s: metadata %.200s has the unknown type %u", r->path, key, type);
    *out = (ql_gguf_type)type;
    return status;
}

static ql_status check_bools(const reader *r, const ql_gguf_value *value)
{
    for (size_t i = 0; i < value->count; i++)
        if (value->data[i] > 1)
            return ql_fail(r->err, QL_ERR_FORMAT, "%s: metadata %.200s: %u is neither true nor false", r->path,
                           value->key, value->data[i]);
    return QL_OK;
}

/* Walks over `count` elements at the reader's place. */
static ql_status take_elements(reader *r, ql_gguf_value *value, ql_gguf_type type, uint64_t count)
{
    size_t width = ql_gguf_width(type), least = type == QL_GGUF_STRING ? 8 : width;
    value->data = r->data + r->at;
    if (count > (r->size - r->at) / least)
        return too_short(r, value->key);
    value->count = (size_t)count;
    if (type == QL_GGUF_STRING) {
        ql_status status = QL_OK;
        for (size_t i = 0; i < value->count && status == QL_OK; i++)
            status = skip_string(r, value->key);
        return status;
    }
    r->at += value->count * width;
    return type == QL_GGUF_BOOL ? check_bools(r, value) : QL_OK;
}

static ql_status take_value(reader *r, ql_gguf_value *value)
{
    ql_status status = take_name(r, &value->key, "a metadata key");
    if (status == QL_OK)
        status = take_type(r, value->key, &value->type);
    if (status != QL_OK || value->type != QL_GGUF_ARRAY)
        return status == QL_OK ? take_elements(r, value, value->type, 1) : status;
    uint64_t count = 0;
    status = take_type(r, value->key, &value->element);
    if (status == QL_OK && value->element == QL_GGUF_ARRAY)
        return ql_fail(r->err, QL_ERR_UNSUPPORTED, "%s: metadata %.200s is an array of arrays", r->path, value->key);
    if (status == QL_OK)
        status = take_u64(r, &count, value->key);
    return status == QL_OK ? take_elements(r, value, value->element, count) : status;
}

static int by_key(const void *left, const void *right)
{
    const ql_gguf_value *a = left, *b = right;
    return strcmp(a->key, b->key);
}

static ql_status take_metadata(reader *r, ql_gguf *gguf, uint64_t count)
{
    if (count > (r->size - r->at) / MIN_VALUE_BYTES)
        return ql_fail(r->err, QL_ERR_FORMAT, "%s: %ju metadata values do not fit into %zu bytes", r->path,
                       (uintmax_t)count, r->size);
    gguf->values = calloc((size_t)count + 1, sizeof *gguf->values);
    if (!gguf->values)
        return ql_fail(r->err, QL_ERR_MEMORY, "%s: out of memory", r->path);
    while (gguf->count < count) {
        ql_status status = take_value(r, &gguf->values[gguf->count++]);
        if (status != QL_OK)
            return status;
    }
    qsort(gguf->values, gguf->count, sizeof *gguf->values, by_key);
    for (size_t i = 1; i < gguf->count; i++)
        if (strcmp(gguf->values[i - 1].key, gguf->values[i].key) == 0)
            return ql_fail(r->err, QL_ERR_FORMAT, "%s: metadata %.200s is given twice", r->path, gguf->values[i].key);
    return QL_OK;
}

static ql_status set_type(const reader *r, ql_tensor *tensor, uint32_t type)
{
    const size_t known = sizeof tensor_types / sizeof *tensor_types;
    if (type >= known || !tensor_types[type].name)
        return ql_fail(r->err, QL_ERR_UNSUPPORTED, "%s: tensor %.200s has the unknown type number %u", r->path,
                       tensor->name, type);
    tensor->dtype_name = tensor_types[type].name;
    tensor->foreign = true;
    for (ql_dtype native = QL_F32; native <= QL_U32 && tensor->foreign; native++) {
        if (strcmp(ql_dtype_name(native), tensor->dtype_name) == 0) {
            tensor->dtype = native;
            tensor->foreign = false;
        }
    }
    size_t elements, block = tensor_types[type].elements;
    if (!ql_shape_elements(tensor->shape, tensor->ndim, &elements) ||
        __builtin_mul_overflow(elements / block, (size_t)tensor_types[type].bytes, &tensor->bytes))
        return ql_fail(r->err, QL_ERR_FORMAT, "%s: tensor %.200s: the size of its shape overflows", r->path,
                       tensor->name);
    size_t row = tensor->ndim ? tensor->shape[tensor->ndim - 1] : 1;
    if (row % block)
        return ql_fail(r->err, QL_ERR_FORMAT, "%s: tensor %.200s: rows of %zu are not whole %s blocks of %zu", r->path,
                       tensor->name, row, tensor->dtype_name, block);
    return QL_OK;
}

/* Leaves the offset in the data where the pointer will be. */
static ql_status take_info(reader *r, ql_tensor *tensor, size_t alignment, uint64_t *offset)
{
    uint32_t dims = 0, type = 0;
    char *name = NULL;
    tensor->file = r->path;
    ql_status status = take_name(r, &name, "the name of a tensor");
    tensor->name = name;
    if (status == QL_OK)
        status = take_u32(r, &dims, name);
    if (status != QL_OK)
        return status;
    if (dims > MAX_DIMS)
        return ql_fail(r->err, QL_ERR_FORMAT, "%s: tensor %.200s has %u dimensions, the most are %d", r->path, name,
                       dims, MAX_DIMS);
    tensor->ndim = dims;
    for (size_t i = dims; i-- > 0 && status == QL_OK;) {
        uint64_t length = 0;
        status = take_u64(r, &length, name);
        if (status == QL_OK && length > INT64_MAX)
            return ql_fail(r->err, QL_ERR_FORMAT, "%s: tensor %.200s: a dimension of %ju", r->path, name,
                           (uintmax_t)length);
        if (status == QL_OK)
            tensor->shape[i] = (size_t)length;
    }
    if (status == QL_OK)
        status = take_u32(r, &type, name);
    if (status == QL_OK)
        status = set_type(r, tensor, type);
    if (status == QL_OK)
        status = take_u64(r, offset, name);
    if (status == QL_OK && *offset % alignment)
        return ql_fail(r->err, QL_ERR_FORMAT, "%s: tensor %.200s: offset %ju is not a multiple of %zu", r->path, name,
                       (uintmax_t)*offset, alignment);
    return status;
}

static int by_place(const void *left, const void *right)
{
    const ql_tensor *a = left, *b = right;
    uintptr_t first = (uintptr_t)a->data, second = (uintptr_t)b->data;
    if (first != second)
        return first < second ? -1 : 1;
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes;
}

static ql_status check_overlaps(const reader *r, ql_tensor *tensors, size_t count)
{
    if (count > 1)
        qsort(tensors, count, sizeof *tensors, by_place);
    for (size_t i = 1; i < count; i++)
        if ((uintptr_t)tensors[i - 1].data + tensors[i - 1].bytes > (uintptr_t)tensors[i].data)
            return ql_fail(r->err, QL_ERR_FORMAT, "%s: tensors %.200s and %.200s overlap", r->path, tensors[i - 1].name,
                           tensors[i].name);
    for (size_t i = 0; i < count; i++)
        if (tensors[i].bytes == 0)
            tensors[i].data = NULL;
    return QL_OK;
}

static ql_status place_tensors(reader *r, ql_tensor *tensors, const uint64_t *offsets, size_t count, size_t alignment)
{
    size_t padding = -r->at % alignment, size = 0;
    const unsigned char *start = r->data + r->at;
    if (padding <= r->size - r->at) {
        start += padding;
        size = r->size - r->at - padding;
    }
    for (size_t i = 0; i < count; i++) {
        if (offsets[i] > size || tensors[i].bytes > size - offsets[i])
            return ql_fail(
                r->err, QL_ERR_FORMAT,
                "%s: tensor %.200s: %zu bytes at offset %ju lie outside of the %zu bytes of data (is the file "
                "complete?)",
                r->path, tensors[i].name, tensors[i].bytes, (uintmax_t)offsets[i], size);
        tensors[i].data = start + offsets[i];
    }
    return check_overlaps(r, tensors, count);
}

static ql_status take_tensors(reader *r, ql_tensor **tensors, size_t *count, uint64_t wanted, size_t alignment)
{
    if (wanted > (r->size - r->at) / MIN_INFO_BYTES)
        return ql_fail(r->err, QL_ERR_FORMAT, "%s: %ju tensors do not fit into %zu bytes", r->path, (uintmax_t)wanted,
                       r->size);
    uint64_t *offsets = calloc((size_t)wanted + 1, sizeof *offsets);
    *tensors = calloc((size_t)wanted + 1, sizeof **tensors);
    ql_status status = QL_OK;
    if (!offsets || !*tensors)
        status = ql_fail(r->err, QL_ERR_MEMORY, "%s: out of memory for %ju tensors", r->path, (uintmax_t)wanted);
    while (status == QL_OK && *count < wanted) {
        size_t i = (*count)++;
        status = take_info(r, &(*tensors)[i], alignment, &offsets[i]);
    }
    if (status == QL_OK)
        status = place_tensors(r, *tensors, offsets, *count, alignment);
    free(offsets);
    return status;
}

static ql_status find_alignment(const ql_gguf *gguf, size_t *alignment, ql_error *err)
{
    int64_t value = 32, parts = 1;
    ql_status status = QL_OK;
    if (ql_gguf_find(gguf, "split.count"))
        status = ql_gguf_get_int(gguf, "split.count", 0, INT64_MAX, &parts, err);
    if (status == QL_OK && parts > 1)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: one of %lld parts of a model: join them into one file", gguf->path,
                       (long long)parts);
    if (status == QL_OK && ql_gguf_find(gguf, "general.alignment"))
        status = ql_gguf_get_int(gguf, "general.alignment", 1, 1 << 20, &value, err);
    if (status == QL_OK && (value & (value - 1)))
        return ql_fail(err, QL_ERR_FORMAT, "%s: general.alignment: %lld is not a power of two", gguf->path,
                       (long long)value);
    *alignment = (size_t)value;
    return status;
}

static ql_status read_file(reader *r, ql_gguf *gguf, ql_tensor **tensors, size_t *count)
{
    uint32_t magic = 0, version = 0;
    uint64_t tensor_count = 0, value_count = 0;
    size_t alignment = 0;
    ql_status status = take_u32(r, &magic, "the magic number");
    if (status == QL_OK)
        status = take_u32(r, &version, "the version");
    if (status == QL_OK && version != 2 && version != 3)
        return ql_fail(r->err, QL_ERR_UNSUPPORTED, "%s: GGUF version %u (2 and 3 are supported, little-endian)",
                       r->path, version);
    if (status == QL_OK)
        status = take_u64(r, &tensor_count, "the number of tensors");
    if (status == QL_OK)
        status = take_u64(r, &value_count, "the number of metadata values");
    if (status == QL_OK)
        status = take_metadata(r, gguf, value_count);
    if (status == QL_OK)
        status = find_alignment(gguf, &alignment, r->err);
    return status == QL_OK ? take_tensors(r, tensors, count, tensor_count, alignment) : status;
}

ql_status ql_gguf_open(ql_gguf **out, ql_tensor **tensors, size_t *count, const char *path, const ql_map *map,
                       ql_error *err)
{
    reader r = {.path = path, .data = map->data, .size = map->size, .err = err};
    *tensors = NULL;
    *count = 0;
    *out = calloc(1, sizeof **out);
    if (!*out)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    (*out)->path = path;
    return read_file(&r, *out, tensors, count);
}

void ql_gguf_close(ql_gguf *gguf, ql_tensor *tensors, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free((char *)tensors[i].name);
    free(tensors);
    for (size_t i = 0; i < gguf->count; i++)
        free(gguf->values[i].key);
    free(gguf->values);
    free(gguf);
}
