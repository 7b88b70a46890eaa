/* Batches of products. Products of a chain that come the same way, cut alike, make a part: what a task computes of it,
 * one rectangle, is computed in one go. */
#include <assert.h>

#include "base/arena.h"
#include "base/sizes.h"
#include "base/workers.h"
#include "kern/blocked.h"
#include "quant/blas.h"
#include "quant/matmul.h"

/* Below so many multiplications, or so many numbers to pack, waking other threads costs more than they help. */
static const size_t least_products = 1u << 19, least_packed = 1u << 16;
enum { WIDE_ROWS = 16 }; /* widened at once */

typedef struct part {
    const ql_way *way;
    ql_product *first, *last; /* chained, and one after another in memory */
    ql_plan plan;
    ql_then then;
    size_t round; /* a chain's parts wait for each other */
    size_t across, rectangles;
} part;

typedef struct batch {
    ql_product product[QL_BATCH_PRODUCTS];
    ql_plan plan[QL_BATCH_PRODUCTS]; /* of each of them */
    part part[QL_BATCH_PRODUCTS];
    size_t products, parts, threads;
    ql_packs *packs;
    ql_workers *workers;
    bool planning; /* nothing is there but shapes */
} batch;

/* ---- x in the shared scratch ---- */

static const void *source(const ql_product *p)
{
    return p->narrow ? (const void *)p->narrow : p->x;
}

static bool same_x(const ql_product *a, const ql_product *b)
{
    return source(a) == source(b) && a->ldx == b->ldx && a->m == b->m && ql_product_inputs(a) == ql_product_inputs(b);
}

/* Whether what one made of x serves another product too, which comes `way`, by `plan`. */
static bool serves(const ql_packed *made, const ql_way *way, const ql_product *p, ql_plan plan, bool planning)
{
    const ql_product *q = &made->product;
    if (made->way != way || !same_x(q, p) || (way && q->transposed != p->transposed))
        return false;
    if (!way || way->packs_alike)
        return true;
    if (made->plan.rows != plan.rows)
        return false;
    /* How a weight is stored may tell in what order its x is wanted, and in what units; with fewer tokens than planned
     * rows may differ. */
    return way->blocked || (!planning && q->w->format.code == p->w->format.code &&
                            q->w->format.group == p->w->format.group && q->w->table == p->w->table);
}

/* Where what is made of p's x lies, or will. */
static void *find_or_add(batch *b, const ql_way *way, const ql_product *p, ql_plan plan, size_t bytes)
{
    ql_packs *packs = b->packs;
    for (size_t i = 0; i < packs->count; i++)
        if (serves(&packs->list[i], way, p, plan, b->planning))
            return packs->list[i].product.packed;
    assert(packs->count < QL_PACKS);
    ql_packed *made = &packs->list[packs->count++];
    *made = (ql_packed){way, *p, plan};
    made->product.packed = b->planning ? NULL : (char *)ql_shared_scratch(b->workers) + packs->bytes;
    packs->bytes += (bytes + QL_ALIGN - 1) / QL_ALIGN * QL_ALIGN;
    return made->product.packed;
}

/* x in bf16, for kernels that do not read it so, is widened. */
static void widen(batch *b, ql_product *p)
{
    size_t inputs = ql_product_inputs(p);
    if (!p->narrow || (!b->planning && p->kernel->reads_narrow && p->kernel->reads_narrow(p)))
        return;
    const void *wide = find_or_add(b, NULL, p, (ql_plan){0}, p->m * inputs * sizeof(float));
    p->x = b->planning ? (const void *)p->narrow : wide; /* which still tells it from others */
    p->narrow = NULL;
    p->ldx = inputs;
}

typedef struct packing {
    const ql_packed *first, *end;
    bool wide; /* those with no way, or those with one */
} packing;

static size_t packs_of(const ql_packed *made, bool wide)
{
    if (wide)
        return made->way ? 0 : ql_pieces(made->product.m, WIDE_ROWS);
    return made->way ? made->plan.packs : 0;
}

