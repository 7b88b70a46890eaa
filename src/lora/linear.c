/* Forward and backward of base plus adapter. h keeps s * dropout(x) A^T, so dB needs no further scaling. */
#include <assert.h>
#include <string.h>

#include "base/half.h"
#include "base/workers.h"
#include "lora/dropout.h"
#include "lora/outer.h"
#include "qlora/lora.h"

/* Tokens whose dropout(x) is held at once. */
enum { DROPOUT_TOKENS = 128, ROW_BLOCK = 16 };

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static const ql_dropout *active(const ql_dropout *dropout)
{
    return dropout && dropout->p > 0 ? dropout : NULL;
}

ql_scratch ql_linear_scratch(const ql_linear *layer, size_t m, size_t threads)
{
    ql_scratch need = ql_matmul_scratch(layer->base, m, threads);
    if (!layer->adapter)
        return need;
    need = ql_scratch_max(need, ql_matmul_scratch(layer->adapter->view_a, m, threads));
    return ql_scratch_max(need, ql_matmul_scratch(layer->adapter->view_b, m, threads));
}

size_t ql_linear_work(const ql_linear *layer, size_t m, float p)
{
    if (!layer->adapter)
        return 0;
    return m * layer->adapter->r + (p > 0 ? smaller(m, DROPOUT_TOKENS) * layer->adapter->k : 0);
}

/* ---- passes over rows, in blocks that go to threads ---- */

typedef struct row_pass {
    size_t m, cols;
    float *dst;
    size_t ldd;
    const float *src; /* bias[cols], or [m][cols] */
    size_t lds;
    float factor;
    const ql_dropout *dropout;
    size_t first; /* place of row 0 in the whole of x */
    void (*row)(const struct row_pass *pass, size_t row);
} row_pass;

static void row_block(void *ctx, size_t index, size_t worker)
{
    const row_pass *pass = ctx;
    (void)worker;
    size_t end = smaller(pass->m, (index + 1) * ROW_BLOCK);
    for (size_t row = index * ROW_BLOCK; row < end; row++)
        pass->row(pass, row);
}

static void run_rows(row_pass *pass, ql_workers *workers)
{
    ql_parallel(workers, (pass->m + ROW_BLOCK - 1) / ROW_BLOCK, row_block, pass);
}

static void fill_bias(const row_pass *pass, size_t row)
{
    memcpy(pass->dst + row * pass->ldd, pass->src, pass->cols * sizeof *pass->src);
}

static void scale_row(const row_pass *pass, size_t row)
{
    float *dst = pass->dst + row * pass->ldd;
#pragma omp simd
    for (size_t j = 0; j < pass->cols; j++)
        dst[j] *= pass->factor;
}

static void drop_row(const row_pass *pass, size_t row)
{
    ql_dropout_apply(pass->dropout, pass->first + row, 0, pass->cols, pass->src + row * pass->lds,
                     pass->dst + row * pass->ldd);
}

/* Masks src in place, then adds it. */
static void add_dropped_row(const row_pass *pass, size_t row)
{
    float *masked = (float *)pass->src + row * pass->lds, *dst = pass->dst + row * pass->ldd;
    ql_dropout_apply(pass->dropout, pass->first + row, 0, pass->cols, masked, masked);
#pragma omp simd
    for (size_t j = 0; j < pass->cols; j++)
        dst[j] += masked[j];
}

/* t[m][r] *= s */
static void scale(const ql_adapter *a, size_t m, float *t, ql_workers *workers)
{
    run_rows(&(row_pass){.m = m, .cols = a->r, .dst = t, .ldd = a->r, .factor = a->scaling, .row = scale_row},
             workers);
}

/* ---- forward ---- */

/* h = dropout(x) A^T */
static void project(const ql_adapter *a, size_t m, const float *x, size_t ldx, float *h, const ql_dropout *dropout,
                    float *dropped, ql_workers *workers)
{
    if (!dropout) {
        ql_matmul(a->view_a, m, x, ldx, h, a->r, false, workers);
        return;
    }
    for (size_t t = 0; t < m; t += DROPOUT_TOKENS) {
        size_t tokens = smaller(m - t, DROPOUT_TOKENS);
        run_rows(&(row_pass){.m = tokens, .cols = a->k, .dst = dropped, .ldd = a->k, .src = x + t * ldx, .lds = ldx,
                             .dropout = dropout, .first = t, .row = drop_row},
                 workers);
        ql_matmul(a->view_a, tokens, dropped, a->k, h + t * a->r, a->r, false, workers);
    }
}

