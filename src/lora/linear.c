/* Forward and backward of base plus adapter. h keeps s * dropout(x) A^T, so dB needs no further scaling. */
#include <assert.h>
#include <string.h>

#include "base/arena.h"
#include "base/half.h"
#include "base/workers.h"
#include "lora/dora.h"
#include "lora/dropout.h"
#include "lora/outer.h"
#include "lora/ways.h"
#include "qlora/lora.h"
#include "quant/weight.h"

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

/* Generation: a token or a few, which the FP16 views multiply without panels. */
static bool few(size_t m, const ql_dropout *dropout)
{
    return m < QL_WAYS_TOKENS && !dropout;
}

ql_scratch ql_linear_scratch(const ql_linear *layer, size_t m, size_t threads)
{
    ql_scratch need = ql_matmul_scratch(layer->base, m, threads);
    if (!layer->adapter)
        return need;
    if (layer->adapter->dora)
        return ql_dora_scratch(layer, m, threads);
    size_t most = smaller(m, QL_WAYS_TOKENS - 1);
    need = ql_scratch_max(need, ql_matmul_scratch(layer->adapter->view_a, most, threads));
    return ql_scratch_max(need, ql_matmul_scratch(layer->adapter->view_b, most, threads));
}

/* What ql_linear_work() measures. */
typedef struct layer_work {
    float *panels, *low, *wide; /* of ql_ways; [m][r]; [DROPOUT_TOKENS][k] under a dropout */
} layer_work;

static layer_work carve(ql_arena *arena, const ql_adapter *a, size_t m, bool dropout)
{
    layer_work w = {0};
    if (dropout || m >= QL_WAYS_TOKENS)
        w.panels = ql_take(arena, ql_ways_work(a), float);
    w.low = ql_take(arena, m * a->r, float);
    if (dropout)
        w.wide = ql_take(arena, smaller(m, DROPOUT_TOKENS) * a->k, float);
    return w;
}

size_t ql_linear_work(const ql_linear *layer, size_t m, float p)
{
    ql_arena arena = {0};
    if (layer->adapter && layer->adapter->dora)
        return ql_dora_pass_work(layer, m);
    if (layer->adapter)
        carve(&arena, layer->adapter, m, p > 0);
    return arena.used / sizeof(float);
}

static layer_work carve_at(float *work, const ql_adapter *a, size_t m, const ql_dropout *dropout)
{
    ql_arena arena = {.base = (char *)work};
    return carve(&arena, a, m, dropout != NULL);
}

/* ---- passes over rows, in blocks that go to threads ---- */

typedef struct row_pass {
    size_t m, cols;
    float *dst;
    size_t ldd;
    const float *bias; /* [cols], to fill rows with */
    float factor;      /* to scale rows by */
} row_pass;

static void fill_rows(void *ctx, size_t index, size_t worker)
{
    const row_pass *pass = ctx;
    (void)worker;
    for (size_t row = index * ROW_BLOCK; row < smaller(pass->m, (index + 1) * ROW_BLOCK); row++)
        memcpy(pass->dst + row * pass->ldd, pass->bias, pass->cols * sizeof *pass->bias);
}

static void scale_rows(void *ctx, size_t index, size_t worker)
{
    const row_pass *pass = ctx;
    (void)worker;
    for (size_t row = index * ROW_BLOCK; row < smaller(pass->m, (index + 1) * ROW_BLOCK); row++)
        for (size_t j = 0; j < pass->cols; j++)
            pass->dst[row * pass->ldd + j] *= pass->factor;
}

static void run_rows(ql_task *rows, row_pass *pass, ql_workers *workers)
{
    ql_parallel(workers, (pass->m + ROW_BLOCK - 1) / ROW_BLOCK, rows, pass);
}

/* low[m][r] *= s */
static void scale(const ql_adapter *a, size_t m, float *low, ql_workers *workers)
{
    run_rows(scale_rows, &(row_pass){.m = m, .cols = a->r, .dst = low, .ldd = a->r, .factor = a->scaling}, workers);
}

