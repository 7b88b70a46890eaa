#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "base/workers.h"
#include "model/ops.h"
#include "model/ops_kernels.h"
#include "quant/sweep.h"
#include "quant/weight.h"

/* Logits of a few hundred words at a time become exponentials in the cache and are multiplied back at once. The largest
 * logit of a token is not known by then, but whatever is not far from it serves as well in exp(logit - shift): the
 * target's, a dot product beforehand. Where the largest turns out to be too far away, the chunk is done again with it.
 * The target's own share of the gradient, which cancels most of the others, is added apart and in fp32. */
enum { MOST_ROWS = 256, LEAST_ROWS = 16, ROWS_STEP = 32, MOST_LOGITS = 1 << 16 /* at a time */ };
static const float furthest_below = 40, furthest_above = 60; /* a float's range is 88, and some for the sums */
static const float no_logit = -FLT_MAX;                      /* whose exponential is 0 */

typedef struct chunk {
    const ql_loss *loss;
    const ql_row_kernels *kernels;
    ql_workers *workers;
    size_t rows, hidden, parts;
    float *x, *dx;      /* [rows][hidden]; [parts][rows][hidden] */
    size_t *token;      /* [rows] where each row comes from */
    float *shift;       /* [rows] */
    float *logit;       /* [rows] the target's, capped */
    ql_exp_sum *others; /* [parts][rows] of the other words */
    double *row_loss;   /* [rows]; NaN for logits that are not finite */
    bool *far;          /* [rows] whether the shift was */
} chunk;

static size_t chunk_rows(const ql_weight *head, size_t m)
{
    size_t rows = MOST_LOGITS / ql_sweep_block(head);
    rows = rows < LEAST_ROWS ? LEAST_ROWS : rows > MOST_ROWS ? MOST_ROWS : rows;
    return rows < m ? rows : m;
}

static chunk carve(ql_arena *arena, const ql_weight *head, size_t m, bool gradient)
{
    size_t rows = chunk_rows(head, m);
    chunk c = {.hidden = ql_weight_cols(head), .parts = ql_sweep_parts(head)};
    c.x = ql_take(arena, rows * c.hidden, float);
    c.token = ql_take(arena, rows, size_t);
    c.shift = ql_take(arena, rows, float);
    c.logit = ql_take(arena, rows, float);
    c.others = ql_take(arena, c.parts * rows, ql_exp_sum);
    c.row_loss = ql_take(arena, rows, double);
    c.far = ql_take(arena, rows, bool);
    c.dx = gradient ? ql_take(arena, c.parts * rows * c.hidden, float) : NULL;
    return c;
}

size_t ql_loss_buffer_bytes(const ql_weight *head, size_t m, bool gradient)
{
    ql_arena arena = {0};
    carve(&arena, head, m, gradient);
    return arena.used;
}

ql_scratch ql_loss_scratch(const ql_weight *head, size_t m)
{
    ql_scratch need = ql_sweep_scratch(head, chunk_rows(head, m));
    return ql_scratch_max(need, (ql_scratch){.worker = ql_weight_cols(head) * sizeof(float)}); /* of a row of it */
}

static size_t target_of(const chunk *c, size_t row)
{
    size_t target = (size_t)c->loss->target[c->token[row]];
    assert(target < ql_weight_rows(c->loss->head));
    return target;
}

static void clear_row(const chunk *c, size_t row)
{
    for (size_t p = 0; p < c->parts; p++)
        c->others[p * c->rows + row] = (ql_exp_sum){.max = -INFINITY};
}

/* A row of x, and about what its target's logit will be. */
static void gather_row(void *ctx, size_t row, size_t worker)
{
    chunk *c = ctx;
    const ql_loss *loss = c->loss;
    float *x = c->x + row * c->hidden, *w = ql_worker_scratch(c->workers, worker), about;
    memcpy(x, loss->x + c->token[row] * loss->ldx, c->hidden * sizeof *x);
    ql_weight_dequantize(loss->head, target_of(c, row), 1, w, c->hidden);
    about = c->kernels->dot(c->hidden, x, w);
    if (loss->softcap > 0)
        c->kernels->softcap(1, &about, loss->softcap);
    c->shift[row] = isfinite(about) ? about : 0;
    clear_row(c, row);
}