static void widen_rows(const ql_product *p, size_t index, float *wide)
{
    size_t inputs = ql_product_inputs(p), end = (index + 1) * WIDE_ROWS < p->m ? (index + 1) * WIDE_ROWS : p->m;
    for (size_t row = index * WIDE_ROWS; row < end; row++)
        for (size_t i = 0; i < inputs; i++)
            wide[row * inputs + i] = ql_bf16_to_f32(p->narrow[row * p->ldx + i]);
}

static void pack_piece(void *ctx, size_t index, size_t worker)
{
    const packing *all = ctx;
    const ql_packed *made = all->first;
    (void)worker;
    for (; index >= packs_of(made, all->wide); made++)
        index -= packs_of(made, all->wide);
    if (all->wide)
        widen_rows(&made->product, index, made->product.packed);
    else
        ql_way_pack(made->way, &made->product, made->plan, index);
}

/* Makes what was added to the packs since there were `before`. */
static void make_packs(batch *b, size_t before)
{
    packing all = {b->packs->list + before, b->packs->list + b->packs->count, true};
    for (int i = 0; i < 2; i++, all.wide = false) {
        size_t tasks = 0, numbers = 0;
        for (const ql_packed *made = all.first; made < all.end; made++)
            if (packs_of(made, all.wide)) {
                tasks += packs_of(made, all.wide);
                numbers += made->product.m * ql_product_inputs(&made->product);
            }
        ql_parallel(numbers < least_packed ? NULL : b->workers, tasks, pack_piece, &all);
    }
}

/* ---- parts ---- */

/* The plan of a product alone or, of a way that chains, of all that is chained to it. */
static ql_plan plan_of(batch *b, const ql_way *way, const ql_product *p)
{
    ql_plan plan = b->planning ? ql_kernel_plan(p->kernel, p, b->threads) : ql_way_plan(way, p, b->threads);
    if (!way->blocked)
        return plan;
    if (!b->packs->rows)
        b->packs->rows = plan.rows;
    return ql_blocked_rows(way->blocked, p, plan, b->packs->rows);
}

static bool joins(const part *to, const ql_way *way, ql_plan plan)
{
    return to->way == way && (way->chains || (plan.rows == to->plan.rows && plan.cols == to->plan.cols));
}

static void add_chain(batch *b, const ql_chain *chain)
{
    part *to = NULL;
    for (const ql_product *p = chain->product; p; p = p->next) {
        assert(b->products < QL_BATCH_PRODUCTS && p->m == chain->product->m);
        ql_product *own = &b->product[b->products];
        ql_plan *plan = &b->plan[b->products++];
        *own = *p;
        own->next = NULL;
        own->y = chain->product->y, own->ldy = chain->product->ldy;
        own->add = p != chain->product || p->add;
        widen(b, own);
        const ql_way *way = ql_way_of(own->kernel, own);
        *plan = plan_of(b, way, own);
        if (to && joins(to, way, *plan)) {
            to->last->next = own;
            to->last = own;
            continue;
        }
        size_t round = to ? to->round + 1 : 0;
        to = &b->part[b->parts++];
        *to = (part){.way = way, .first = own, .last = own, .plan = *plan, .round = round};
    }
    to->then = chain->then;
}

/* Cuts the result, and finds places for what the products of the part read. */
static void settle(batch *b, part *p)
{
    if (p->way->chains && p->first != p->last)
        p->plan = plan_of(b, p->way, p->first);
    for (ql_product *q = p->first; q <= p->last; q++) {
        ql_plan plan = b->plan[q - b->product]; /* packs and packed bytes are of the product alone in any case */
        if (plan.packed)
            q->packed = find_or_add(b, p->way, q, plan, plan.packed);
        if (!p->way->chains && plan.scratch > p->plan.scratch)
            p->plan.scratch = plan.scratch;
    }
    p->across = ql_pieces(ql_product_outputs(p->first), p->plan.cols);
    p->rectangles = p->across * ql_pieces(p->first->m, p->plan.rows ? p->plan.rows : 1);
}