/* The base's product, forward or transposed, and what the adapter adds to it. */
static void multiply(const ql_linear *layer, bool transposed, size_t m, const float *x, size_t ldx, bool add,
                     const ql_ways_up *up, ql_workers *workers)
{
    ql_mark(workers, transposed ? QL_PART_BACKWARD : QL_PART_FORWARD);
    if (m >= QL_WAYS_TOKENS) {
        ql_matmul_then(layer->base, transposed, m, x, ldx, up->y, up->ldy, add, (ql_then){ql_ways_up_tile, up},
                       workers);
        return;
    }
    (transposed ? ql_matmul_t : ql_matmul)(layer->base, m, x, ldx, up->y, up->ldy, add, workers);
    ql_ways_up_tile(up, (ql_tile){0, m, 0, transposed ? layer->adapter->k : layer->adapter->n});
}

/* ---- forward ---- */

static void forward_few(const ql_adapter *a, size_t m, const float *x, size_t ldx, float *y, size_t ldy, float *h,
                        ql_workers *workers)
{
    ql_mark(workers, QL_PART_ADAPTERS);
    ql_matmul(a->view_a, m, x, ldx, h, a->r, false, workers);
    scale(a, m, h, workers);
    ql_matmul(a->view_b, m, h, a->r, y, ldy, true, workers);
}

static void forward_many(const ql_linear *layer, size_t m, const float *x, size_t ldx, float *y, size_t ldy,
                         float *h, const ql_dropout *dropout, float *work, ql_workers *workers)
{
    const ql_adapter *a = layer->adapter;
    layer_work own = carve_at(work, a, m, dropout);
    ql_mark(workers, QL_PART_ADAPTERS);
    ql_ways ways = ql_ways_make(a, false, own.panels, workers);
    size_t some = dropout ? DROPOUT_TOKENS : m;
    for (size_t t = 0; t < m; t += some)
        ql_ways_down(&ways, smaller(m - t, some), x + t * ldx, ldx, dropout, t, own.wide, h + t * a->r, workers);
    multiply(layer, false, m, x, ldx, layer->bias != NULL, &(ql_ways_up){&ways, h, y, ldy}, workers);
}

void ql_linear_forward(const ql_linear *layer, size_t m, const float *x, size_t ldx, float *y, size_t ldy,
                       float *h, const ql_dropout *dropout, float *work, ql_workers *workers)
{
    const ql_adapter *a = layer->adapter;
    assert(!a || (a->k == ql_weight_cols(layer->base) && a->n == ql_weight_rows(layer->base)));
    if (a && a->dora) {
        assert(!active(dropout));
        ql_dora_forward(layer, m, x, ldx, y, ldy, h, work, workers);
        return;
    }
    if (layer->bias)
        run_rows(fill_rows, &(row_pass){.m = m, .cols = ql_weight_rows(layer->base), .dst = y, .ldd = ldy,
                                        .bias = layer->bias},
                 workers);
    if (a && !few(m, active(dropout))) {
        forward_many(layer, m, x, ldx, y, ldy, h, active(dropout), work, workers);
        return;
    }
    ql_matmul(layer->base, m, x, ldx, y, ldy, layer->bias != NULL, workers);
    if (a)
        forward_few(a, m, x, ldx, y, ldy, h, workers);
}

/* ---- backward ---- */

static void add_gradients(const ql_linear *layer, size_t m, const float *x, size_t ldx, const float *dy, size_t lddy,
                          const float *h, const float *dh, const ql_dropout *dropout, ql_workers *workers)
{
    const ql_adapter *a = layer->adapter;
    ql_mark(workers, QL_PART_ADAPTERS);
    const ql_outer outers[] = {
        {.m = m, .r = a->r, .cols = a->n, .s = h, .x = dy, .ldx = lddy, .out = a->grad_b, .stride_i = 1,
         .stride_j = a->r},
        {.m = m, .r = a->r, .cols = a->k, .s = dh, .x = x, .ldx = ldx, .dropout = dropout, .out = a->grad_a,
         .stride_i = a->k, .stride_j = 1},
    };
    ql_outer_add(outers, 2, layer->base->kernel->bf16_inputs, workers);
}

/* dx += mask(dh A) of up to DROPOUT_TOKENS tokens, the first of which is token `first` of the batch. */
typedef struct masked_sum {
    const ql_ways *ways;
    const ql_dropout *dropout;
    size_t first, m;
    const float *dh;
    float *wide, *dx;
    size_t lddx;
} masked_sum;