/* Logits in, what the gradient is made of out: exp(logit - shift), for capped ones times the cap's slope. */
static void soften(const chunk *c, size_t row, size_t count, float *logits, float *target, ql_exp_sum *sum)
{
    const ql_row_kernels *k = c->kernels;
    float cap = c->loss->softcap, shift = c->shift[row];
    bool gradient = c->loss->dx, rough = c->loss->head->kernel->bf16_inputs;
    if (cap > 0) {
        sum->bad |= !k->all_finite(count, logits);
        k->softcap(count, logits, cap);
    }
    if (target) {
        c->logit[row] = *target;
        *target = no_logit;
    }
    k->exp_sum(count, logits, shift, gradient && cap <= 0, rough, sum);
    if (cap <= 0 || !gradient)
        return;
    if (target)
        *target = 0;
    k->softcap_exp_slope(count, logits, cap, shift);
    if (target)
        *target = 0;
}

static void soften_row(const void *self, size_t part, size_t row, size_t first, size_t count, float *y)
{
    const chunk *c = self;
    size_t at = target_of(c, row) - first; /* wraps below */
    soften(c, row, count, y, at < count ? y + at : NULL, &c->others[part * c->rows + row]);
}

/* log(others + exp(own)) - own: near 0 by what the others are, which is little. */
static double loss_of(double others, double own)
{
    return own > -30 ? log1p(others * exp(-own)) : log(others + exp(own)) - own;
}

/* The row's loss, dx from the parts' shares, and whether the shift was too far away for either. */
static void finish_row(void *ctx, size_t row, size_t worker)
{
    chunk *c = ctx;
    const ql_loss *loss = c->loss;
    ql_exp_sum all = {.max = c->logit[row], .bad = !isfinite(c->logit[row])};
    for (size_t p = 0; p < c->parts; p++) {
        const ql_exp_sum *part = &c->others[p * c->rows + row];
        all.sum += part->sum;
        all.bad |= part->bad;
        all.max = part->max > all.max ? part->max : all.max;
    }
    clear_row(c, row);
    float above = all.max - c->shift[row];
    c->far[row] = !all.bad && !(above >= -furthest_below && above <= furthest_above);
    double own = (double)c->logit[row] - (double)c->shift[row];
    c->row_loss[row] = all.bad ? NAN : loss_of(all.sum, own);
    if (c->far[row])
        c->shift[row] = all.max;
    if (!loss->dx || all.bad || c->far[row])
        return;
    double total = all.sum + exp(own), share = loss->softcap > 0 ? (double)c->logit[row] / (double)loss->softcap : 0;
    float *dx = loss->dx + c->token[row] * loss->lddx, *w = ql_worker_scratch(c->workers, worker);
    memcpy(dx, c->dx + row * c->hidden, c->hidden * sizeof *dx);
    for (size_t p = 1; p < c->parts; p++)
        c->kernels->add(c->hidden, c->dx + (p * c->rows + row) * c->hidden, dx);
    c->kernels->scale(c->hidden, dx, (float)(loss->grad_scale / total));
    ql_weight_dequantize(loss->head, target_of(c, row), 1, w, c->hidden);
    c->kernels->add_scaled(c->hidden, (float)(-loss->grad_scale * all.sum / total * (1 - share * share)), w, dx);
}

static bool any_far(const chunk *c)
{
    for (size_t r = 0; r < c->rows; r++)
        if (c->far[r])
            return true;
    return false;
}

static void run_chunk(chunk *c, ql_loss_sum *out)
{
    const ql_loss *loss = c->loss;
    ql_sweep sweep = {loss->head, c->rows, c->x, c->hidden, soften_row, c, loss->dx ? c->dx : NULL};
    ql_parallel(c->workers, c->rows, gather_row, c);
    do {
        ql_sweep_run(&sweep, c->workers);
        ql_parallel(c->workers, c->rows, finish_row, c);
    } while (any_far(c));
    for (size_t r = 0; r < c->rows; r++) {
        if (isnan(c->row_loss[r]) && out->first_bad == loss->m)
            out->first_bad = c->token[r];
        out->sum += c->row_loss[r];
        if (loss->token_loss)
            loss->token_loss[c->token[r]] = (float)c->row_loss[r];
    }
    out->count += c->rows;
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
    chunk c = carve(&arena, loss->head, loss->m, loss->dx);
    size_t rows = even_rows(loss);
    c.loss = loss;
    c.workers = workers;
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
            run_chunk(&c, &out);
    }
    return out;
}

void ql_softcap(float *x, size_t n, float cap)
{
    ql_ops_select(ql_cpu_features())->rows->softcap(n, x, cap);
}
