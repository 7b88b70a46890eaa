/* Each layer is two products down to the rank and up again beside that of the base. Where the base's kernel adds up
 * chains, or where there are few tokens, all are products of the adapter's FP16 views: those that go down make one
 * batch, those of the bases, with what goes up chained to them, another, for which x is packed already. Otherwise the
 * kernels of thin.h go down before the bases' products, and up where a rectangle of those has been computed. */
#include "lora/group.h"

#include <assert.h>
#include <string.h>

#include "base/arena.h"
#include "base/workers.h"
#include "lora/outer.h"
#include "lora/ways.h"
#include "quant/weight.h"

/* What happens to a rectangle after the products: up, where thin kernels do that, and the bias. */
typedef struct finish {
    ql_ways_up up[QL_LINEARS];
    size_t ups;
    const float *bias; /* NULL: none */
    float *y;
    size_t ldy;
} finish;

/* A layer's side of the group. `low` is h forward, dh backward. */
typedef struct side {
    const ql_linear *layer;
    const ql_adapter *adapter;      /* NULL: none */
    const ql_matmul_kernel *kernel; /* of the adapter's views; NULL: thin kernels do that */
    ql_group_x x;                   /* or dy */
    float *low, *panels;
    ql_ways ways;
    finish finish;
} side;

typedef struct group {
    side side[QL_LINEARS];
    size_t count, m;
    bool backward;
    float *y[QL_LINEARS]; /* of the forward pass; or dx alone */
    uint16_t *narrow_y[QL_LINEARS];
    size_t ldy[QL_LINEARS];
    bool add;
    ql_product down[QL_LINEARS], product[2 * QL_LINEARS];
    ql_chain down_chain[QL_LINEARS], chain[QL_LINEARS];
    size_t downs, chains;
} group;

/* The kernel that multiplies with the adapter's views as links of the base's chain; NULL: none does. */
static const ql_matmul_kernel *chained(const ql_linear *layer, bool backward, size_t m)
{
    const ql_adapter *a = layer->adapter;
    if (m < QL_WAYS_TOKENS) /* panels would cost more than they help */
        return a->view_a->kernel;
    ql_product base = ql_product_of(layer->base, backward, m, NULL, 0);
    const ql_matmul_kernel *kernel = base.kernel;
    bool can = kernel->bf16_inputs && ql_way_of(kernel, &base)->chains && kernel->accepts(&a->view_a->view);
    return can ? kernel : NULL;
}

static side side_of(const ql_linear *layer, bool backward, size_t m)
{
    side s = {.layer = layer, .adapter = layer->adapter};
    assert(!s.adapter || (s.adapter->k == ql_weight_cols(layer->base) && s.adapter->n == ql_weight_rows(layer->base)));
    if (s.adapter)
        s.kernel = chained(layer, backward, m);
    return s;
}

static void carve(side *s, ql_arena *arena, size_t m)
{
    if (!s->adapter)
        return;
    if (!s->kernel)
        s->panels = ql_take(arena, ql_ways_work(s->adapter), float);
    s->low = ql_take(arena, m * s->adapter->r, float);
}

/* Products read it as it is, and so do gradients; thin kernels do not. */
bool ql_group_takes_bf16(const ql_linear *const *layers, size_t count, size_t m)
{
    for (size_t i = 0; i < count; i++)
        for (int backward = 0; backward < 2; backward++) {
            ql_product base = ql_product_of(layers[i]->base, backward, m, NULL, 0);
            side s = side_of(layers[i], backward, m);
            if (m < QL_WAYS_TOKENS || !base.kernel->bf16_inputs || !base.kernel->reads_narrow ||
                !base.kernel->reads_narrow(&base) || (s.adapter && s.kernel != base.kernel))
                return false;
        }
    return true;
}

static ql_product product_with(const ql_weight *w, const group *g, const side *s)
{
    ql_product p = ql_product_of(w, g->backward, g->m, s->x.wide, s->x.ld);
    p.narrow = s->x.narrow;
    return p;
}

static size_t work_of(const ql_linear *const *layers, size_t count, size_t m, bool backward)
{
    ql_arena arena = {0};
    for (size_t i = 0; i < count; i++) {
        side s = side_of(layers[i], backward, m);
        carve(&s, &arena, m);
    }
    return arena.used / sizeof(float);
}

size_t ql_group_work(const ql_linear *const *layers, size_t count, size_t m)
{
    size_t forward = work_of(layers, count, m, false), backward = work_of(layers, count, m, true);
    return forward > backward ? forward : backward;
}

/* ---- down ---- */

static void scale_tile(const void *self, ql_tile t)
{
    const side *s = self;
    size_t r = s->adapter->r;
    for (size_t row = t.row; row < t.row + t.rows; row++)
        for (size_t i = t.col; i < t.col + t.cols; i++)
            s->low[row * r + i] *= s->adapter->scaling;
}

