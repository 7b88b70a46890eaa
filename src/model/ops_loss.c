#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "base/half.h"
#include "base/workers.h"
#include "model/ops.h"
#include "model/ops_kernels.h"
#include "quant/matmul.h"

/* Logits live for one chunk of tokens: 64 MB of them, but at least 128 rows, so that enough tokens share the
 * decoding of the head (with 152k words 64 rows took a quarter longer), and at most 256. */
enum { LOGITS_BYTES = 64 << 20, MIN_ROWS = 128, MAX_ROWS = 256, ROWS_STEP = 32 };

typedef struct chunk {
    const ql_loss *loss;
    const ql_row_kernels *kernels;
    size_t rows, vocabulary, hidden;
    float *x, *logits; /* [rows][hidden], also dx; [rows][vocabulary] */
    size_t *token;     /* [rows] where each row comes from */
    double *row_loss;  /* [rows]; NaN for logits that are not finite */
    float *row_scale;  /* [rows] of the gradient */
    _Atomic uint32_t *highest; /* [rows] of the logits, as ordered() */
} chunk;

static size_t chunk_rows(const ql_weight *head, size_t m)
{
    size_t rows = LOGITS_BYTES / sizeof(float) / ql_weight_rows(head);
    rows = rows < MIN_ROWS ? MIN_ROWS : rows > MAX_ROWS ? MAX_ROWS : rows / 16 * 16;
    return rows < m ? rows : m;
}

static chunk carve(ql_arena *arena, const ql_weight *head, size_t m)
{
    size_t rows = chunk_rows(head, m);
    chunk c = {.vocabulary = ql_weight_rows(head), .hidden = ql_weight_cols(head)};
    c.x = ql_take(arena, rows * c.hidden, float);
    c.logits = ql_take(arena, rows * c.vocabulary, float);
    c.token = ql_take(arena, rows, size_t);
    c.row_loss = ql_take(arena, rows, double);
    c.row_scale = ql_take(arena, rows, float);
    c.highest = ql_take(arena, rows, _Atomic uint32_t);
    return c;
}

size_t ql_loss_buffer_bytes(const ql_weight *head, size_t m)
{
    ql_arena arena = {0};
    carve(&arena, head, m);
    return arena.used;
}

ql_scratch ql_loss_scratch(const ql_weight *head, size_t m, size_t threads)
{
    return ql_matmul_scratch(head, chunk_rows(head, m), threads);
}

/* Integers in the order of finite numbers; NOTHING is below and not_finite above them. */
enum { NOTHING = 0 };
static const uint32_t not_finite = UINT32_MAX;

static uint32_t ordered(float x)
{
    uint32_t u = ql_float_bits(x);
    return u >> 31 ? ~u : u | 0x80000000u;
}

static float unordered(uint32_t u)
{
    return ql_float_from_bits(u >> 31 ? u & 0x7fffffffu : ~u);
}

static void gather_row(void *ctx, size_t row, size_t worker)
{
    const chunk *c = ctx;
    (void)worker;
    memcpy(c->x + row * c->hidden, c->loss->x + c->token[row] * c->loss->ldx, c->hidden * sizeof(float));
    atomic_store(&c->highest[row], NOTHING);
}

/* The largest logits, of each rectangle while it is in the cache. A maximum is the same in any order. */
static void raise_highest(const void *self, ql_tile t)
{
    const chunk *c = self;
    for (size_t row = t.row; row < t.row + t.rows; row++) {
        float max, *logits = c->logits + row * c->vocabulary + t.col;
        bool finite = c->kernels->highest(t.cols, logits, &max);
        if (finite && c->loss->softcap > 0) {
            c->kernels->softcap(t.cols, logits, c->loss->softcap);
            c->kernels->highest(t.cols, logits, &max);
        }
        uint32_t here = finite ? ordered(max) : not_finite, there = atomic_load(&c->highest[row]);
        while (there < here && !atomic_compare_exchange_weak(&c->highest[row], &there, here))
            ;
    }
}

/* Logits in; the row's loss and, where a gradient is wanted, d(loss)/d(logits) out but for the factor row_scale, which
 * the product with the head leaves to scatter_row(): hidden numbers to scale instead of words. */
