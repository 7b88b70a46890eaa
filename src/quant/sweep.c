#include "quant/sweep.h"

#include "base/arena.h"
#include "base/sizes.h"
#include "base/workers.h"
#include "quant/blas.h"
#include "quant/weight.h"

/* Rows of W at a time: dx is read and written once for so many, while y, packed g, the rows themselves and dx are to stay
 * in the second-level cache. */
enum { BLOCK = 256 };

static const size_t least_products = 1u << 19; /* below, waking other threads costs more than they help */

/* Whether any BLOCK rows may be seen as a weight of their own: their scales begin a stretch of their kind. */
static bool can_cut(const ql_wview *w)
{
    if (w->format.flat)
        return false;
    return w->format.scale != QL_SCALE_BNB_NESTED || BLOCK * w->groups % w->nested_block == 0;
}

/* Rows [first, first + count) of W; `first` is a multiple of BLOCK. */
static ql_wview view_rows(const ql_wview *w, size_t first, size_t count)
{
    ql_wview rows = *w;
    size_t groups = first * w->groups;
    rows.n = count;
    if (!first)
        return rows; /* a weight that is only planned has no codes to step over */
    rows.codes = (const char *)w->codes + first * w->row_bytes;
    if (!groups)
        return rows;
    size_t size = w->format.scale == QL_SCALE_F32 ? sizeof(float) : w->format.scale == QL_SCALE_F16 ? sizeof(uint16_t) : 1;
    rows.scales = (const char *)w->scales + groups * size;
    if (w->format.scale == QL_SCALE_DQ) {
        rows.steps = w->steps + groups / QL_DQ_GROUPS;
        rows.offsets = w->offsets + groups / QL_DQ_GROUPS;
    } else if (w->format.scale == QL_SCALE_BNB_NESTED) {
        rows.absmax2 = w->absmax2 + groups / w->nested_block;
    }
    return rows;
}

/* Rows of a part. */
static size_t part_rows(const ql_wview *w)
{
    return can_cut(w) ? ql_pieces(ql_pieces(w->n, BLOCK), QL_SWEEP_PARTS) * BLOCK : w->n;
}

size_t ql_sweep_parts(const ql_weight *w)
{
    return ql_pieces(w->view.n, part_rows(&w->view));
}

static size_t block_rows(const ql_wview *w)
{
    return can_cut(w) && w->n > BLOCK ? BLOCK : w->n;
}

size_t ql_sweep_block(const ql_weight *w)
{
    return block_rows(&w->view);
}

/* The products of any block but a last, shorter one. */
static ql_product first_product(const ql_wview *block, size_t m)
{
    return (ql_product){.w = block, .m = m};
}

static ql_product second_product(const ql_wview *block, size_t m)
{
    return (ql_product){.w = block, .m = m, .transposed = true};
}

/* What a worker has of its own. */
typedef struct desk {
    float *y;
    size_t ldy;
    void *packed, *scratch;
} desk;

static desk carve(ql_arena *arena, const ql_weight *w, size_t m)
{
    ql_wview block = view_rows(&w->view, 0, block_rows(&w->view));
    ql_product first = first_product(&block, m), second = second_product(&block, m);
    ql_plan there = ql_kernel_plan(w->kernel, &first, 1), back = ql_kernel_plan(w->kernel, &second, 1);
    desk d = {.ldy = ql_pieces(block.n, 16) * 16 + 16}; /* no power of two, whose rows would share cache sets */
    d.y = ql_take(arena, m * d.ldy, float);
    d.packed = ql_take(arena, back.packed, char);
    d.scratch = ql_take(arena, there.scratch > back.scratch ? there.scratch : back.scratch, char);
    return d;
}

ql_scratch ql_sweep_scratch(const ql_weight *w, size_t m)
{
    ql_wview block = view_rows(&w->view, 0, block_rows(&w->view));
    ql_product first = first_product(&block, m);
    ql_arena arena = {0};
    carve(&arena, w, m);
    return (ql_scratch){.shared = ql_kernel_plan(w->kernel, &first, 1).packed, .worker = arena.used};
}

typedef struct job {
    const ql_sweep *sweep;
    ql_product first; /* of a whole block */
    const ql_way *way;
    ql_plan plan;
    ql_workers *workers;
} job;

static void pack_piece(void *ctx, size_t index, size_t worker)
{
    const job *j = ctx;
    (void)worker;
    ql_way_pack(j->way, &j->first, j->plan, index);
}