/* The chains of x A^T or dy B. */
static void list_downs(group *g)
{
    for (side *s = g->side; s < g->side + g->count; s++) {
        if (!s->kernel)
            continue;
        ql_product *p = &g->down[g->downs];
        *p = product_with(g->backward ? s->adapter->view_b : s->adapter->view_a, g, s);
        p->kernel = s->kernel;
        p->y = s->low, p->ldy = s->adapter->r;
        g->down_chain[g->downs++] = (ql_chain){p, {scale_tile, s}};
    }
}

static void go_down(group *g, ql_packs *packs, ql_workers *workers)
{
    ql_ways ways[QL_LINEARS];
    ql_ways_down downs[QL_LINEARS];
    size_t count = 0;
    ql_batch_run_before(g->down_chain, g->downs, g->chain, g->chains, packs, workers);
    for (side *s = g->side; s < g->side + g->count; s++) {
        if (!s->adapter || s->kernel)
            continue;
        s->ways = ways[count] = ql_ways_at(s->adapter, g->backward, s->panels);
        downs[count++] = (ql_ways_down){.ways = &s->ways, .x = s->x.wide, .ldx = s->x.ld, .low = s->low};
    }
    ql_ways_fill(ways, count, workers);
    ql_ways_go_down(downs, count, g->m, workers);
}

/* ---- the bases' products, and up ---- */

static void finish_tile(const void *self, ql_tile t)
{
    const finish *f = self;
    for (size_t i = 0; i < f->ups; i++)
        ql_ways_up_tile(&f->up[i], t);
    for (size_t row = t.row; f->bias && row < t.row + t.rows; row++) {
        float *y = f->y + row * f->ldy;
#pragma omp simd
        for (size_t j = t.col; j < t.col + t.cols; j++)
            y[j] += f->bias[j];
    }
}

/* Adds a product to the end of a chain whose first is `first`. */
static void link_to(ql_product *first, ql_product *p)
{
    while (first->next)
        first = (ql_product *)(uintptr_t)first->next;
    first->next = p;
}

static void add_up(group *g, const side *s, ql_product *first, size_t *products, finish *f)
{
    const ql_adapter *a = s->adapter;
    if (!a)
        return;
    if (!s->kernel) {
        f->up[f->ups++] = (ql_ways_up){&s->ways, s->low, f->y, f->ldy};
        return;
    }
    ql_product *p = &g->product[(*products)++];
    *p = ql_product_of(g->backward ? a->view_a : a->view_b, g->backward, g->m, s->low, a->r);
    p->kernel = s->kernel;
    link_to(first, p);
}

/* The chains: forward one for each layer, backward one of all, of bases first, most of which one kernel multiplies. */
static void list_products(group *g)
{
    size_t products = 0;
    g->chains = g->backward ? 1 : g->count;
    for (size_t i = 0; i < g->count; i++) {
        ql_product *p = &g->product[products++];
        *p = product_with(g->side[i].layer->base, g, &g->side[i]);
        if (g->backward && i > 0) {
            link_to(g->product, p);
            continue;
        }
        p->y = g->y[i], p->narrow_y = g->narrow_y[i], p->ldy = g->ldy[i], p->add = g->add;
        g->side[i].finish = (finish){.y = p->y, .ldy = p->ldy, .bias = g->backward ? NULL : g->side[i].layer->bias};
        g->chain[i] = (ql_chain){.product = p};
    }
    for (size_t i = 0; i < g->count; i++) {
        size_t chain = g->backward ? 0 : i;
        add_up(g, &g->side[i], &g->product[chain], &products, &g->side[chain].finish);
    }
    for (size_t i = 0; i < g->chains; i++) {
        finish *f = &g->side[i].finish;
        assert(!g->narrow_y[i] || (!f->ups && !f->bias));
        if (f->ups || f->bias)
            g->chain[i].then = (ql_then){finish_tile, f};
    }
}

/* ---- scratch ---- */

/* Of exactly m tokens, in one direction. Places stand for what is multiplied: all that counts is which are equal. */
static ql_scratch scratch_of(const ql_linear *const *layers, size_t count, size_t m, bool backward, size_t threads)
{
    static float places[2 * QL_LINEARS];
    group g = {.count = count, .m = m, .backward = backward};
    ql_packs packs = {0};
    for (size_t i = 0; i < count; i++) {
        g.side[i] = side_of(layers[i], backward, m);
        g.side[i].x.wide = backward ? &places[i] : places;
        g.side[i].x.ld = backward ? ql_weight_rows(layers[i]->base) : ql_weight_cols(layers[i]->base);
        g.side[i].low = &places[QL_LINEARS + i];
    }
    list_downs(&g);
    list_products(&g);
    ql_scratch need = ql_batch_scratch(g.down_chain, g.downs, &packs, threads);
    return ql_scratch_max(need, ql_batch_scratch(g.chain, g.chains, &packs, threads));
}

