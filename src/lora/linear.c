/* Forward and backward of base plus adapter. h keeps s * dropout(x) A^T, so dB needs no further scaling. Layers with a
 * dropout or with DoRA go one by one. */
#include <assert.h>
#include <string.h>

#include "base/arena.h"
#include "base/half.h"
#include "base/sizes.h"
#include "base/workers.h"
#include "lora/dora.h"
#include "lora/dropout.h"
#include "lora/group.h"
#include "lora/outer.h"
#include "lora/ways.h"
#include "qlora/lora.h"
#include "quant/weight.h"

/* Tokens whose dropout(x) is held at once. */
enum { DROPOUT_TOKENS = 128, ROW_BLOCK = 16 };

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* ---- under a dropout ---- */

typedef struct dropped_work {
    float *panels, *low, *wide; /* of ql_ways; [m][r]; [DROPOUT_TOKENS][k] */
} dropped_work;

static dropped_work carve(ql_arena *arena, const ql_adapter *a, size_t m)
{
    return (dropped_work){ql_take(arena, ql_ways_work(a), float), ql_take(arena, m * a->r, float),
                          ql_take(arena, ql_least(m, DROPOUT_TOKENS) * a->k, float)};
}

static dropped_work carve_at(float *work, const ql_adapter *a, size_t m)
{
    ql_arena arena = {.base = (char *)work};
    return carve(&arena, a, m);
}

typedef struct finish {
    const ql_ways_up *up;
    const float *bias; /* NULL: none */
} finish;

/* Up, and the bias, in a rectangle of the base's product. */
static void finish_tile(const void *self, ql_tile t)
{
    const finish *f = self;
    ql_ways_up_tile(f->up, t);
    for (size_t row = t.row; f->bias && row < t.row + t.rows; row++)
        for (size_t j = t.col; j < t.col + t.cols; j++)
            f->up->y[row * f->up->ldy + j] += f->bias[j];
}

static void dropped_forward(const ql_linear_use *use, size_t m, const float *x, size_t ldx, float *work,
                            ql_workers *workers)
{
    const ql_linear *layer = use->layer;
    const ql_adapter *a = layer->adapter;
    dropped_work own = carve_at(work, a, m);
    ql_mark(workers, QL_PART_ADAPTERS);
    ql_ways ways = ql_ways_at(a, false, own.panels);
    ql_ways_fill(&ways, 1, workers);
    for (size_t t = 0; t < m; t += DROPOUT_TOKENS) {
        ql_ways_down down = {&ways, x + t * ldx, ldx, use->h + t * a->r, use->dropout, t, own.wide};
        ql_ways_go_down(&down, 1, ql_least(m - t, DROPOUT_TOKENS), workers);
    }
    ql_mark(workers, QL_PART_FORWARD);
    ql_ways_up up = {&ways, use->h, use->y, use->ldy};
    finish last = {&up, layer->bias};
    if (m >= QL_WAYS_TOKENS) {
        ql_matmul_then(layer->base, false, m, x, ldx, use->y, use->ldy, false, (ql_then){finish_tile, &last}, workers);
        return;
    }
    ql_matmul(layer->base, m, x, ldx, use->y, use->ldy, false, workers);
    finish_tile(&last, (ql_tile){0, m, 0, a->n});
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
    size_t k = sum->ways->adapter->k, row = index * ROW_BLOCK, end = ql_least(sum->m, row + ROW_BLOCK);
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
        masked_sum sum = {ways, dropout, t, ql_least(m - t, DROPOUT_TOKENS), dh + t * ways->adapter->r, wide,
                          dx + t * lddx, lddx};
        ql_parallel(workers, (sum.m + ROW_BLOCK - 1) / ROW_BLOCK, masked_rows, &sum);
    }
}