static void masked_rows(void *ctx, size_t index, size_t worker)
{
    const masked_sum *sum = ctx;
    size_t k = sum->ways->adapter->k, row = index * ROW_BLOCK, end = smaller(sum->m, row + ROW_BLOCK);
    (void)worker;
    memset(sum->wide + row * k, 0, (end - row) * k * sizeof *sum->wide);
    ql_ways_up_tile(&(ql_ways_up){sum->ways, sum->dh, sum->wide, k}, (ql_tile){row, end - row, 0, k});
    for (; row < end; row++) {
        float *masked = sum->wide + row * k, *dx = sum->dx + row * sum->lddx;
        ql_dropout_apply(sum->dropout, sum->first + row, 0, k, masked, masked);
#pragma omp simd
        for (size_t j = 0; j < k; j++)
            dx[j] += masked[j];
    }
}

static void add_masked(const ql_ways *ways, size_t m, const float *dh, float *dx, size_t lddx,
                       const ql_dropout *dropout, float *wide, ql_workers *workers)
{
    for (size_t t = 0; t < m; t += DROPOUT_TOKENS) {
        masked_sum sum = {ways, dropout, t, smaller(m - t, DROPOUT_TOKENS), dh + t * ways->adapter->r, wide,
                          dx + t * lddx, lddx};
        ql_parallel(workers, (sum.m + ROW_BLOCK - 1) / ROW_BLOCK, masked_rows, &sum);
    }
}

/* dh = s * dy B, which stays in `dh`, and dx. */
static void backward_few(const ql_linear *layer, size_t m, const float *dy, size_t lddy, float *dh, float *dx,
                         size_t lddx, bool add_dx, ql_workers *workers)
{
    const ql_adapter *a = layer->adapter;
    ql_matmul_t(a->view_b, m, dy, lddy, dh, a->r, false, workers);
    scale(a, m, dh, workers);
    if (!dx)
        return;
    ql_matmul_t(layer->base, m, dy, lddy, dx, lddx, add_dx, workers);
    ql_matmul_t(a->view_a, m, dh, a->r, dx, lddx, true, workers);
}

static void backward_many(const ql_linear *layer, size_t m, const float *dy, size_t lddy, const layer_work *own,
                          float *dx, size_t lddx, bool add_dx, const ql_dropout *dropout, ql_workers *workers)
{
    ql_mark(workers, QL_PART_ADAPTERS);
    ql_ways ways = ql_ways_make(layer->adapter, true, own->panels, workers);
    ql_ways_down(&ways, m, dy, lddy, NULL, 0, NULL, own->low, workers);
    if (dx && !dropout)
        multiply(layer, true, m, dy, lddy, add_dx, &(ql_ways_up){&ways, own->low, dx, lddx}, workers);
    if (!dx || !dropout)
        return;
    ql_mark(workers, QL_PART_BACKWARD);
    ql_matmul_t(layer->base, m, dy, lddy, dx, lddx, add_dx, workers);
    ql_mark(workers, QL_PART_ADAPTERS);
    add_masked(&ways, m, own->low, dx, lddx, dropout, own->wide, workers);
}

void ql_linear_backward(const ql_linear *layer, size_t m, const float *x, size_t ldx, const float *dy, size_t lddy,
                        const float *h, float *dx, size_t lddx, bool add_dx, const ql_dropout *dropout, float *work,
                        ql_workers *workers)
{
    const ql_adapter *a = layer->adapter;
    if (!a) {
        if (dx)
            ql_matmul_t(layer->base, m, dy, lddy, dx, lddx, add_dx, workers);
        return;
    }
    dropout = active(dropout);
    if (a->dora) {
        assert(!dropout);
        ql_dora_backward(layer, m, x, ldx, dy, lddy, h, dx, lddx, add_dx, work, workers);
        return;
    }
    layer_work own = carve_at(work, a, m, dropout);
    if (few(m, dropout))
        backward_few(layer, m, dy, lddy, own.low, dx, lddx, add_dx, workers);
    else
        backward_many(layer, m, dy, lddy, &own, dx, lddx, add_dx, dropout, workers);
    if (a->grad_a)
        add_gradients(layer, m, x, ldx, dy, lddy, h, own.low, dropout, workers);
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
        if (a->dora)
            ql_dora_scale_row(a, row + o, dst + o * ld);
    }
}

void ql_linear_merge_rows(const ql_linear *layer, size_t row, size_t rows, float *dst, size_t ld)
{
    ql_weight_dequantize(layer->base, row, rows, dst, ld);
    if (layer->adapter)
        ql_adapter_add_rows(layer->adapter, row, rows, dst, ld);
}
