/* Quantizing a matrix: one pass over the groups finds their scales, one over the rows their codes. */
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/error.h"
#include "base/sizes.h"
#include "base/workers.h"
#include "quant/encode.h"
#include "quant/scales.h"

enum { TASK_ELEMENTS = 1 << 15, MAX_GROUP = 4096, CHUNK = 4096 };

typedef struct job {
    const ql_encoder *encoder;
    ql_wview *view;
    const char *src;
    ql_dtype type;
    size_t row_bytes; /* of src */
    float *scales;    /* [groups of the matrix]: what the elements are divided by */
    size_t rows_a_task;
    float limit;        /* the largest magnitude that the format takes */
    size_t bad_element; /* row-major index of the first one beyond it, or NaN; SIZE_MAX: none */
    size_t bad_scale;   /* the first group whose scale overflows */
} job;

static void keep_first(size_t *first, size_t index)
{
    size_t seen = __atomic_load_n(first, __ATOMIC_RELAXED);
    while (index < seen && !__atomic_compare_exchange_n(first, &seen, index, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

static const char *source_at(const job *j, size_t row, size_t col)
{
    return j->src + row * j->row_bytes + col * ql_dtype_size(j->type);
}

/* Checks x, the elements from `index` on (row-major); *most becomes the largest magnitude. */
static bool check_elements(job *j, const float *x, size_t count, size_t index, float *most)
{
    *most = ql_float_from_bits(j->encoder->largest(x, count));
    if (*most <= j->limit)
        return true;
    size_t i = 0;
    while (fabsf(x[i]) <= j->limit)
        i++;
    keep_first(&j->bad_element, index + i);
    return false;
}

/* x = the elements of a group, which cross row ends if the format is flat, and zeros up to its full size. *index
 * becomes the row-major index of the first one; returns their number. */
static size_t load_group(const job *j, size_t group, float *x, size_t *index)
{
    const ql_wview *v = j->view;
    size_t size = v->format.group, row, col, count;
    if (v->format.flat) {
        row = group * size / v->k;
        col = group * size % v->k;
        count = v->n * v->k - group * size;
    } else {
        row = group / v->groups;
        col = group % v->groups * size;
        count = v->k - col;
    }
    *index = row * v->k + col;
    count = count < size ? count : size;
    for (size_t done = 0; done < count; row++, col = 0) {
        size_t run = v->k - col < count - done ? v->k - col : count - done;
        j->encoder->load(x + done, source_at(j, row, col), j->type, run);
        done += run;
    }
    memset(x + count, 0, (size - count) * sizeof *x);
    return count;
}

/* The scale of a group before it is rounded to the format's own. */
static float ideal_scale(job *j, const float *x, size_t count, size_t index)
{
    float most;
    if (!check_elements(j, x, count, index, &most))
        return 0;
    switch (j->view->format.code) {
    case QL_CODE_INT8:
        return most / 127.0f;
    case QL_CODE_INT4:
        return j->encoder->int4_scale(x, count, most);
    default:
        return most;
    }
}

/* Task: the scales of 256 groups, which are one block of double quantization. */
static void find_scales(void *ctx, size_t index, size_t worker)
{
    job *j = ctx;
    (void)worker;
    float x[MAX_GROUP];
    size_t first = index * QL_DQ_GROUPS, total = ql_wview_scales(j->view);
    size_t count = total - first < QL_DQ_GROUPS ? total - first : QL_DQ_GROUPS;
    for (size_t g = first; g < first + count; g++) {
        size_t at, length = load_group(j, g, x, &at);
        j->scales[g] = ideal_scale(j, x, length, at);
    }
    if (j->view->format.scale == QL_SCALE_BNB_NESTED)
        return; /* its offset is a mean over all groups */
    size_t bad = ql_scales_store(j->view, j->scales, first, count);
    if (bad < count)
        keep_first(&j->bad_scale, first + bad);
}

static void encode_block(const job *j, size_t row, size_t col, float x[QL_BLOCK])
{
    const ql_wview *v = j->view;
    size_t cols = v->k - col < QL_BLOCK ? v->k - col : QL_BLOCK;
    j->encoder->load(x, source_at(j, row, col), j->type, cols);
    memset(x + cols, 0, (QL_BLOCK - cols) * sizeof *x);
    for (size_t done = 0, group; done < cols;) {
        size_t run = ql_wview_run(v, row, col + done, &group);
        run = run < cols - done ? run : cols - done;
        float scale = j->scales[group], inverse = scale > 0 ? 1.0f / scale : 0;
        j->encoder->multiply(x + done, run, inverse < FLT_MAX ? inverse : FLT_MAX);
        done += run;
    }
    char *codes = (char *)ql_writable(v->codes) + row * v->row_bytes;
    if (v->table)
        j->encoder->encode4((uint8_t *)codes + col / 2, x, ql_codebook_of(v->format.code));
    else
        j->encoder->encode8((int8_t *)codes + col, x);
}

/* Task: the codes of some rows. */
static void encode_rows(void *ctx, size_t index, size_t worker)
{
    const job *j = ctx;
    (void)worker;
    size_t first = index * j->rows_a_task, left = j->view->n - first;
    size_t end = first + (left < j->rows_a_task ? left : j->rows_a_task);
    for (size_t row = first; row < end; row++)
        for (size_t col = 0; col < j->view->k; col += QL_BLOCK) {
            float x[QL_BLOCK];
            encode_block(j, row, col, x);
        }
}

static void store_dense(void *dst, ql_code code, const float *x, size_t count)
{
    uint16_t *half = dst;
    if (code == QL_CODE_F32)
        memcpy(dst, x, count * sizeof *x);
    else if (code == QL_CODE_BF16)
        for (size_t i = 0; i < count; i++)
            half[i] = ql_f32_to_bf16(x[i]);
    else
        for (size_t i = 0; i < count; i++)
            half[i] = ql_f32_to_f16(x[i]);
}

/* Task: some rows of a dense weight. */
static void copy_rows(void *ctx, size_t index, size_t worker)
{
    job *j = ctx;
    const ql_wview *v = j->view;
    (void)worker;
    float x[CHUNK], most;
    size_t first = index * j->rows_a_task, left = v->n - first;
    size_t end = first + (left < j->rows_a_task ? left : j->rows_a_task);
    for (size_t row = first; row < end; row++)
        for (size_t col = 0; col < v->k; col += CHUNK) {
            size_t count = v->k - col < CHUNK ? v->k - col : CHUNK;
            char *dst = (char *)ql_writable(v->codes) + row * v->row_bytes + col * (v->row_bytes / v->k);
            j->encoder->load(x, source_at(j, row, col), j->type, count);
            if (check_elements(j, x, count, row * v->k + col, &most))
                store_dense(dst, v->format.code, x, count);
        }
}

/* The largest magnitude that does not become an infinity. */
static float largest_finite(ql_code code)
{
    return code == QL_CODE_F16 ? 0x1.ffdffep15f : code == QL_CODE_BF16 ? 0x1.fefffep127f : FLT_MAX;
}

static ql_status explain(const job *j, const char *name, ql_error *err)
{
    const ql_wview *v = j->view;
    if (j->bad_element != SIZE_MAX) {
        size_t row = j->bad_element / v->k, col = j->bad_element % v->k;
        float x;
        j->encoder->load(&x, source_at(j, row, col), j->type, 1);
        if (isfinite(x))
            return ql_fail(err, QL_ERR_VALUE, "%s: row %zu, column %zu: %g is too large for %s", name, row, col, x,
                           ql_dtype_name(ql_code_dtype(v->format.code)));
        return ql_fail(err, QL_ERR_VALUE, "%s: row %zu, column %zu: %s", name, row, col,
                       isnan(x) ? "not a number" : "an infinity");
    }
    size_t row = j->bad_scale / v->groups, group = j->bad_scale % v->groups;
    char text[48];
    return ql_fail(err, QL_ERR_VALUE,
                   "%s: row %zu, group %zu (columns from %zu): the scale of its values is too large for %s; scale the "
                   "weight down or keep it in bf16",
                   name, row, group, group * v->format.group, ql_format_describe(v->format, text));
}

static ql_status fill_in(job *j, const char *name, ql_workers *workers, ql_error *err)
{
    ql_wview *v = j->view;
    j->rows_a_task = v->k < TASK_ELEMENTS ? TASK_ELEMENTS / v->k : 1;
    j->limit = largest_finite(v->format.code);
    j->bad_element = j->bad_scale = SIZE_MAX;
    size_t tasks = ql_pieces(v->n, j->rows_a_task);
    if (ql_code_is_dense(v->format.code)) {
        ql_parallel(workers, tasks, copy_rows, j);
        return j->bad_element == SIZE_MAX ? QL_OK : explain(j, name, err);
    }
    size_t scales = ql_wview_scales(v);
    j->scales = ql_alloc(scales * sizeof *j->scales);
    if (!j->scales)
        return ql_fail(err, QL_ERR_MEMORY, "%s: no memory for %zu scales", name, scales);
    ql_parallel(workers, ql_pieces(scales, QL_DQ_GROUPS), find_scales, j);
    if (j->bad_element != SIZE_MAX || j->bad_scale != SIZE_MAX)
        return explain(j, name, err);
    if (v->format.scale == QL_SCALE_BNB_NESTED)
        ql_scales_store_nested(v, j->scales);
    ql_parallel(workers, tasks, encode_rows, j);
    return QL_OK;
}

ql_status ql_weight_quantize(ql_weight **out, ql_format format, const char *name, const void *src, ql_dtype type,
                             size_t ld, size_t n, size_t k, ql_workers *workers, ql_error *err)
{
    *out = NULL;
    if (type != QL_F32 && type != QL_F16 && type != QL_BF16)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: a weight of %s; F32, F16 and BF16 can be quantized", name,
                       ql_dtype_name(type));
    char text[48];
    if (ql_code_is_ggml(format.code))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: nothing is quantized to %s while a model is read; such blocks are "
                       "taken as a GGUF file holds them", name, ql_format_describe(format, text));
    if (ld < k && n > 1)
        return ql_fail(err, QL_ERR_SHAPE, "%s: rows of %zu elements are only %zu apart", name, k, ld);
    ql_weight *w;
    ql_status status = ql_weight_create(&w, format, QL_BNB_NESTED_BLOCK, name, n, k, err);
    if (status != QL_OK)
        return status;
    job j = {.encoder = ql_encoder_select(ql_cpu_features()), .view = &w->view, .src = src, .type = type};
    j.row_bytes = ld * ql_dtype_size(type);
    status = fill_in(&j, name, workers, err);
    free(j.scales);
    if (status != QL_OK)
        ql_weight_destroy(w);
    else
        *out = w;
    return status;
}
