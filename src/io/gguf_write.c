/* The bytes of a GGUF file, from the first to the last. */
#include "io/gguf_write.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/grow.h"
#include "io/gguf_file.h"
#include "io/safetensors.h"

enum { ALIGNMENT = 32, MOST_DIMS = 4 };

/* ---- bytes that grow ---- */

static void put(ql_gguf_meta *meta, const void *bytes, size_t size)
{
    meta->failed = meta->failed || !ql_grow((void **)&meta->data, &meta->capacity, meta->length, size, 1);
    if (meta->failed)
        return;
    memcpy(meta->data + meta->length, bytes, size);
    meta->length += size;
}

static void put_number(ql_gguf_meta *meta, uint64_t value, size_t bytes)
{
    unsigned char little[8];
    for (size_t i = 0; i < bytes; i++)
        little[i] = (unsigned char)(value >> 8 * i);
    put(meta, little, bytes);
}

void ql_gguf_add_string(ql_gguf_meta *meta, const char *text, size_t length)
{
    put_number(meta, length, 8);
    put(meta, text, length);
}

void ql_gguf_add_f32(ql_gguf_meta *meta, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_number(meta, bits, 4);
}

void ql_gguf_add_i32(ql_gguf_meta *meta, int32_t value)
{
    put_number(meta, (uint32_t)value, 4);
}

static void put_text(ql_gguf_meta *meta, const char *text)
{
    ql_gguf_add_string(meta, text, strlen(text));
}

static void put_key(ql_gguf_meta *meta, const char *key, ql_gguf_type type)
{
    put_text(meta, key);
    put_number(meta, type, 4);
    meta->count++;
}

void ql_gguf_put_string(ql_gguf_meta *meta, const char *key, const char *text)
{
    put_key(meta, key, QL_GGUF_STRING);
    put_text(meta, text);
}

void ql_gguf_put_f32(ql_gguf_meta *meta, const char *key, float value)
{
    put_key(meta, key, QL_GGUF_F32);
    ql_gguf_add_f32(meta, value);
}

void ql_gguf_put_u32(ql_gguf_meta *meta, const char *key, uint32_t value)
{
    put_key(meta, key, QL_GGUF_U32);
    put_number(meta, value, 4);
}

void ql_gguf_put_bool(ql_gguf_meta *meta, const char *key, bool value)
{
    put_key(meta, key, QL_GGUF_BOOL);
    put_number(meta, value, 1);
}

void ql_gguf_put_array(ql_gguf_meta *meta, const char *key, ql_gguf_type element, size_t count)
{
    put_key(meta, key, QL_GGUF_ARRAY);
    put_number(meta, element, 4);
    put_number(meta, count, 8);
}

void ql_gguf_put_value(ql_gguf_meta *meta, const ql_gguf_value *value)
{
    bool array = value->type == QL_GGUF_ARRAY;
    ql_gguf_type element = array ? value->element : value->type;
    size_t bytes = 0, length;
    put_key(meta, value->key, value->type);
    if (array) {
        put_number(meta, element, 4);
        put_number(meta, value->count, 8);
    }
    if (element == QL_GGUF_STRING)
        for (size_t i = 0; i < value->count; i++)
            ql_gguf_next_string(value, &bytes, &length);
    else
        bytes = value->count * ql_gguf_width(element);
    put(meta, value->data, bytes);
}

void ql_gguf_meta_free(ql_gguf_meta *meta)
{
    free(meta->data);
    *meta = (ql_gguf_meta){0};
}

/* ---- tensors ---- */

/* The number of the tensor's type and the bytes of its data. */
static ql_status measure(const char *path, const ql_tensor *tensor, uint32_t *type, size_t *bytes, ql_error *err)
{
    size_t block = 1, block_bytes = 0, elements;
    const char *name = tensor->foreign ? tensor->dtype_name : ql_dtype_name(tensor->dtype);
    int number = ql_gguf_tensor_type(name, &block, &block_bytes);
    if (number < 0)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %.200s has the type %s, which GGUF has not", path,
                       tensor->name, name);
    if (tensor->ndim < 1 || tensor->ndim > MOST_DIMS || tensor->shape[tensor->ndim - 1] % block ||
        !ql_shape_elements(tensor->shape, tensor->ndim, &elements) ||
        __builtin_mul_overflow(elements / block, block_bytes, bytes))
        return ql_fail(err, QL_ERR_SHAPE, "%s: tensor %.200s: its shape cannot be stored as %s", path, tensor->name,
                       name);
    *type = (uint32_t)number;
    return QL_OK;
}

static size_t padding(uint64_t at)
{
    return (size_t)(-at % ALIGNMENT);
}

/* Appends the tensors' descriptions. */
static ql_status put_infos(ql_gguf_meta *infos, const char *path, const ql_tensor *tensors, size_t count, ql_error *err)
{
    uint64_t offset = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t type;
        size_t bytes;
        ql_status status = measure(path, &tensors[i], &type, &bytes, err);
        if (status)
            return status;
        put_text(infos, tensors[i].name);
        put_number(infos, tensors[i].ndim, 4);
        for (size_t d = tensors[i].ndim; d-- > 0;)
            put_number(infos, tensors[i].shape[d], 8);
        put_number(infos, type, 4);
        put_number(infos, offset, 8);
        if (__builtin_add_overflow(offset, bytes, &offset) || offset > INT64_MAX)
            return ql_fail(err, QL_ERR_SHAPE, "%s: too many bytes for one file", path);
        offset += padding(offset);
    }
    return QL_OK;
}

static void pad(ql_output *output)
{
    static const char zeros[ALIGNMENT];
    ql_output_write(output, zeros, padding(output->written));
}

static ql_status write_data(ql_output *output, const char *path, const ql_tensor *tensors, size_t count,
                            ql_tensor_emit *emit, void *ctx, ql_error *err)
{
    ql_status status = QL_OK;
    for (size_t i = 0; i < count && !status && !output->error; i++) {
        uint64_t start = output->written;
        uint32_t type;
        size_t bytes;
        status = measure(path, &tensors[i], &type, &bytes, err);
        if (!status)
            status = emit(ctx, &tensors[i], output, err);
        assert(status || output->written == start + bytes);
        (void)start;
        pad(output);
    }
    return status;
}

ql_status ql_gguf_write(const char *path, const ql_gguf_meta *meta, const ql_tensor *tensors, size_t count,
                        ql_tensor_emit *emit, void *ctx, ql_error *err)
{
    ql_gguf_meta head = {0}, infos = {0};
    ql_output output = {0};
    put(&head, "GGUF", 4);
    put_number(&head, 3, 4);
    put_number(&head, count, 8);
    put_number(&head, meta->count, 8);
    ql_status status = put_infos(&infos, path, tensors, count, err);
    if (!status && (head.failed || infos.failed || meta->failed))
        status = ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    if (!status)
        status = ql_output_open(&output, path, err);
    if (!status) {
        ql_output_write(&output, head.data, head.length);
        ql_output_write(&output, meta->data, meta->length);
        ql_output_write(&output, infos.data, infos.length);
        pad(&output);
        status = write_data(&output, path, tensors, count, emit, ctx, err);
    }
    if (!status)
        status = ql_output_commit(&output, err);
    ql_output_abort(&output);
    ql_gguf_meta_free(&head);
    ql_gguf_meta_free(&infos);
    return status;
}
