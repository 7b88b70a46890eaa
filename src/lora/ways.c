#include "lora/ways.h"

#include <assert.h>

#include "base/cpu.h"
#include "base/sizes.h"
#include "base/workers.h"
#include "lora/dropout.h"

enum { LANES = QL_THIN_LANES, CHUNK = 256, TOKENS = 12 }; /* features, tokens of a piece of work */

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
            w->kernels->widen(a->r, ql_least(LANES, to - j), a->a + j, a->k, w->up + j * a->r);
    else
        for (size_t i = 0; i < a->r; i += LANES)
            w->kernels->turn(ql_least(LANES, a->r - i), to - from, a->a + i * a->k + from, a->k,
                             w->down + i * a->k + from * LANES);
}

/* Features [from, to) of B[n][r]: down it is B itself, up B^T. */
static void pack_b(const ql_ways *w, size_t from, size_t to)
{
    const ql_adapter *a = w->adapter;
    if (w->backward)
        for (size_t i = 0; i < a->r; i += LANES)
            w->kernels->widen(to - from, ql_least(LANES, a->r - i), a->b + from * a->r + i, a->r,
                              w->down + i * a->n + from * LANES);
    else
        for (size_t o = from; o < to; o += LANES)
            w->kernels->turn(ql_least(LANES, to - o), a->r, a->b + o * a->r, a->r, w->up + o * a->r);
}

/* Features and tokens of several ways are told apart by their pieces, one way after another. */
static size_t fill_pieces(const ql_adapter *a)
{
    return ql_pieces(a->k, CHUNK) + ql_pieces(a->n, CHUNK);
}

static void fill_piece(void *ctx, size_t index, size_t worker)
{
    const ql_ways *w = ctx;
    (void)worker;
    for (; index >= fill_pieces(w->adapter); w++)
        index -= fill_pieces(w->adapter);
    size_t of_a = ql_pieces(w->adapter->k, CHUNK);
    if (index < of_a)
        pack_a(w, index * CHUNK, ql_least(w->adapter->k, (index + 1) * CHUNK));
    else
        pack_b(w, (index - of_a) * CHUNK, ql_least(w->adapter->n, (index - of_a + 1) * CHUNK));
}

ql_ways ql_ways_at(const ql_adapter *a, bool backward, float *work)
{
    return (ql_ways){.kernels = ql_thin_select(ql_cpu_features()), .adapter = a, .backward = backward, .down = work,
                     .up = work + down_floats(a)};
}

void ql_ways_fill(const ql_ways *ways, size_t count, ql_workers *workers)
{
    size_t tasks = 0;
    for (size_t i = 0; i < count; i++)
        tasks += fill_pieces(ways[i].adapter);
    ql_parallel(workers, tasks, fill_piece, (void *)ways);
}

/* ---- down and up ---- */

typedef struct down_job {
    const ql_ways_down *downs;
    size_t m;
} down_job;

static void down_tokens(void *ctx, size_t index, size_t worker)
{
    const down_job *job = ctx;
    const ql_ways_down *down = job->downs + index / ql_pieces(job->m, TOKENS);
    const ql_adapter *a = down->ways->adapter;
    size_t token = index % ql_pieces(job->m, TOKENS) * TOKENS, tokens = ql_least(TOKENS, job->m - token), ldx = down->ldx;
    size_t width = down->ways->backward ? a->n : a->k;
    const float *x = down->x + token * ldx;
    (void)worker;
    if (down->dropout) {
        float *dropped = down->dropped + token * width;
        for (size_t t = 0; t < tokens; t++)
            ql_dropout_apply(down->dropout, down->first + token + t, 0, width, x + t * ldx, dropped + t * width);
        x = dropped, ldx = width;
    }
    down->ways->kernels->project(tokens, width, a->r, x, ldx, down->ways->down, a->scaling, down->low + token * a->r);
}

void ql_ways_go_down(const ql_ways_down *downs, size_t count, size_t m, ql_workers *workers)
{
    ql_parallel(workers, count * ql_pieces(m, TOKENS), down_tokens, &(down_job){downs, m});
}

void ql_ways_up_tile(const void *self, ql_tile t)
{
    const ql_ways_up *up = self;
    size_t r = up->ways->adapter->r;
    assert(t.col % LANES == 0);
    up->ways->kernels->expand(t.rows, r, t.cols, up->low + t.row * r, up->ways->up + t.col * r,
                              up->y + t.row * up->ldy + t.col, up->ldy);
}
