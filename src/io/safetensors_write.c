/* Writing safetensors with the bytes of the reference implementation. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"
#include "io/output.h"
#include "io/safetensors.h"
#include "io/tensor_write.h"

/* The reference implementation sorts by its enumeration of types, widest last, and writes from the end. */
static int rank(ql_dtype type)
{
    static const ql_dtype ascending[] = {QL_BOOL, QL_U8,  QL_I8,  QL_F16, QL_BF16,
                                         QL_I32,  QL_U32, QL_F32, QL_F64, QL_I64};
    int place = 0;
    while (ascending[place] != type)
        place++;
    return place;
}

static int by_type_and_name(const void *left, const void *right)
{
    const ql_tensor *const *a = left, *const *b = right;
    int difference = rank((*b)->dtype) - rank((*a)->dtype);
    return difference ? difference : strcmp((*a)->name, (*b)->name);
}

static bool is_utf8(const char *text)
{
    size_t length = 1;
    for (; *text && length; text += length)
        length = ql_utf8_length(text);
    return length != 0;
}

static ql_status check_tensor(const char *path, const ql_tensor *tensor, bool in_memory, ql_error *err)
{
    size_t elements, bytes;
    if (!tensor->name || !is_utf8(tensor->name) || strcmp(tensor->name, "__metadata__") == 0)
        return ql_fail(err, QL_ERR_ARG, "%s: \"%.200s\" cannot be the name of a tensor", path,
                       tensor->name ? tensor->name : "");
    if (tensor->foreign || tensor->dtype > QL_U32)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %.200s has a type that cannot be written", path,
                       tensor->name);
    if (tensor->ndim > QL_TENSOR_DIMS || !ql_shape_elements(tensor->shape, tensor->ndim, &elements) ||
        __builtin_mul_overflow(elements, ql_dtype_size(tensor->dtype), &bytes))
        return ql_fail(err, QL_ERR_SHAPE, "%s: tensor %.200s has more than %d dimensions or too many elements", path,
                       tensor->name, QL_TENSOR_DIMS);
    if (in_memory && bytes > 0 && !tensor->data)
        return ql_fail(err, QL_ERR_ARG, "%s: tensor %.200s has no data", path, tensor->name);
    return QL_OK;
}

static size_t tensor_bytes(const ql_tensor *tensor)
{
    return ql_tensor_elements(tensor) * ql_dtype_size(tensor->dtype);
}

/* Leaves the tensors sorted by name. */
static ql_status check_all(const char *path, const ql_tensor **tensors, size_t count, bool in_memory, ql_error *err)
{
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        ql_status status = check_tensor(path, tensors[i], in_memory, err);
        if (status != QL_OK)
            return status;
        if (__builtin_add_overflow(total, tensor_bytes(tensors[i]), &total) || total > INT64_MAX)
            return ql_fail(err, QL_ERR_SHAPE, "%s: too many bytes for one file", path);
    }
    qsort(tensors, count, sizeof *tensors, ql_tensor_by_name);
    for (size_t i = 1; i < count; i++)
        if (strcmp(tensors[i - 1]->name, tensors[i]->name) == 0)
            return ql_fail(err, QL_ERR_ARG, "%s: tensor %.200s is given twice", path, tensors[i]->name);
    return QL_OK;
}

static ql_status check_metadata(const char *path, const ql_metadata *metadata, size_t pairs, ql_error *err)
{
    for (size_t i = 0; i < pairs; i++) {
        bool good = metadata[i].key && metadata[i].value && is_utf8(metadata[i].key);
        for (size_t j = 0; j < i && good; j++)
            good = strcmp(metadata[i].key, metadata[j].key) != 0;
        if (!good)
            return ql_fail(err, QL_ERR_ARG, "%s: metadata %zu has no key or value, or its key is given twice", path, i);
    }
    return QL_OK;
}

static void describe_tensor(ql_json *json, const ql_tensor *tensor, size_t begin)
{
    ql_json_object(json, tensor->name);
    ql_json_string(json, "dtype", ql_dtype_name(tensor->dtype));
    ql_json_array(json, "shape");
    for (size_t i = 0; i < tensor->ndim; i++)
        ql_json_integer(json, NULL, (int64_t)tensor->shape[i]);
    ql_json_end(json);
    ql_json_array(json, "data_offsets");
    ql_json_integer(json, NULL, (int64_t)begin);
    ql_json_integer(json, NULL, (int64_t)(begin + tensor_bytes(tensor)));
    ql_json_end(json);
    ql_json_end(json);
}

