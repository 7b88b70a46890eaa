/* One tensor: its shape in words, its elements as floats, and the check before use. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/half.h"
#include "io/safetensors.h"

size_t ql_tensor_elements(const ql_tensor *tensor)
{
    size_t elements;
    return ql_shape_elements(tensor->shape, tensor->ndim, &elements) ? elements : SIZE_MAX;
}

static void describe_shape(const size_t *shape, size_t ndim, char text[192])
{
    size_t used = 0;
    text[used++] = '[';
    for (size_t i = 0; i < ndim; i++)
        used += (size_t)snprintf(text + used, 24, "%s%zu", i ? ", " : "", shape[i]);
    text[used++] = ']';
    text[used] = '\0';
}

static ql_status refuse_foreign(const ql_tensor *tensor, ql_error *err)
{
    return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %.200s has the type %.40s, which is not supported",
                   tensor->file ? tensor->file : "memory", tensor->name, tensor->dtype_name);
}

ql_status ql_tensors_need(const ql_tensor **out, const ql_tensors *tensors, const char *name, size_t ndim,
                          const size_t *shape, ql_error *err)
{
    *out = NULL;
    const ql_tensor *tensor = ql_tensors_find(tensors, name);
    if (!tensor)
        return ql_fail(err, QL_ERR_FORMAT, "%s: there is no tensor %.200s", ql_tensors_path(tensors), name);
    if (tensor->foreign)
        return refuse_foreign(tensor, err);
    if (shape && (ndim != tensor->ndim || memcmp(shape, tensor->shape, ndim * sizeof *shape) != 0)) {
        char has[192], wants[192];
        describe_shape(tensor->shape, tensor->ndim, has);
        describe_shape(shape, ndim < QL_TENSOR_DIMS ? ndim : QL_TENSOR_DIMS, wants);
        return ql_fail(err, QL_ERR_SHAPE, "%s: tensor %.200s has the shape %s, the model needs %s", tensor->file, name,
                       has, wants);
    }
    *out = tensor;
    return QL_OK;
}

ql_status ql_tensor_read_f32(const ql_tensor *tensor, size_t first, size_t count, float *out, ql_error *err)
{
    size_t elements = ql_tensor_elements(tensor);
    if (first > elements || count > elements - first)
        return ql_fail(err, QL_ERR_ARG, "tensor %.200s: elements %zu to %zu of %zu", tensor->name, first, first + count,
                       elements);
    if (tensor->foreign)
        return refuse_foreign(tensor, err);
    if (count == 0)
        return QL_OK;
    const unsigned char *from = (const unsigned char *)tensor->data + first * ql_dtype_size(tensor->dtype);
    uint16_t half;
    double wide;
    switch (tensor->dtype) {
    case QL_F32:
        memcpy(out, from, count * sizeof *out);
        return QL_OK;
    case QL_BF16:
        for (size_t i = 0; i < count; i++) {
            memcpy(&half, from + 2 * i, sizeof half);
            out[i] = ql_bf16_to_f32(half);
        }
        return QL_OK;
    case QL_F16:
        for (size_t i = 0; i < count; i++) {
            memcpy(&half, from + 2 * i, sizeof half);
            out[i] = ql_f16_to_f32(half);
        }
        return QL_OK;
    case QL_F64:
        for (size_t i = 0; i < count; i++) {
            memcpy(&wide, from + 8 * i, sizeof wide);
            out[i] = (float)wide;
        }
        return QL_OK;
    default:
        return ql_fail(err, QL_ERR_UNSUPPORTED, "tensor %.200s has the type %s, a floating-point type is needed",
                       tensor->name, ql_dtype_name(tensor->dtype));
    }
}