static void dropped_backward(const ql_linear_use *use, size_t m, const float *x, size_t ldx, float *dx, size_t lddx,
                             bool add_dx, float *work, ql_workers *workers)
{
    const ql_linear *layer = use->layer;
    const ql_adapter *a = layer->adapter;
    dropped_work own = carve_at(work, a, m);
    ql_mark(workers, QL_PART_ADAPTERS);
    ql_ways ways = ql_ways_at(a, true, own.panels);
    ql_ways_fill(&ways, 1, workers);
    ql_ways_go_down(&(ql_ways_down){.ways = &ways, .x = use->dy, .ldx = use->ldy, .low = own.low}, 1, m, workers);
    if (dx) {
        ql_mark(workers, QL_PART_BACKWARD);
        ql_matmul_t(layer->base, m, use->dy, use->ldy, dx, lddx, add_dx, workers);
        ql_mark(workers, QL_PART_ADAPTERS);
        add_masked(&ways, m, own.low, dx, lddx, use->dropout, own.wide, workers);
    }
    if (!a->grad_a)
        return;
    const ql_outer outers[] = {
        {.m = m, .r = a->r, .cols = a->n, .s = use->h, .x = use->dy, .ldx = use->ldy, .out = a->grad_b, .stride_i = 1,
         .stride_j = a->r},
        {.m = m, .r = a->r, .cols = a->k, .s = own.low, .x = x, .ldx = ldx, .dropout = use->dropout, .out = a->grad_a,
         .stride_i = a->k, .stride_j = 1},
    };
    ql_outer_add(outers, 2, layer->base->kernel->bf16_inputs, workers);
}

/* ---- the way that a layer goes ---- */

static bool has_dora(const ql_linear *layer)
{
    return layer->adapter && layer->adapter->dora;
}

static bool drops(const ql_linear_use *use)
{
    return use->layer->adapter && use->dropout && use->dropout->p > 0;
}

static bool one_by_one(const ql_linear_use *uses, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (has_dora(uses[i].layer) || drops(&uses[i]))
            return true;
    return false;
}

static void forward_one(const ql_linear_use *use, size_t m, const float *x, size_t ldx, float *work,
                        ql_workers *workers)
{
    if (has_dora(use->layer)) {
        assert(!drops(use));
        ql_dora_forward(use->layer, m, x, ldx, use->y, use->ldy, use->h, work, workers);
    } else if (drops(use)) {
        dropped_forward(use, m, x, ldx, work, workers);
    } else {
        ql_group_forward(use, 1, m, (ql_group_x){.wide = x, .ld = ldx}, work, workers);
    }
}

void ql_linears_forward(const ql_linear_use *uses, size_t count, size_t m, const float *x, size_t ldx, float *work,
                        ql_workers *workers)
{
    if (!one_by_one(uses, count)) {
        ql_group_forward(uses, count, m, (ql_group_x){.wide = x, .ld = ldx}, work, workers);
        return;
    }
    for (size_t i = 0; i < count; i++)
        forward_one(&uses[i], m, x, ldx, work, workers);
}

static void backward_one(const ql_linear_use *use, size_t m, const float *x, size_t ldx, float *dx, size_t lddx,
                         bool add_dx, float *work, ql_workers *workers)
{
    if (has_dora(use->layer)) {
        assert(!drops(use));
        ql_dora_backward(use->layer, m, x, ldx, use->dy, use->ldy, use->h, dx, lddx, add_dx, work, workers);
    } else if (drops(use)) {
        dropped_backward(use, m, x, ldx, dx, lddx, add_dx, work, workers);
    } else {
        ql_group_backward(use, 1, m, (ql_group_x){.wide = x, .ld = ldx}, dx, lddx, add_dx, NULL, work, workers);
    }
}

void ql_linears_backward(const ql_linear_use *uses, size_t count, size_t m, const float *x, size_t ldx, float *dx,
                         size_t lddx, bool add_dx, float *work, ql_workers *workers)
{
    if (!one_by_one(uses, count)) {
        ql_group_backward(uses, count, m, (ql_group_x){.wide = x, .ld = ldx}, dx, lddx, add_dx, NULL, work, workers);
        return;
    }
    for (size_t i = 0; i < count; i++)
        backward_one(&uses[i], m, x, ldx, dx, lddx, add_dx || i > 0, work, workers);
}

/* ---- x in bf16 ---- */

bool ql_linears_take_bf16(const ql_linear *const *layers, size_t count, size_t m)
{
    for (size_t i = 0; i < count; i++)
        if (has_dora(layers[i]))
            return false;
    return ql_group_takes_bf16(layers, count, m);
}

bool ql_linears_give_bf16(const ql_linear *const *layers, size_t count, size_t m)
{
    for (size_t i = 0; i < count; i++)
        if (layers[i]->bias)
            return false;
    return ql_linears_take_bf16(layers, count, m);
}