static ql_status build_header(ql_json *json, const char *path, const ql_tensor *const *sorted, size_t count,
                              const ql_metadata *metadata, size_t pairs, ql_error *err)
{
    size_t begin = 0;
    ql_json_object(json, NULL);
    if (pairs > 0) {
        ql_json_object(json, "__metadata__");
        for (size_t i = 0; i < pairs; i++)
            ql_json_string(json, metadata[i].key, metadata[i].value);
        ql_json_end(json);
    }
    for (size_t i = 0; i < count; i++) {
        describe_tensor(json, sorted[i], begin);
        begin += tensor_bytes(sorted[i]);
    }
    ql_json_end(json);
    return json->status == QL_OK ? QL_OK : ql_fail(err, json->status, "%s: cannot build the header", path);
}

static ql_status write_file(const char *path, const ql_json *header, size_t alignment, const ql_tensor *const *sorted,
                            size_t count, ql_tensor_emit *emit, void *ctx, ql_error *err)
{
    ql_output output;
    ql_status status = ql_output_open(&output, path, err);
    if (status != QL_OK)
        return status;
    unsigned char prefix[8];
    size_t padding = (alignment - (sizeof prefix + header->length) % alignment) % alignment;
    for (int i = 0; i < 8; i++)
        prefix[i] = (unsigned char)((uint64_t)(header->length + padding) >> 8 * i);
    ql_output_write(&output, prefix, sizeof prefix);
    ql_output_write(&output, header->text, header->length);
    for (size_t i = 0; i < padding; i++)
        ql_output_write(&output, " ", 1);
    for (size_t i = 0; i < count && status == QL_OK && !output.error; i++) {
        uint64_t end = output.written + tensor_bytes(sorted[i]);
        status = emit(ctx, sorted[i], &output, err);
        assert(status != QL_OK || output.written == end);
        (void)end;
    }
    if (status == QL_OK)
        return ql_output_commit(&output, err);
    ql_output_abort(&output);
    return status;
}

static ql_status emit_data(void *ctx, const ql_tensor *tensor, ql_output *output, ql_error *err)
{
    (void)ctx, (void)err;
    ql_output_write(output, tensor->data, tensor_bytes(tensor));
    return QL_OK;
}

static ql_status write_all(const char *path, const ql_tensor *tensors, size_t count, const ql_metadata *metadata,
                           size_t pairs, size_t alignment, ql_tensor_emit *emit, void *ctx, ql_error *err)
{
    const ql_tensor **sorted = calloc(count + 1, sizeof *sorted);
    if (!sorted)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory for %zu tensors", path, count);
    for (size_t i = 0; i < count; i++)
        sorted[i] = &tensors[i];
    ql_json header = {0};
    ql_status status = check_all(path, sorted, count, !emit, err);
    if (status == QL_OK)
        status = check_metadata(path, metadata, pairs, err);
    if (status == QL_OK) {
        qsort(sorted, count, sizeof *sorted, by_type_and_name);
        status = build_header(&header, path, sorted, count, metadata, pairs, err);
    }
    if (status == QL_OK)
        status = write_file(path, &header, alignment, sorted, count, emit ? emit : emit_data, ctx, err);
    ql_json_free(&header);
    free(sorted);
    return status;
}

ql_status ql_safetensors_stream(const char *path, const ql_tensor *tensors, size_t count, const ql_metadata *metadata,
                                size_t pairs, ql_tensor_emit *emit, void *ctx, ql_error *err)
{
    return write_all(path, tensors, count, metadata, pairs, 8, emit, ctx, err);
}

ql_status ql_safetensors_write_aligned(const char *path, const ql_tensor *tensors, size_t count,
                                       const ql_metadata *metadata, size_t pairs, size_t alignment, ql_error *err)
{
    assert(alignment > 0 && alignment % 8 == 0);
    return write_all(path, tensors, count, metadata, pairs, alignment, NULL, NULL, err);
}

ql_status ql_safetensors_write(const char *path, const ql_tensor *tensors, size_t count, const ql_metadata *metadata,
                               size_t pairs, ql_error *err)
{
    return write_all(path, tensors, count, metadata, pairs, 8, NULL, NULL, err);
}
