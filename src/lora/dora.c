/* DoRA over a linear layer. Of the norms
 *
 *     |W_n + s B_n A|^2 = |W_n|^2 + 2 s B_n (W_n A^T) + s^2 B_n (A A^T) B_n^T
 *
 * the first term never changes, and the others are two thin products: no row of W + s B A is formed. */
#include "lora/dora.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/half.h"
#include "base/sizes.h"
#include "base/workers.h"
#include "lora/dot.h"

enum { TOKENS = 256, ROWS = 64 }; /* taken at a time */

static size_t blocks(size_t count)
{
    return (count + ROWS - 1) / ROWS;
}

/* The layer as if it had a plain adapter; the copy of that lies in *adapter. */
static ql_linear plain(const ql_linear *layer, ql_adapter *adapter)
{
    *adapter = *layer->adapter;
    adapter->dora = false;
    return (ql_linear){.base = layer->base, .adapter = adapter};
}

/* ---- norms ---- */

typedef struct start_job {
    const ql_linear *layer;
    float *rows; /* [threads][k] */
    bool fresh;
} start_job;

static void start_rows(void *ctx, size_t index, size_t worker)
{
    const start_job *job = ctx;
    const ql_adapter *a = job->layer->adapter;
    float *x = job->rows + worker * a->k;
    for (size_t row = index * ROWS; row < ql_least(a->n, (index + 1) * ROWS); row++) {
        ql_weight_dequantize(job->layer->base, row, 1, x, a->k);
        a->base_square[row] = ql_dot(x, x, a->k);
        if (job->fresh)
            a->magnitude[row] = (float)sqrt(a->base_square[row]);
    }
}

ql_status ql_dora_start(const ql_linear *layer, bool fresh, ql_workers *workers, ql_error *err)
{
    const ql_adapter *a = layer->adapter;
    start_job job = {layer, calloc(workers ? ql_workers_count(workers) : 1, a->k * sizeof(float)), fresh};
    if (!job.rows)
        return ql_fail(err, QL_ERR_MEMORY, "rows of %zu elements: out of memory", a->k);
    ql_parallel(workers, blocks(a->n), start_rows, &job);
    free(job.rows);
    return QL_OK;
}

size_t ql_dora_work(const ql_adapter_shape *s)
{
    return s->rank * (s->in_features + s->out_features + s->rank);
}

typedef struct refresh_job {
    const ql_adapter *a;
    const float *cross; /* [r][n] A W^T */
    const float *gram;  /* [r][r] A A^T */
} refresh_job;

static void refresh_row(const refresh_job *job, size_t row)
{
    const ql_adapter *a = job->a;
    double linear = 0, quadratic = 0, s = a->scaling;
    for (size_t i = 0; i < a->r; i++) {
        float bi = ql_f16_to_f32(a->b[row * a->r + i]), sum = 0;
        for (size_t j = 0; j < a->r; j++)
            sum += ql_f16_to_f32(a->b[row * a->r + j]) * job->gram[i * a->r + j];
        linear += (double)bi * job->cross[i * a->n + row];
        quadratic += (double)bi * sum;
    }
    double all = a->base_square[row] + 2 * s * linear + s * s * quadratic;
    a->norm[row] = (float)sqrt(all > 0 ? all : 0);
    a->gain[row] = a->norm[row] > 0 ? a->magnitude[row] / a->norm[row] : 0;
}

static void refresh_rows(void *ctx, size_t index, size_t worker)
{
    const refresh_job *job = ctx;
    (void)worker;
    for (size_t row = index * ROWS; row < ql_least(job->a->n, (index + 1) * ROWS); row++)
        refresh_row(job, row);
}

void ql_dora_refresh(const ql_linear *layer, ql_workers *workers)
{
    const ql_adapter *a = layer->adapter;
    float *x = a->work, *cross = x + a->r * a->k, *gram = cross + a->r * a->n;
    for (size_t i = 0; i < a->r * a->k; i++)
        x[i] = ql_f16_to_f32(a->a[i]); /* what the products use */
    ql_matmul(layer->base, a->r, x, a->k, cross, a->n, false, workers);
    ql_matmul(a->view_a, a->r, x, a->k, gram, a->r, false, workers);
    refresh_job job = {a, cross, gram};
    ql_parallel(workers, blocks(a->n), refresh_rows, &job);
}

void ql_dora_scale_row(const ql_adapter *a, size_t row, float *x)
{
    float norm = (float)sqrt(ql_dot(x, x, a->k));
    if (norm == a->magnitude[row]) /* so fresh adapters change no bit */
        return;
    float gain = norm > 0 ? a->magnitude[row] / norm : 0;
    for (size_t j = 0; j < a->k; j++)
        x[j] *= gain;
}

/* ---- forward ---- */

typedef struct gain_job {
    const ql_linear *layer;
    float *y;
    size_t ldy;
} gain_job;

