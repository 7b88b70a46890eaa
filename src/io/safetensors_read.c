/* The header of a safetensors file: 8 bytes of length (little-endian), a JSON object, then the data. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/json.h"
#include "io/safetensors.h"

#define PREFIX 8
#define MAX_HEADER 100000000 /* as in the reference implementation */

/* Types of the format that ql_dtype does not have. */
static const struct {
    const char *name;
    size_t bits;
} foreign_types[] = {
    {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F8_E5M2", 8},     {"F8_E4M3", 8},     {"F8_E8M0", 8},
    {"I16", 16}, {"U16", 16},    {"U64", 64},    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"C64", 64},
};

bool ql_shape_elements(const size_t *shape, size_t ndim, size_t *elements)
{
    *elements = 1;
    for (size_t i = 0; i < ndim; i++)
        if (__builtin_mul_overflow(*elements, shape[i], elements))
            return false;
    return true;
}

/* Bits an element; 0 for a name that the format does not list, whose size nobody can check. */
static size_t find_type(ql_tensor *tensor)
{
    for (ql_dtype type = QL_F32; type <= QL_U32; type++) {
        if (strcmp(tensor->dtype_name, ql_dtype_name(type)) == 0) {
            tensor->dtype = type;
            return ql_dtype_size(type) * 8;
        }
    }
    tensor->foreign = true;
    for (size_t i = 0; i < sizeof foreign_types / sizeof *foreign_types; i++)
        if (strcmp(tensor->dtype_name, foreign_types[i].name) == 0)
            return foreign_types[i].bits;
    return 0;
}

static ql_status read_shape(ql_tensor *tensor, const ql_json_at *entry, ql_error *err)
{
    ql_json_at shape;
    ql_status status = ql_json_get_array(entry, "shape", QL_REQUIRED, &shape, err);
    if (status != QL_OK)
        return status;
    tensor->ndim = json_array_size(shape.value);
    if (tensor->ndim > QL_TENSOR_DIMS)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %.200s has %zu dimensions, the most are %d", entry->file,
                       tensor->name, tensor->ndim, QL_TENSOR_DIMS);
    for (size_t i = 0; i < tensor->ndim && status == QL_OK; i++)
        status = ql_json_get_size_at(&shape, i, 0, INT64_MAX, &tensor->shape[i], err);
    return status;
}

static ql_status check_bytes(const ql_tensor *tensor, size_t bits, ql_error *err)
{
    size_t elements, total;
    if (!ql_shape_elements(tensor->shape, tensor->ndim, &elements) || __builtin_mul_overflow(elements, bits, &total))
        return ql_fail(err, QL_ERR_FORMAT, "%s: tensor %.200s: the size of its shape overflows", tensor->file,
                       tensor->name);
    if (bits > 0 && (total % 8 || total / 8 != tensor->bytes))
        return ql_fail(
            err, QL_ERR_FORMAT, "%s: tensor %.200s: %zu elements of type %s need %zu bytes, its data_offsets span %zu",
            tensor->file, tensor->name, elements, tensor->dtype_name, total / 8 + (total % 8 > 0), tensor->bytes);
    return QL_OK;
}

/* data and size: the bytes behind the header. */
static ql_status read_tensor(ql_tensor *tensor, const ql_json_at *entry, const unsigned char *data, size_t size,
                             ql_error *err)
{
    ql_status status = ql_json_get_string(entry, "dtype", QL_REQUIRED, &tensor->dtype_name, NULL, err);
    if (status == QL_OK)
        status = read_shape(tensor, entry, err);
    if (status != QL_OK)
        return status;
    size_t bits = find_type(tensor), begin, end;
    ql_json_at offsets;
    status = ql_json_get_array(entry, "data_offsets", QL_REQUIRED, &offsets, err);
    if (status == QL_OK && json_array_size(offsets.value) != 2)
        status = ql_json_expected(&offsets, "two numbers", err);
    if (status == QL_OK)
        status = ql_json_get_size_at(&offsets, 0, 0, INT64_MAX, &begin, err);
    if (status == QL_OK)
        status = ql_json_get_size_at(&offsets, 1, 0, INT64_MAX, &end, err);
    if (status != QL_OK)
        return status;
    if (begin > end || end > size)
        return ql_fail(err, QL_ERR_FORMAT,
                       "%s: tensor %.200s: data_offsets [%zu, %zu] lie outside of the %zu bytes of data (is the file "
                       "complete?)",
                       entry->file, tensor->name, begin, end, size);
    tensor->bytes = end - begin;
    tensor->data = data + begin; /* also when empty, until the tensors are sorted */
    return check_bytes(tensor, bits, err);
}

static ql_status read_metadata(const ql_json_at *metadata, ql_error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)metadata->value, key, value)
    {
        const char *text;
        ql_status status = ql_json_get_string(metadata, key, QL_REQUIRED, &text, NULL, err);
        if (status != QL_OK)
            return status;
    }
    return QL_OK;
}