/* Without workers it is planned only. */
static void begin(batch *b, ql_packs *packs, ql_workers *workers, size_t threads)
{
    b->products = b->parts = 0;
    b->threads = threads, b->packs = packs, b->workers = workers, b->planning = !workers;
}

static ql_scratch make(batch *b, const ql_chain *chains, size_t count)
{
    ql_scratch need = {0};
    for (size_t i = 0; i < count; i++)
        add_chain(b, &chains[i]);
    for (size_t i = 0; i < b->parts; i++) {
        settle(b, &b->part[i]);
        need.worker = need.worker > b->part[i].plan.scratch ? need.worker : b->part[i].plan.scratch;
    }
    need.shared = b->packs->bytes;
    return need;
}

ql_scratch ql_batch_scratch(const ql_chain *chains, size_t count, ql_packs *packs, size_t threads)
{
    batch b;
    begin(&b, packs, NULL, threads);
    return make(&b, chains, count);
}

/* ---- running ---- */

/* The parts of one round, those with the largest rectangles first, so that none of them is the last to begin. */
typedef struct round_of {
    const part *part[QL_BATCH_PRODUCTS];
    size_t parts, rectangles, products;
    ql_workers *workers;
} round_of;

static size_t work_of_rectangle(const part *p)
{
    size_t terms = 0;
    for (const ql_product *q = p->first; q; q = q->next)
        terms += ql_product_inputs(q);
    return p->plan.rows * p->plan.cols * terms;
}

static void add_part(round_of *r, const part *p)
{
    size_t i = r->parts++;
    for (; i > 0 && work_of_rectangle(r->part[i - 1]) < work_of_rectangle(p); i--)
        r->part[i] = r->part[i - 1];
    r->part[i] = p;
    r->rectangles += p->rectangles;
    for (const ql_product *q = p->first; q; q = q->next)
        r->products += q->m * ql_product_inputs(q) * ql_product_outputs(q);
}

/* The rectangle that begins at (row, col), up to row `end` at most. */
static void compute(const part *p, size_t row, size_t end, size_t col, void *scratch)
{
    size_t outputs = ql_product_outputs(p->first);
    ql_tile t = {row, end - row < p->plan.rows ? end - row : p->plan.rows, col,
                 outputs - col < p->plan.cols ? outputs - col : p->plan.cols};
    for (const ql_product *q = p->first; q; q = p->way->chains ? NULL : q->next)
        ql_way_tile(p->way, q, t, scratch);
    if (p->then.run)
        p->then.run(p->then.self, t);
}

static void compute_rectangle(void *ctx, size_t index, size_t worker)
{
    const round_of *r = ctx;
    size_t i = 0;
    for (; index >= r->part[i]->rectangles; i++)
        index -= r->part[i]->rectangles;
    const part *p = r->part[i];
    compute(p, index / p->across * p->plan.rows, p->first->m, index % p->across * p->plan.cols,
            ql_worker_scratch(r->workers, worker));
}

static void run_rounds(const batch *b)
{
    size_t done = 0;
    for (size_t round = 0; done < b->parts; round++) {
        round_of r = {.workers = b->workers};
        for (size_t i = 0; i < b->parts; i++)
            if (b->part[i].round == round)
                add_part(&r, &b->part[i]);
        done += r.parts;
        ql_parallel(r.products < least_products ? NULL : b->workers, r.rectangles, compute_rectangle, &r);
    }
}

static bool calls_blas(const batch *b)
{
    for (size_t i = 0; i < b->products; i++)
        if (b->product[i].kernel->blas)
            return true;
    return false;
}

static void run(batch *b, size_t before)
{
    int blas_threads = ql_blas_hold(calls_blas(b));
    make_packs(b, before);
    run_rounds(b);
    ql_blas_release(blas_threads);
}