/* Memory that will be read in order soon, to be brought near a piece at a time. */
typedef struct ahead {
    const char *at, *end;
    size_t step;
} ahead;

/* What `between` does with a row leaves memory idle. */
static void prefetch_some(ahead *a)
{
    enum { LINE = 64, SECOND_LEVEL = 2 };
    for (const char *to = a->at + ql_least(a->step, (size_t)(a->end - a->at)); a->at < to; a->at += LINE)
        __builtin_prefetch(a->at, 0, SECOND_LEVEL);
    a->at = a->at < a->end ? a->at : a->end;
}

static void multiply_there(const job *j, size_t part, const ql_wview *block, size_t row, ahead next, const desk *d)
{
    const ql_sweep *s = j->sweep;
    ql_product p = j->first;
    p.w = block;
    p.y = d->y;
    p.ldy = d->ldy;
    next.step = (size_t)(next.end - next.at) / (p.m * ql_pieces(block->n, j->plan.cols)) + 1;
    for (size_t t = 0; t < p.m; t += j->plan.rows)
        for (size_t col = 0; col < block->n; col += j->plan.cols) {
            ql_tile tile = {t, ql_least(j->plan.rows, p.m - t), col, ql_least(j->plan.cols, block->n - col)};
            ql_way_tile(j->way, &p, tile, d->scratch);
            for (size_t i = t; i < t + tile.rows; i++) {
                prefetch_some(&next);
                s->between(s->self, part, i, row + col, tile.cols, d->y + i * d->ldy + col);
            }
        }
}

static void multiply_back(const job *j, const ql_wview *block, float *dx, bool add, const desk *d)
{
    const ql_matmul_kernel *kernel = j->sweep->w->kernel;
    ql_product p = second_product(block, j->sweep->m);
    p.x = d->y;
    p.ldx = d->ldy;
    p.y = dx;
    p.ldy = block->k;
    p.add = add;
    p.packed = d->packed;
    const ql_way *way = ql_way_of(kernel, &p);
    ql_plan plan = ql_kernel_plan(kernel, &p, 1);
    for (size_t i = 0; i < plan.packs; i++)
        ql_way_pack(way, &p, plan, i);
    for (size_t t = 0; t < p.m; t += plan.rows)
        for (size_t col = 0; col < block->k; col += plan.cols)
            ql_way_tile(way, &p, (ql_tile){t, ql_least(plan.rows, p.m - t), col, ql_least(plan.cols, block->k - col)}, d->scratch);
}

static void run_part(void *ctx, size_t part, size_t worker)
{
    const job *j = ctx;
    const ql_sweep *s = j->sweep;
    const ql_wview *w = &s->w->view;
    ql_arena arena = {.base = ql_worker_scratch(j->workers, worker)};
    desk d = carve(&arena, s->w, s->m);
    size_t first = part * part_rows(w), end = ql_least(first + part_rows(w), w->n), step = block_rows(w);
    for (size_t row = first; row < end; row += step) {
        ql_wview block = view_rows(w, row, ql_least(step, end - row));
        const char *next = (const char *)block.codes + block.n * w->row_bytes;
        size_t left = ql_least(step, end - row - block.n);
        multiply_there(j, part, &block, row, (ahead){.at = next, .end = next + left * w->row_bytes}, &d);
        if (s->dx)
            multiply_back(j, &block, s->dx + part * s->m * w->k, row > first, &d);
    }
}

void ql_sweep_run(const ql_sweep *sweep, ql_workers *workers)
{
    const ql_weight *w = sweep->w;
    if (sweep->m == 0)
        return;
    assert(ql_scratch_fits(workers, ql_sweep_scratch(w, sweep->m)));
    ql_wview block = view_rows(&w->view, 0, block_rows(&w->view));
    job j = {.sweep = sweep, .first = first_product(&block, sweep->m), .workers = workers};
    j.first.x = sweep->x;
    j.first.ldx = sweep->ldx;
    j.first.packed = ql_shared_scratch(workers);
    j.way = ql_way_of(w->kernel, &j.first);
    j.plan = ql_kernel_plan(w->kernel, &j.first, 1);
    int blas_threads = ql_blas_hold(w->kernel->blas);
    ql_workers *several = sweep->m * w->view.n * w->view.k < least_products ? NULL : workers;
    ql_parallel(several, j.plan.packs, pack_piece, &j);
    ql_parallel(several, ql_sweep_parts(w), run_part, &j);
    ql_blas_release(blas_threads);
}