static int by_place(const void *left, const void *right)
{
    const ql_tensor *a = left, *b = right;
    const char *first = a->data, *second = b->data;
    if (first != second)
        return first < second ? -1 : 1;
    if (a->bytes != b->bytes)
        return a->bytes < b->bytes ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* The format wants the data covered without overlaps and holes: what is hidden in a hole is seen by nobody. */
static ql_status check_cover(ql_shard *shard, const unsigned char *data, size_t size, ql_error *err)
{
    size_t covered = 0;
    if (shard->count > 1)
        qsort(shard->tensors, shard->count, sizeof *shard->tensors, by_place);
    for (size_t i = 0; i < shard->count; i++) {
        ql_tensor *tensor = &shard->tensors[i];
        size_t begin = (size_t)((const unsigned char *)tensor->data - data);
        if (begin < covered)
            return ql_fail(err, QL_ERR_FORMAT, "%s: tensors %.200s and %.200s overlap at byte %zu of the data",
                           shard->path, tensor[-1].name, tensor->name, begin);
        if (begin > covered)
            return ql_fail(err, QL_ERR_FORMAT, "%s: %zu bytes before tensor %.200s belong to no tensor", shard->path,
                           begin - covered, tensor->name);
        covered = begin + tensor->bytes;
        if (tensor->bytes == 0)
            tensor->data = NULL;
    }
    if (covered != size)
        return ql_fail(err, QL_ERR_FORMAT, "%s: the last %zu bytes belong to no tensor", shard->path, size - covered);
    return QL_OK;
}

static ql_status read_header(ql_shard *shard, const unsigned char *data, size_t size, ql_error *err)
{
    ql_json_at root = ql_json_root(shard->path, shard->header);
    const char *name;
    json_t *value;
    shard->tensors = calloc(json_object_size(shard->header) + 1, sizeof *shard->tensors);
    if (!shard->tensors)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", shard->path);
    json_object_foreach(shard->header, name, value)
    {
        ql_json_at entry;
        bool metadata = strcmp(name, "__metadata__") == 0;
        ql_status status = ql_json_get_object(&root, name, metadata ? QL_OPTIONAL : QL_REQUIRED, &entry, err);
        if (status == QL_OK && metadata) {
            status = read_metadata(&entry, err);
        } else if (status == QL_OK) {
            ql_tensor *tensor = &shard->tensors[shard->count++];
            *tensor = (ql_tensor){.name = name, .file = shard->path};
            status = read_tensor(tensor, &entry, data, size, err);
        }
        if (status != QL_OK)
            return status;
    }
    return check_cover(shard, data, size, err);
}

static bool starts_with(const ql_map *map, const char *start)
{
    size_t length = strlen(start);
    return map->size >= length && memcmp(map->data, start, length) == 0;
}

/* People hand in these instead of a model often enough to be told so. */
static ql_status recognize_others(const ql_shard *shard, ql_error *err)
{
    static const struct {
        const char *start, *what;
    } others[] = {
        {"PK\x03\x04", "a PyTorch archive: convert it to safetensors"},
        {"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"},
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (starts_with(&shard->map, others[i].start))
            return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: not safetensors but %s", shard->path, others[i].what);
    return QL_OK;
}

ql_status ql_shard_open(ql_shard *shard, char *path, ql_error *err)
{
    *shard = (ql_shard){.path = path};
    ql_status status = ql_map_open(&shard->map, path, err);
    if (status == QL_OK && starts_with(&shard->map, "GGUF"))
        return ql_gguf_open(&shard->gguf, &shard->tensors, &shard->count, path, &shard->map, err);
    if (status == QL_OK)
        status = recognize_others(shard, err);
    if (status != QL_OK)
        return status;
    const unsigned char *file = shard->map.data;
    size_t size = shard->map.size;
    if (size < PREFIX)
        return ql_fail(err, QL_ERR_FORMAT, "%s: %zu bytes are too few for a safetensors file", path, size);
    uint64_t length = 0;
    for (int i = PREFIX; i-- > 0;)
        length = length << 8 | file[i];
    if (length > MAX_HEADER || length > size - PREFIX)
        return ql_fail(err, QL_ERR_FORMAT, "%s: a header of %ju bytes does not fit (the file has %zu, the most are %d)",
                       path, (uintmax_t)length, size, MAX_HEADER);
    if (length == 0 || file[PREFIX] != '{')
        return ql_fail(err, QL_ERR_FORMAT, "%s: the header is not a JSON object: no safetensors file", path);
    status = ql_json_parse(&shard->header, path, file + PREFIX, (size_t)length, err);
    if (status != QL_OK)
        return ql_fail_in(err, status, "safetensors header");
    return read_header(shard, file + PREFIX + length, size - PREFIX - (size_t)length, err);
}

void ql_shard_close(ql_shard *shard)
{
    if (shard->gguf)
        ql_gguf_close(shard->gguf, shard->tensors, shard->count);
    else
        free(shard->tensors);
    json_decref(shard->header);
    ql_map_close(&shard->map);
    free(shard->path);
    *shard = (ql_shard){0};
}
