#include "lora/ways.h"

#include <assert.h>

#include "base/cpu.h"
#include "base/workers.h"
#include "lora/dropout.h"

enum { LANES = QL_THIN_LANES, CHUNK = 256, TOKENS = 12 }; /* features, tokens of a piece of work */

static size_t pieces(size_t length, size_t piece)
{
    return (length + piece - 1) / piece;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t down_floats(const ql_adapter *a)
{
    return ql_thin_panel(a->k > a->n ? a->k : a->n, a->r);
}

size_t ql_ways_work(const ql_adapter *a)
{
    return down_floats(a) + ql_thin_panel(a->r, a->k > a->n ? a->k : a->n);
}

/* ---- panels ---- */

/* Features [from, to) of A[r][k]: down it is A^T, up A itself. */
static void pack_a(const ql_ways *w, size_t from, size_t to)
{
    const ql_adapter *a = w->adapter;
    if (w->backward)
        for (size_t j = from; j < to; j += LANES)
            w->kernels->widen(a->r, smaller(LANES, to - j), a->a + j, a->k, w->up + j * a->r);
    else
        for (size_t i = 0; i < a->r; i += LANES)
            w->kernels->turn(smaller(LANES, a->r - i), to - from, a->a + i * a->k + from, a->k,
                             w->down + i * a->k + from * LANES);
}

/* Features [from, to) of B[n][r]: down it is B itself, up B^T. */
static void pack_b(const ql_ways *w, size_t from, size_t to)
{
    const ql_adapter *a = w->adapter;
    if (w->backward)
        for (size_t i = 0; i < a->r; i += LANES)
            w->kernels->widen(to - from, smaller(LANES, a->r - i), a->b + from * a->r + i, a->r,
                              w->down + i * a->n + from * LANES);
    else
        for (size_t o = from; o < to; o += LANES)
            w->kernels->turn(smaller(LANES, to - o), a->r, a->b + o * a->r, a->r, w->up + o * a->r);
}

static void pack_piece(void *ctx, size_t index, size_t worker)
{
    const ql_ways *w = ctx;
    size_t of_a = pieces(w->adapter->k, CHUNK);
    (void)worker;
    if (index < of_a)
        pack_a(w, index * CHUNK, smaller(w->adapter->k, (index + 1) * CHUNK));
    else
        pack_b(w, (index - of_a) * CHUNK, smaller(w->adapter->n, (index - of_a + 1) * CHUNK));
}

ql_ways ql_ways_make(const ql_adapter *a, bool backward, float *work, ql_workers *workers)
{
    ql_ways w = {.kernels = ql_thin_select(ql_cpu_features()), .adapter = a, .backward = backward, .down = work,
                 .up = work + down_floats(a)};
    ql_parallel(workers, pieces(a->k, CHUNK) + pieces(a->n, CHUNK), pack_piece, &w);
    return w;
}

/* ---- down and up ---- */

typedef struct down_job {
    const ql_ways *ways;
    size_t m, width;
    const float *x;
    size_t ldx;
    const ql_dropout *dropout;
    size_t first;
    float *dropped, *low;
} down_job;

static void down_tokens(void *ctx, size_t index, size_t worker)
{
    const down_job *job = ctx;
    const ql_adapter *a = job->ways->adapter;
    size_t token = index * TOKENS, tokens = smaller(TOKENS, job->m - token), ldx = job->ldx;
    const float *x = job->x + token * ldx;
    (void)worker;
    if (job->dropout) {
        float *dropped = job->dropped + token * job->width;
        for (size_t t = 0; t < tokens; t++)
            ql_dropout_apply(job->dropout, job->first + token + t, 0, job->width, x + t * ldx,
                             dropped + t * job->width);
        x = dropped, ldx = job->width;
    }
    job->ways->kernels->project(tokens, job->width, a->r, x, ldx, job->ways->down, a->scaling,
                                job->low + token * a->r);
}

void ql_ways_down(const ql_ways *ways, size_t m, const float *x, size_t ldx, const ql_dropout *dropout, size_t first,
                  float *dropped, float *low, ql_workers *workers)
{
    down_job job = {.ways = ways, .m = m, .width = ways->backward ? ways->adapter->n : ways->adapter->k, .x = x,
                    .ldx = ldx, .dropout = dropout, .first = first, .dropped = dropped, .low = low};
    ql_parallel(workers, pieces(m, TOKENS), down_tokens, &job);
}

void ql_ways_up_tile(const void *self, ql_tile t)
{
    const ql_ways_up *up = self;
    size_t r = up->ways->adapter->r;
    assert(t.col % LANES == 0);
    up->ways->kernels->expand(t.rows, r, t.cols, up->low + t.row * r, up->ways->up + t.col * r,
                              up->y + t.row * up->ldy + t.col, up->ldy);
}