static void softmax_row(void *ctx, size_t row, size_t worker)
{
    const chunk *c = ctx;
    float *logits = c->logits + row * c->vocabulary, max = unordered(c->highest[row]);
    size_t target = (size_t)c->loss->target[c->token[row]];
    (void)worker;
    assert(target < c->vocabulary);
    if (c->highest[row] == not_finite) {
        c->row_loss[row] = NAN;
        return;
    }
    double distance = (double)max - (double)logits[target];
    bool capped = c->loss->softcap > 0;
    double sum = c->kernels->exp_sum(c->vocabulary, logits, max, c->loss->dx && !capped), slope = 1;
    c->row_loss[row] = log(sum) + distance;
    if (!c->loss->dx)
        return;
    if (capped) {
        double share = (double)logits[target] / (double)c->loss->softcap;
        slope = 1 - share * share;
        c->kernels->softcap_exp_slope(c->vocabulary, logits, c->loss->softcap, max);
    }
    logits[target] = (float)((double)logits[target] - sum * slope);
    c->row_scale[row] = (float)(c->loss->grad_scale / sum);
}

static void scatter_row(void *ctx, size_t row, size_t worker)
{
    const chunk *c = ctx;
    float *dx = c->loss->dx + c->token[row] * c->loss->lddx;
    (void)worker;
    memcpy(dx, c->x + row * c->hidden, c->hidden * sizeof *dx);
    c->kernels->scale(c->hidden, dx, c->row_scale[row]);
}

static void run_chunk(chunk *c, ql_loss_sum *out, ql_workers *workers)
{
    const ql_loss *loss = c->loss;
    ql_parallel(workers, c->rows, gather_row, c);
    ql_matmul_then(loss->head, false, c->rows, c->x, c->hidden, c->logits, c->vocabulary, false,
                   (ql_then){raise_highest, c}, workers);
    ql_parallel(workers, c->rows, softmax_row, c);
    for (size_t r = 0; r < c->rows; r++) {
        if (isnan(c->row_loss[r]) && out->first_bad == loss->m)
            out->first_bad = c->token[r];
        out->sum += c->row_loss[r];
        if (loss->token_loss)
            loss->token_loss[c->token[r]] = (float)c->row_loss[r];
    }
    out->count += c->rows;
    if (loss->dx) {
        ql_matmul_t(loss->head, c->rows, c->logits, c->vocabulary, c->x, c->hidden, false, workers);
        ql_parallel(workers, c->rows, scatter_row, c);
    }
    c->rows = 0;
}

/* Chunks of about the same size: a small last one would decode the head for few. */
static size_t even_rows(const ql_loss *loss)
{
    size_t most = chunk_rows(loss->head, loss->m), count = 0;
    for (size_t t = 0; t < loss->m; t++)
        count += loss->target[t] >= 0;
    size_t chunks = (count + most - 1) / most;
    size_t rows = chunks ? (count + chunks - 1) / chunks : 1;
    rows = (rows + ROWS_STEP - 1) / ROWS_STEP * ROWS_STEP;
    return rows < most ? rows : most;
}

ql_loss_sum ql_loss_run(const ql_loss *loss, void *buffer, ql_workers *workers)
{
    ql_loss_sum out = {.first_bad = loss->m};
    ql_arena arena = {.base = buffer};
    chunk c = carve(&arena, loss->head, loss->m);
    size_t rows = even_rows(loss);
    c.loss = loss;
    c.kernels = ql_ops_select(ql_cpu_features())->rows;
    for (size_t t = 0; t < loss->m; t++) {
        if (loss->target[t] >= 0) {
            c.token[c.rows++] = t;
        } else {
            if (loss->dx)
                memset(loss->dx + t * loss->lddx, 0, c.hidden * sizeof(float));
            if (loss->token_loss)
                loss->token_loss[t] = 0;
        }
        if (c.rows == rows || (c.rows && t + 1 == loss->m))
            run_chunk(&c, &out, workers);
    }
    return out;
}

void ql_softcap(float *x, size_t n, float cap)
{
    ql_ops_select(ql_cpu_features())->rows->softcap(n, x, cap);
}