void ql_linear_forward(const ql_linear *layer, size_t m, const float *x, size_t ldx, float *y, size_t ldy,
                       float *h, const ql_dropout *dropout, float *work, ql_workers *workers)
{
    if (layer->bias)
        run_rows(&(row_pass){.m = m, .cols = ql_weight_rows(layer->base), .dst = y, .ldd = ldy, .src = layer->bias,
                             .row = fill_bias},
                 workers);
    ql_matmul(layer->base, m, x, ldx, y, ldy, layer->bias != NULL, workers);
    const ql_adapter *a = layer->adapter;
    if (!a)
        return;
    assert(a->k == ql_weight_cols(layer->base) && a->n == ql_weight_rows(layer->base));
    ql_mark(workers, QL_PART_ADAPTERS);
    project(a, m, x, ldx, h, active(dropout), work + m * a->r, workers);
    scale(a, m, h, workers);
    ql_matmul(a->view_b, m, h, a->r, y, ldy, true, workers);
}

/* ---- backward ---- */

/* dx += mask(dh A) */
static void add_input_grad(const ql_adapter *a, size_t m, const float *dh, float *dx, size_t lddx,
                           const ql_dropout *dropout, float *dense, ql_workers *workers)
{
    if (!dropout) {
        ql_matmul_t(a->view_a, m, dh, a->r, dx, lddx, true, workers);
        return;
    }
    for (size_t t = 0; t < m; t += DROPOUT_TOKENS) {
        size_t tokens = smaller(m - t, DROPOUT_TOKENS);
        ql_matmul_t(a->view_a, tokens, dh + t * a->r, a->r, dense, a->k, false, workers);
        run_rows(&(row_pass){.m = tokens, .cols = a->k, .dst = dx + t * lddx, .ldd = lddx, .src = dense,
                             .lds = a->k, .dropout = dropout, .first = t, .row = add_dropped_row},
                 workers);
    }
}

void ql_linear_backward(const ql_linear *layer, size_t m, const float *x, size_t ldx, const float *dy, size_t lddy,
                        const float *h, float *dx, size_t lddx, bool add_dx, const ql_dropout *dropout, float *work,
                        ql_workers *workers)
{
    if (dx)
        ql_matmul_t(layer->base, m, dy, lddy, dx, lddx, add_dx, workers);
    const ql_adapter *a = layer->adapter;
    if (!a || (!dx && !a->grad_a))
        return;
    ql_mark(workers, QL_PART_ADAPTERS);
    float *dh = work; /* [m][r] */
    ql_matmul_t(a->view_b, m, dy, lddy, dh, a->r, false, workers);
    scale(a, m, dh, workers);
    if (a->grad_a) {
        ql_outer_add(&(ql_outer){.m = m, .r = a->r, .cols = a->n, .s = h, .x = dy, .ldx = lddy, .out = a->grad_b,
                                 .stride_i = 1, .stride_j = a->r},
                     workers);
        ql_outer_add(&(ql_outer){.m = m, .r = a->r, .cols = a->k, .s = dh, .x = x, .ldx = ldx,
                                 .dropout = active(dropout), .out = a->grad_a, .stride_i = a->k, .stride_j = 1},
                     workers);
    }
    if (dx)
        add_input_grad(a, m, dh, dx, lddx, active(dropout), work + m * a->r, workers);
}

/* ---- merge ---- */

static float element(const float *master, const uint16_t *value, size_t i)
{
    return master ? master[i] : ql_f16_to_f32(value[i]);
}

void ql_adapter_add_rows(const ql_adapter *a, size_t row, size_t rows, float *dst, size_t ld)
{
    for (size_t o = 0; o < rows; o++) {
        for (size_t i = 0; i < a->r; i++) {
            float b = a->scaling * element(a->master_b, a->b, (row + o) * a->r + i);
            if (b == 0) /* adding 0 would turn a -0 of W into 0 */
                continue;
            for (size_t j = 0; j < a->k; j++)
                dst[o * ld + j] += b * element(a->master_a, a->a, i * a->k + j);
        }
    }
}

void ql_linear_merge_rows(const ql_linear *layer, size_t row, size_t rows, float *dst, size_t ld)
{
    ql_weight_dequantize(layer->base, row, rows, dst, ld);
    if (layer->adapter)
        ql_adapter_add_rows(layer->adapter, row, rows, dst, ld);
}