ql_scratch ql_group_scratch(const ql_linear *const *layers, size_t count, size_t m, size_t threads)
{
    ql_scratch need = {0};
    for (size_t some = m; some; some = some > QL_BATCH_TURNS ? QL_BATCH_TURNS : some - 1)
        need = ql_scratch_max(need, ql_scratch_max(scratch_of(layers, count, some, false, threads),
                                                   scratch_of(layers, count, some, true, threads)));
    return need;
}

/* ---- forward and backward ---- */

static group group_of(const ql_linear_use *uses, size_t count, size_t m, bool backward, float *work)
{
    ql_arena arena = {.base = (char *)work};
    group g = {.count = count, .m = m, .backward = backward};
    assert(count <= QL_LINEARS);
    for (size_t i = 0; i < count; i++) {
        g.side[i] = side_of(uses[i].layer, backward, m);
        carve(&g.side[i], &arena, m);
    }
    return g;
}

static bool any_adapter(const group *g)
{
    for (size_t i = 0; i < g->count; i++)
        if (g->side[i].adapter)
            return true;
    return false;
}

void ql_group_forward(const ql_linear_use *uses, size_t count, size_t m, ql_group_x x, float *work, ql_workers *workers)
{
    group g = group_of(uses, count, m, false, work);
    ql_packs packs = {0};
    for (size_t i = 0; i < count; i++) {
        g.side[i].x = x;
        g.side[i].low = uses[i].h;
        g.y[i] = uses[i].y, g.narrow_y[i] = uses[i].narrow_y, g.ldy[i] = uses[i].ldy;
    }
    list_downs(&g);
    list_products(&g);
    if (any_adapter(&g)) {
        ql_mark(workers, QL_PART_ADAPTERS);
        go_down(&g, &packs, workers);
    }
    ql_mark(workers, QL_PART_FORWARD);
    ql_batch_run(g.chain, g.chains, &packs, workers);
}

static ql_outer gradient_of_a(const side *s, size_t m, ql_group_x x)
{
    const ql_adapter *a = s->adapter;
    return (ql_outer){.m = m, .r = a->r, .cols = a->k, .s = s->low, .x = x.wide, .narrow = x.narrow, .ldx = x.ld,
                      .out = a->grad_a, .stride_i = a->k, .stride_j = 1};
}

static ql_outer gradient_of_b(const side *s, size_t m, const float *h)
{
    const ql_adapter *a = s->adapter;
    return (ql_outer){.m = m, .r = a->r, .cols = a->n, .s = h, .x = s->x.wide, .narrow = s->x.narrow, .ldx = s->x.ld,
                      .out = a->grad_b, .stride_i = 1, .stride_j = a->r};
}

/* Of the layers whose products round to bf16, or of those whose do not. Those of A, which read the same x, come one
 * after the other. */
static void add_gradients(const group *g, const ql_linear_use *uses, bool bf16, ql_group_x x, ql_workers *workers)
{
    ql_outer of_a[2 * QL_LINEARS], of_b[QL_LINEARS];
    size_t count = 0;
    for (size_t i = 0; i < g->count; i++) {
        const side *s = &g->side[i];
        if (!s->adapter || !s->adapter->grad_a || s->layer->base->kernel->bf16_inputs != bf16)
            continue;
        of_a[count] = gradient_of_a(s, g->m, x);
        of_b[count++] = gradient_of_b(s, g->m, uses[i].h);
    }
    if (!count)
        return;
    memcpy(of_a + count, of_b, count * sizeof *of_b);
    ql_outer_add(of_a, 2 * count, bf16, workers);
}

void ql_group_backward(const ql_linear_use *uses, size_t count, size_t m, ql_group_x x, float *dx, size_t lddx,
                       bool add_dx, const ql_late *late, float *work, ql_workers *workers)
{
    group g = group_of(uses, count, m, true, work);
    ql_packs packs = {0};
    for (size_t i = 0; i < count; i++)
        g.side[i].x = (ql_group_x){uses[i].dy, uses[i].narrow_dy, uses[i].ldy};
    g.y[0] = dx, g.ldy[0] = lddx, g.add = add_dx;
    list_downs(&g);
    if (dx)
        list_products(&g);
    if (any_adapter(&g)) {
        ql_mark(workers, QL_PART_ADAPTERS);
        go_down(&g, &packs, workers);
    }
    if (dx) {
        ql_mark(workers, QL_PART_BACKWARD);
        ql_batch_run(g.chain, g.chains, &packs, workers);
    }
    if (late) {
        ql_mark(workers, QL_PART_OTHER);
        late->make(late->self);
    }
    if (any_adapter(&g)) {
        ql_mark(workers, QL_PART_ADAPTERS);
        add_gradients(&g, uses, false, x, workers);
        add_gradients(&g, uses, true, x, workers);
    }
}