void ql_linears_forward_bf16(const ql_linear_use *uses, size_t count, size_t m, const uint16_t *x, size_t ldx,
                             float *work, ql_workers *workers)
{
    assert(!one_by_one(uses, count));
    ql_group_forward(uses, count, m, (ql_group_x){.narrow = x, .ld = ldx}, work, workers);
}

void ql_linears_backward_bf16(const ql_linear_use *uses, size_t count, size_t m, const uint16_t *x, size_t ldx,
                              float *dx, size_t lddx, bool add_dx, float *work, ql_workers *workers)
{
    assert(!one_by_one(uses, count));
    ql_group_backward(uses, count, m, (ql_group_x){.narrow = x, .ld = ldx}, dx, lddx, add_dx, NULL, work, workers);
}

/* ---- x that is made late ---- */

bool ql_linears_may_be_late(const ql_linear_use *uses, size_t count)
{
    return !one_by_one(uses, count);
}

void ql_linears_backward_late(const ql_linear_use *uses, size_t count, size_t m, const float *x, const uint16_t *narrow,
                              size_t ldx, float *dx, size_t lddx, const ql_late *late, float *work, ql_workers *workers)
{
    assert(dx && !one_by_one(uses, count));
    ql_group_backward(uses, count, m, (ql_group_x){x, narrow, ldx}, dx, lddx, false, late, work, workers);
}

/* ---- what they need ---- */

/* Every layer alone, and all together: only a group of none with DoRA ever goes so. */
ql_scratch ql_linears_scratch(const ql_linear *const *layers, size_t count, size_t m, size_t threads)
{
    ql_scratch need = {0};
    bool dora = false;
    for (size_t i = 0; i < count; i++) {
        dora = dora || has_dora(layers[i]);
        need = ql_scratch_max(need, ql_matmul_scratch(layers[i]->base, m, threads)); /* all that a dropout needs */
        need = ql_scratch_max(need, has_dora(layers[i]) ? ql_dora_scratch(layers[i], m, threads)
                                                        : ql_group_scratch(&layers[i], 1, m, threads));
    }
    return dora || count == 1 ? need : ql_scratch_max(need, ql_group_scratch(layers, count, m, threads));
}

size_t ql_linears_work(const ql_linear *const *layers, size_t count, size_t m, float p)
{
    size_t need = 0;
    bool dora = false;
    for (size_t i = 0; i < count; i++) {
        ql_arena arena = {0};
        dora = dora || has_dora(layers[i]);
        if (layers[i]->adapter && p > 0)
            carve(&arena, layers[i]->adapter, m);
        need = larger(need, arena.used / sizeof(float));
        need = larger(need, has_dora(layers[i]) ? ql_dora_pass_work(layers[i], m) : ql_group_work(&layers[i], 1, m));
    }
    return dora || count == 1 ? need : larger(need, ql_group_work(layers, count, m));
}

/* ---- a layer alone ---- */

ql_scratch ql_linear_scratch(const ql_linear *layer, size_t m, size_t threads)
{
    return ql_linears_scratch(&layer, 1, m, threads);
}

size_t ql_linear_work(const ql_linear *layer, size_t m, float p)
{
    return ql_linears_work(&layer, 1, m, p);
}

void ql_linear_forward(const ql_linear *layer, size_t m, const float *x, size_t ldx, float *y, size_t ldy,
                       float *h, const ql_dropout *dropout, float *work, ql_workers *workers)
{
    ql_linear_use use = {.layer = layer, .y = y, .ldy = ldy, .h = h, .dropout = dropout};
    ql_linears_forward(&use, 1, m, x, ldx, work, workers);
}

void ql_linear_backward(const ql_linear *layer, size_t m, const float *x, size_t ldx, const float *dy, size_t lddy,
                        const float *h, float *dx, size_t lddx, bool add_dx, const ql_dropout *dropout, float *work,
                        ql_workers *workers)
{
    ql_linear_use use = {.layer = layer, .dy = dy, .ldy = lddy, .h = (float *)(uintptr_t)h, .dropout = dropout};
    ql_linears_backward(&use, 1, m, x, ldx, dx, lddx, add_dx, work, workers);
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