static void gain_row(void *ctx, size_t row, size_t worker)
{
    const gain_job *job = ctx;
    const ql_adapter *a = job->layer->adapter;
    const float *bias = job->layer->bias;
    float *y = job->y + row * job->ldy;
    (void)worker;
#pragma omp simd
    for (size_t i = 0; i < a->n; i++)
        y[i] *= a->gain[i];
    for (size_t i = 0; bias && i < a->n; i++)
        y[i] += bias[i];
}

void ql_dora_forward(const ql_linear *layer, size_t m, const float *x, size_t ldx, float *y, size_t ldy, float *h,
                     float *work, ql_workers *workers)
{
    ql_adapter adapter;
    ql_linear inner = plain(layer, &adapter);
    ql_linear_forward(&inner, m, x, ldx, y, ldy, h, NULL, work, workers);
    gain_job job = {layer, y, ldy};
    ql_parallel(workers, m, gain_row, &job);
}

/* ---- backward ---- */

/* What the backward pass works in. */
typedef struct part_work {
    float *u, *scaled, *h, *inner; /* [tokens][n], [tokens][n], [tokens][r]; of the plain layer */
} part_work;

static part_work carve(ql_arena *arena, const ql_linear *layer, size_t m)
{
    const ql_adapter *a = layer->adapter;
    ql_adapter adapter;
    ql_linear inner = plain(layer, &adapter);
    size_t tokens = ql_least(m, TOKENS);
    return (part_work){ql_take(arena, tokens * a->n, float), ql_take(arena, tokens * a->n, float),
                       ql_take(arena, tokens * a->r, float), ql_take(arena, ql_linear_work(&inner, tokens, 0), float)};
}

size_t ql_dora_pass_work(const ql_linear *layer, size_t m)
{
    ql_arena arena = {0};
    ql_adapter adapter;
    ql_linear inner = plain(layer, &adapter);
    carve(&arena, layer, m);
    size_t forward = ql_linear_work(&inner, m, 0), backward = arena.used / sizeof(float);
    return forward > backward ? forward : backward;
}

ql_scratch ql_dora_scratch(const ql_linear *layer, size_t m, size_t threads)
{
    const ql_adapter *a = layer->adapter;
    ql_adapter adapter;
    ql_linear inner = plain(layer, &adapter);
    ql_scratch need =
        ql_scratch_max(ql_linear_scratch(&inner, m, threads), ql_matmul_scratch(layer->base, a->r, threads));
    return ql_scratch_max(need, ql_matmul_scratch(a->view_a, a->r, threads));
}

/* Some tokens of the backward pass, columns of which go to threads. */
typedef struct part {
    const ql_adapter *a;
    size_t tokens, lddy;
    const float *dy, *u; /* u[tokens][n] = W x + s B A x */
    float *scaled;       /* [tokens][n] g dy */
} part;

static void part_columns(void *ctx, size_t index, size_t worker)
{
    const part *p = ctx;
    const ql_adapter *a = p->a;
    size_t first = index * ROWS, cols = ql_least(ROWS, a->n - first);
    float sum[ROWS] = {0};
    (void)worker;
    for (size_t t = 0; t < p->tokens; t++) {
        const float *dy = p->dy + t * p->lddy + first, *u = p->u + t * a->n + first;
        float *scaled = p->scaled + t * a->n + first;
        for (size_t i = 0; i < cols; i++) {
            sum[i] += dy[i] * u[i];
            scaled[i] = dy[i] * a->gain[first + i];
        }
    }
    for (size_t i = 0; a->grad_m && i < cols; i++)
        if (a->norm[first + i] > 0)
            a->grad_m[first + i] += sum[i] / a->norm[first + i];
}

void ql_dora_backward(const ql_linear *layer, size_t m, const float *x, size_t ldx, const float *dy, size_t lddy,
                      const float *h, float *dx, size_t lddx, bool add_dx, float *work, ql_workers *workers)
{
    const ql_adapter *a = layer->adapter;
    ql_adapter adapter;
    ql_linear inner = plain(layer, &adapter);
    ql_arena arena = {.base = (char *)work};
    part_work own = carve(&arena, layer, m);
    for (size_t t = 0; t < m; t += TOKENS) {
        part p = {.a = a, .tokens = ql_least(m - t, TOKENS), .dy = dy + t * lddy, .lddy = lddy, .u = own.u,
                  .scaled = own.scaled};
        ql_linear_forward(&inner, p.tokens, x + t * ldx, ldx, own.u, a->n, own.h, NULL, own.inner, workers);
        ql_parallel(workers, blocks(a->n), part_columns, &p);
        ql_linear_backward(&inner, p.tokens, x + t * ldx, ldx, own.scaled, a->n, h + t * a->r,
                           dx ? dx + t * lddx : NULL, lddx, add_dx, NULL, own.inner, workers);
    }
}