void ql_batch_run(const ql_chain *chains, size_t count, ql_packs *packs, ql_workers *workers)
{
    if (!count || !chains->product->m)
        return;
    batch b;
    begin(&b, packs, workers, ql_workers_count(workers));
    size_t before = packs->count;
    ql_scratch need = make(&b, chains, count);
    assert(ql_scratch_fits(workers, need));
    (void)need;
    run(&b, before);
}

/* ---- chains before others ---- */

/* Some tokens all the way: their x's packed, the chains, and what others read beside, results of these included, packed. */
typedef struct all_the_way {
    const batch *batch;
    const ql_packed *first, *later, *end;
    size_t tokens; /* of a task */
} all_the_way;

static void pack_tokens(const ql_packed *made, const ql_packed *end, size_t row, size_t row_end)
{
    for (; made < end; made++) {
        size_t step = made->way->pack_tokens, blocks = ql_pieces(made->product.m, step);
        for (size_t block = row / step; block * step < row_end; block++)
            for (size_t i = block; i < made->plan.packs; i += blocks)
                ql_way_pack(made->way, &made->product, made->plan, i);
    }
}

static void go_all_the_way(void *ctx, size_t index, size_t worker)
{
    const all_the_way *all = ctx;
    const batch *b = all->batch;
    size_t m = b->product->m, start = index * all->tokens, end = m - start < all->tokens ? m : start + all->tokens;
    pack_tokens(all->first, all->later, start, end);
    for (const part *p = b->part; p < b->part + b->parts; p++)
        for (size_t row = start; row < end; row += p->plan.rows)
            for (size_t col = 0; col < ql_product_outputs(p->first); col += p->plan.cols)
                compute(p, row, end, col, ql_worker_scratch(b->workers, worker));
    pack_tokens(all->later, all->end, start, end);
}

/* Tokens that every way packs at once; 0: there are some that do not, or others. */
static size_t packed_at_once(const ql_packed *made, const ql_packed *end)
{
    size_t tokens = made < end && made->way ? made->way->pack_tokens : 0;
    for (; made < end; made++)
        if (!made->way || made->way->pack_tokens != tokens)
            return 0;
    return tokens;
}

/* Tokens of a task, of `bytes` of packed x in all: as many as leave each thread two tasks, for each decodes the weights
 * anew, but what is packed of them stays in a second-level cache. */
static size_t tokens_of_task(size_t block, size_t m, size_t bytes, size_t threads)
{
    size_t blocks = ql_pieces(m, block) / (2 * threads), most = ((size_t)1 << 20) / (bytes / ql_pieces(m, block) + 1);
    blocks = blocks < most ? blocks : most;
    return block * (blocks ? blocks : 1);
}

void ql_batch_run_before(const ql_chain *chains, size_t count, const ql_chain *later, size_t later_count,
                         ql_packs *packs, ql_workers *workers)
{
    if (!count || !chains->product->m)
        return;
    batch b, others;
    size_t before = packs->count, threads = ql_workers_count(workers);
    begin(&b, packs, workers, threads);
    begin(&others, packs, workers, threads);
    ql_scratch need = make(&b, chains, count);
    size_t own = packs->count, bytes = packs->bytes;
    need = ql_scratch_max(need, make(&others, later, later_count));
    assert(ql_scratch_fits(workers, need)), (void)need;
    const ql_packed *first = packs->list + before, *end = packs->list + packs->count;
    size_t block = packed_at_once(first, end);
    if (!block) {
        packs->count = own, packs->bytes = bytes;
        run(&b, before);
        return;
    }
    all_the_way all = {&b, first, packs->list + own, end, tokens_of_task(block, b.product->m, bytes, b.threads)};
    ql_parallel(b.product->m * ql_product_inputs(b.product) < least_packed ? NULL : workers,
                ql_pieces(b.product->m, all.tokens), go_all_the_way, &all);
}
