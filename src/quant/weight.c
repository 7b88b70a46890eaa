/* Making, borrowing, reading and freeing weights. */
#include "quant/weight.h"

#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/error.h"

ql_dtype ql_code_dtype(ql_code code)
{
    assert(ql_code_is_dense(code));
    return code == QL_CODE_F16 ? QL_F16 : code == QL_CODE_BF16 ? QL_BF16 : QL_F32;
}

ql_status ql_weight_create(ql_weight **out, ql_format format, uint32_t nested_block, const char *name, size_t n,
                           size_t k, ql_error *err)
{
    *out = NULL;
    ql_status status = ql_format_check(&format, name, n, k, err);
    if (status != QL_OK)
        return status;
    ql_wview view;
    ql_arena plan = {0};
    size_t code_bytes;
    ql_wview_carve(&view, &plan, &code_bytes, format, nested_block, n, k);
    ql_weight *w = calloc(1, sizeof *w);
    ql_arena real = {.base = w ? ql_alloc(plan.used) : NULL};
    if (!real.base) {
        free(w);
        return ql_fail(err, QL_ERR_MEMORY, "%s: a weight of %zu x %zu needs %zu bytes, which are not to be had", name,
                       n, k, plan.used);
    }
    ql_wview_carve(&w->view, &real, &code_bytes, format, nested_block, n, k);
    w->memory = real.base;
    w->bytes = real.used;
    w->kernel = ql_matmul_select(&w->view, ql_cpu_features(), 0);
    *out = w;
    return QL_OK;
}

ql_packing ql_weight_packing(const ql_weight *w)
{
    const ql_wview *v = &w->view;
    return (ql_packing){v->format, v->nested_block, v->nested_offset, v->n, v->k};
}

ql_status ql_weight_from_packed(ql_weight **out, const ql_packing *p, const char *name, const void *data, size_t bytes,
                                ql_error *err)
{
    *out = NULL;
    ql_format format = p->format;
    bool nested = format.scale == QL_SCALE_BNB_NESTED;
    ql_status status = ql_format_check(&format, name, p->n, p->k, err);
    if (status != QL_OK)
        return status;
    ql_wview view;
    ql_arena plan = {0}, real = {.base = ql_writable(data)};
    size_t code_bytes;
    if (!nested || p->nested_block)
        ql_wview_carve(&view, &plan, &code_bytes, format, p->nested_block, p->n, p->k);
    if (plan.used != bytes || !data)
        return ql_fail(err, QL_ERR_SHAPE, "%s: %zu bytes for a packed weight that takes %zu", name, bytes, plan.used);
    ql_weight *w = calloc(1, sizeof *w);
    if (!w)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", name);
    ql_wview_carve(&w->view, &real, &code_bytes, format, p->nested_block, p->n, p->k);
    w->view.nested_offset = p->nested_offset;
    w->bytes = bytes;
    w->kernel = ql_matmul_select(&w->view, ql_cpu_features(), 0);
    *out = w;
    return QL_OK;
}

ql_status ql_weight_plan(ql_weight **out, ql_format format, const char *name, size_t n, size_t k, ql_error *err)
{
    *out = NULL;
    ql_status status = ql_format_check(&format, name, n, k, err);
    if (status != QL_OK)
        return status;
    ql_weight *w = calloc(1, sizeof *w);
    if (!w)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", name);
    ql_arena plan = {0};
    size_t code_bytes;
    ql_wview_carve(&w->view, &plan, &code_bytes, format, QL_BNB_NESTED_BLOCK, n, k);
    w->bytes = plan.used;
    w->kernel = ql_matmul_select(&w->view, ql_cpu_features(), 0);
    *out = w;
    return QL_OK;
}

ql_status ql_weight_borrow(ql_weight **out, const void *src, ql_dtype type, size_t n, size_t k, ql_error *err)
{
    *out = NULL;
    ql_format format = {.code = type == QL_F32 ? QL_CODE_F32 : type == QL_F16 ? QL_CODE_F16 : QL_CODE_BF16};
    if (type != QL_F32 && type != QL_F16 && type != QL_BF16)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "a dense weight is F32, F16 or BF16, not %s", ql_dtype_name(type));
    ql_status status = ql_format_check(&format, "a borrowed weight", n, k, err);
    if (status != QL_OK)
        return status;
    if ((uintptr_t)src % ql_dtype_size(type) != 0)
        return ql_fail(err, QL_ERR_ARG, "a borrowed weight of %s is not aligned to %zu bytes", ql_dtype_name(type),
                       ql_dtype_size(type));
    ql_weight *w = calloc(1, sizeof *w);
    if (!w)
        return ql_fail(err, QL_ERR_MEMORY, "a borrowed weight: out of memory");
    w->view = (ql_wview){.format = format, .n = n, .k = k, .codes = src, .row_bytes = k * ql_dtype_size(type)};
    w->kernel = ql_matmul_select(&w->view, ql_cpu_features(), 0);
    *out = w;
    return QL_OK;
}

ql_status ql_weight_from_blocks(ql_weight **out, ql_code code, const char *name, const void *blocks, size_t bytes,
                                size_t n, size_t k, bool copy, ql_error *err)
{
    *out = NULL;
    ql_format format = {.code = code};
    char text[48];
    if (!ql_code_is_ggml(code))
        return ql_fail(err, QL_ERR_ARG, "%s: %s is no format of ggml's blocks", name, ql_format_describe(format, text));
    ql_status status = ql_format_check(&format, name, n, k, err);
    if (status != QL_OK)
        return status;
    ql_wview view;
    ql_arena none = {0};
    size_t code_bytes;
    ql_wview_carve(&view, &none, &code_bytes, format, 0, n, k);
    if (bytes != n * view.row_bytes)
        return ql_fail(err, QL_ERR_SHAPE, "%s: %zu bytes, a weight of %zu x %zu in %s takes %zu", name, bytes, n, k,
                       ql_format_describe(format, text), n * view.row_bytes);
    if (copy) {
        status = ql_weight_create(out, format, 0, name, n, k, err);
        if (status == QL_OK)
            memcpy(ql_writable((*out)->view.codes), blocks, bytes);
        return status;
    }
    ql_weight *w = calloc(1, sizeof *w);
    if (!w)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", name);
    w->view = view;
    w->view.codes = blocks;
    w->kernel = ql_matmul_select(&w->view, ql_cpu_features(), 0);
    *out = w;
    return QL_OK;
}

size_t ql_weight_rows(const ql_weight *w)
{
    return w->view.n;
}

size_t ql_weight_cols(const ql_weight *w)
{
    return w->view.k;
}

ql_format ql_weight_format(const ql_weight *w)
{
    return w->view.format;
}

size_t ql_weight_bytes(const ql_weight *w)
{
    return w->bytes;
}

void ql_weight_destroy(ql_weight *w)
{
    if (!w)
        return;
    free(w->memory);
    free(w);
}
