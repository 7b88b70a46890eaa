/* A matrix of a model's files: borrowed, copied in another order, or quantized. */
#include "model/load.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/workers.h"
#include "quant/weight.h"

/* A tensor at hand: dense, or of blocks. */
typedef struct matrix {
    ql_tensor tensor; /* its data may be `turned` */
    void *turned;     /* NULL: it lies in the file */
    bool blocks;
    ql_format stored;
    size_t n, k;
} matrix;

void ql_unpair_rows(void *to, const void *from, size_t row_bytes, size_t n, size_t heads)
{
    size_t head_dim = n / heads, half = head_dim / 2;
    for (size_t row = 0; row < n; row++) {
        size_t first = row / head_dim * head_dim, in_head = row % head_dim;
        size_t source = first + in_head % half * 2 + in_head / half;
        memcpy((char *)to + row * row_bytes, (const char *)from + source * row_bytes, row_bytes);
    }
}

static ql_status dense_format(ql_format *out, const ql_tensor *tensor, ql_error *err)
{
    static const struct {
        ql_dtype type;
        ql_code code;
    } dense[] = {{QL_F32, QL_CODE_F32}, {QL_F16, QL_CODE_F16}, {QL_BF16, QL_CODE_BF16}};
    for (size_t i = 0; i < 3; i++) {
        if (tensor->dtype == dense[i].type) {
            *out = (ql_format){.code = dense[i].code, .scale = QL_SCALE_NONE};
            return QL_OK;
        }
    }
    return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %s is %s: weights must be F32, F16 or BF16", tensor->file,
                   tensor->name, tensor->dtype_name);
}

static ql_status find(matrix *m, const ql_matrix_source *source, ql_error *err)
{
    size_t shape[2] = {source->n, source->k};
    const ql_tensor *tensor = ql_tensors_find(source->files, source->name);
    *m = (matrix){.n = source->n, .k = source->k};
    m->blocks = tensor && tensor->foreign && ql_code_of_blocks(&m->stored.code, tensor->dtype_name);
    if (m->blocks) {
        m->tensor = *tensor;
        if (tensor->ndim == 2 && tensor->shape[0] == source->n && tensor->shape[1] == source->k)
            return QL_OK;
        return ql_fail(err, QL_ERR_SHAPE, "%s: tensor %s has %zu dimensions of %zu x %zu, the model needs %zu x %zu",
                       tensor->file, source->name, tensor->ndim, tensor->shape[0], tensor->shape[1], source->n,
                       source->k);
    }
    ql_status status = ql_tensors_need(&tensor, source->files, source->name, 2, shape, err);
    if (!status)
        status = dense_format(&m->stored, tensor, err);
    if (!status)
        m->tensor = *tensor;
    return status;
}

static ql_status turn(matrix *m, size_t heads, ql_error *err)
{
    m->turned = malloc(m->tensor.bytes);
    if (!m->turned)
        return ql_fail(err, QL_ERR_MEMORY, "tensor %s: no memory for %zu bytes", m->tensor.name, m->tensor.bytes);
    ql_unpair_rows(m->turned, m->tensor.data, m->tensor.bytes / m->n, m->n, heads);
    m->tensor.data = m->turned;
    return QL_OK;
}

static bool can_borrow(const matrix *m)
{
    return m->blocks || (uintptr_t)m->tensor.data % ql_dtype_size(m->tensor.dtype) == 0;
}

static ql_status keep(ql_weight **out, const matrix *m, size_t *mapped, ql_workers *workers, ql_error *err)
{
    const ql_tensor *t = &m->tensor;
    bool borrows = !m->turned && can_borrow(m);
    if (borrows)
        *mapped += t->bytes;
    if (m->blocks)
        return ql_weight_from_blocks(out, m->stored.code, t->name, t->data, t->bytes, m->n, m->k, !borrows, err);
    if (borrows)
        return ql_weight_borrow(out, t->data, t->dtype, m->n, m->k, err);
    return ql_weight_quantize(out, m->stored, t->name, t->data, t->dtype, m->k, m->n, m->k, workers, err);
}

typedef struct unpacking {
    const ql_weight *from;
    float *to;
} unpacking;

static void unpack_row(void *ctx, size_t row, size_t worker)
{
    const unpacking *job = ctx;
    size_t k = ql_weight_cols(job->from);
    (void)worker;
    ql_weight_dequantize(job->from, row, 1, job->to + row * k, k);
}

/* Quantizes anew what a quantized weight, which it frees, stands for. */
static ql_status quantize_again(ql_weight **out, ql_weight *stored, const char *name, ql_format format,
                                ql_workers *workers, ql_error *err)
{
    size_t n = ql_weight_rows(stored), k = ql_weight_cols(stored);
    unpacking job = {stored, malloc(n * k * sizeof(float))};
    ql_status status;
    if (job.to) {
        ql_parallel(workers, n, unpack_row, &job);
        status = ql_weight_quantize(out, format, name, job.to, QL_F32, k, n, k, workers, err);
    } else {
        status = ql_fail(err, QL_ERR_MEMORY, "%s: no memory for %zu x %zu values", name, n, k);
    }
    free(job.to);
    ql_weight_destroy(stored);
    return status;
}

static ql_status quantize(ql_weight **out, const matrix *m, ql_format format, ql_workers *workers, ql_error *err)
{
    const ql_tensor *t = &m->tensor;
    if (!m->blocks)
        return ql_weight_quantize(out, format, t->name, t->data, t->dtype, m->k, m->n, m->k, workers, err);
    ql_weight *stored;
    ql_status status =
        ql_weight_from_blocks(&stored, m->stored.code, t->name, t->data, t->bytes, m->n, m->k, false, err);
    return status ? status : quantize_again(out, stored, t->name, format, workers, err);
}

ql_status ql_matrix_load(ql_weight **out, const ql_matrix_source *source, ql_format format, size_t *mapped,
                         ql_workers *workers, ql_error *err)
{
    matrix m;
    bool as_stored = format.code == QL_CODE_F32;
    if (ql_bnb_stored(source)) {
        ql_weight *stored;
        ql_status loaded = ql_bnb_load(as_stored ? out : &stored, source, err);
        return loaded || as_stored ? loaded : quantize_again(out, stored, source->name, format, workers, err);
    }
    ql_status status = find(&m, source, err);
    if (status)
        return status;
    ql_tensor in_file = m.tensor;
    if (!as_stored || source->pairs)
        ql_tensors_fetch(source->files, &in_file);
    if (source->pairs)
        status = turn(&m, source->pairs, err);
    if (!status)
        status = as_stored ? keep(out, &m, mapped, workers, err) : quantize(out, &m, format, workers, err);
    if (!as_stored || source->pairs)
        ql_tensors_release(source->files, &in_file);
    free(m.turned);
    return status ? ql_fail_in(err, status, "%s", in_file.file) : QL_OK;
}

ql_status ql_matrix_plan(ql_weight **out, const ql_matrix_source *source, ql_format format, size_t *mapped, ql_error *err)
{
    matrix m;
    bool as_stored = format.code == QL_CODE_F32;
    if (ql_bnb_stored(source) && as_stored)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "tensor %s: bitsandbytes' weights are planned from config.json",
                       source->name);
    if (ql_bnb_stored(source))
        return ql_weight_plan(out, format, source->name, source->n, source->k, err);
    ql_status status = find(&m, source, err);
    if (!status && as_stored && !source->pairs && can_borrow(&m))
        status = keep(out, &m, mapped, NULL, err);
    else if (!status)
        status = ql_weight_plan(out, as_stored ? m.stored : format, source->name, m.n, m.k, err);
    return status;
}
