/* AMX, bf16: x and decoded weights rounded to bf16, sums in fp32; for up to eight tokens both in fixed point instead, by
 * vectors, which is more exact. A panel of W is decoded into the second-level cache, once for all the tokens of a
 * rectangle. 32 tokens x DEPTH terms of x at a time stay in the first-level cache, while the panel streams by. A chain of
 * products is one sum: their panels lie side by side, as many as there is room for (a group). However they are cut, sums
 * are added up term by term in the order of the chain. */
#include <immintrin.h>

#include "base/cpu.h"
#include "kern/blocks_amx.h"
#include "kern/decode.h"
#include "kern/few.h"
#include "kern/fill_amx.h"
#include "kern/gemv.h"
#include "kern/kernels.h"

#ifndef QL_AMX_EMULATED
enum { DEPTH = 512 /* terms of x that stay in the first-level cache */, TERMS = QL_AMX_TERMS, WIDTH = QL_AMX_OUTPUTS };
enum { GROUP_TERMS = 2688, PANEL = 3 << 18 /* bf16: most of a second-level cache of 2 MB */ };
enum { MOST_ROWS = 4096, WAITING_ROWS = 1024 /* where their sums wait */, MOST_COLS = 1024, FAR_X = 1 << 18 /* bf16 */ };
#else /* small, so that small products have several of everything */
enum { DEPTH = 64, TERMS = 128, WIDTH = 128, GROUP_TERMS = 192, PANEL = 128 * 128 };
enum { MOST_ROWS = 4096, WAITING_ROWS = 64, MOST_COLS = 256, FAR_X = 1 << 10 };
#endif
enum { MOST_SEGMENTS = 8 };

static bool accepts(const ql_wview *w)
{
    return w->format.code != QL_CODE_F32;
}

/* Packed x: panel after panel, in it block of 32 tokens after block, in it [step][1 or 2 tiles of 16 tokens]. */
static size_t packed_rows(size_t rows)
{
    return ql_pieces(rows, LANES) * LANES;
}

/* Terms of a panel: sums are cut into panels of about the same depth. */
static size_t panel_terms(size_t inputs)
{
    size_t panels = ql_pieces(inputs, TERMS);
    return ql_pieces(ql_pieces(inputs, panels ? panels : 1), QL_BLOCK) * QL_BLOCK;
}

/* A product's terms [from, from + depth), with its packed x and, once decoded, its part of the panel. */
typedef struct segment {
    const ql_product *p;
    size_t from, depth, steps;
    const uint16_t *x;
    uint16_t *w;
} segment;

/* The segments whose parts of a panel are decoded together. */
typedef struct group {
    segment of[MOST_SEGMENTS];
    size_t count, steps;
} group;

/* What comes next in a chain: a product and the first term of it. */
typedef struct place {
    const ql_product *p;
    size_t from;
} place;

static group next_group(place *at)
{
    group g = {0};
    while (at->p && g.count < MOST_SEGMENTS) {
        const ql_product *p = at->p;
        size_t inputs = ql_product_inputs(p), depth = ql_least(panel_terms(inputs), inputs - at->from);
        size_t steps = ql_amx_steps(depth);
        if (g.count && (g.steps + steps) * STEP > GROUP_TERMS)
            break;
        g.of[g.count++] = (segment){p, at->from, depth, steps,
                                    (const uint16_t *)p->packed + at->from * packed_rows(p->m), NULL};
        g.steps += steps;
        at->from += depth;
        if (at->from == inputs)
            *at = (place){p->next, 0};
    }
    return g;
}

/* Steps of the deepest group; more than one group: sums wait between them. */
static size_t deepest(const ql_product *p, bool *waiting)
{
    size_t steps = 0, groups = 0;
    for (place at = {p, 0}; at.p; groups++) {
        group g = next_group(&at);
        steps = g.steps > steps ? g.steps : steps;
    }
    *waiting = groups > 1;
    return steps;
}

static size_t tiles_packed(const ql_product *p)
{
    return packed_rows(p->m) * ql_amx_steps(ql_product_inputs(p)) * STEP * sizeof(uint16_t);
}

/* Outputs of a panel. */
static size_t widest(size_t steps)
{
    return ql_least(WIDTH, PANEL / (steps * STEP) / QL_BLOCK * QL_BLOCK);
}

static ql_plan tiles_plan(const ql_product *p, size_t threads)
{
    bool waiting;
    size_t steps = deepest(p, &waiting), most_rows = waiting ? WAITING_ROWS : MOST_ROWS, width = widest(steps);
    ql_plan plan = {.packs = ql_pieces(p->m, BLOCK) * ql_pieces(ql_product_inputs(p), panel_terms(ql_product_inputs(p))),
                    .packed = tiles_packed(p)};
    cut(&plan, p, (ql_tile){.rows = most_rows, .cols = MOST_COLS}, WIDTH, threads);
    plan.scratch = width * steps * STEP * sizeof(uint16_t) +
                   (waiting ? ql_least(packed_rows(p->m) + LANES, most_rows) : BLOCK) * width * sizeof(float);
    return plan;
}

/* `count` terms of x from number `at` on, at most 32. */
static inline __m512i load_terms(const ql_product *p, size_t at, size_t count)
{
    uint32_t bits = count >= STEP ? ~0u : (1u << count) - 1;
    if (p->narrow)
        return _mm512_maskz_loadu_epi16(bits, p->narrow + at);
    __m512 first = _mm512_maskz_loadu_ps((__mmask16)bits, p->x + at);
    __m512 second = _mm512_maskz_loadu_ps((__mmask16)(bits >> 16), p->x + at + LANES);
    return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

/* One tile: up to 16 tokens x 32 terms from number `at` on; forward as pairs of terms side by side. */
static inline void pack_tile(const ql_product *p, size_t at, size_t rows, size_t terms, uint16_t *tile)
{
    __m512i line[LANES];
    if (rows == LANES) {
#pragma GCC unroll 16
        for (size_t r = 0; r < LANES; r++)
            line[r] = load_terms(p, at + r * p->ldx, terms);
    } else {
        for (size_t r = 0; r < LANES; r++)
            line[r] = r < rows ? load_terms(p, at + r * p->ldx, terms) : _mm512_setzero_si512();
    }
    if (!p->transposed)
        turn16(line);
#pragma GCC unroll 16
    for (size_t r = 0; r < LANES; r++)
        _mm512_store_si512(tile + r * STEP, line[r]);
}

static void pack_block(const ql_product *p, size_t row, size_t rows, size_t from, size_t depth, uint16_t *out)
{
    for (size_t at = 0; at < depth; at += STEP)
        for (size_t r = 0; r < rows; r += LANES, out += TILE)
            pack_tile(p, (row + r) * p->ldx + from + at, ql_least(LANES, rows - r), ql_least(STEP, depth - at), out);
}

static void tiles_pack(const ql_product *p, ql_plan plan, size_t index)
{
    size_t inputs = ql_product_inputs(p), terms = panel_terms(inputs), blocks = ql_pieces(p->m, BLOCK);
    size_t from = index / blocks * terms, row = index % blocks * BLOCK, depth = ql_least(terms, inputs - from);
    (void)plan;
    pack_block(p, row, ql_least(BLOCK, p->m - row), from, depth,
               (uint16_t *)p->packed + from * packed_rows(p->m) + row * ql_amx_steps(depth) * STEP);
}

/* Steps of x that stay in the first-level cache together: parts of about the same size, as sums are stored and loaded
 * for each. 576 terms, a little more than DEPTH, are one. */
static size_t steps_at_once(size_t steps)
{
    enum { MOST = DEPTH / STEP + DEPTH / STEP / 4 };
    return ql_pieces(steps, ql_pieces(steps, MOST));
}

/* sums[blocks of 32 outputs] (+)= 32 tokens with the group's panel. What is on its way: y, where the sums will go, and
 * whether the next tokens' x comes from far. */
static inline __attribute__((always_inline)) void multiply_tokens(bool transposed, const group *g, size_t block,
                                                                  size_t cols, bool add, float *sums, soon lines)
{
    size_t across = ql_pieces(cols, BLOCK);
    const char *y = lines.y;
    float *before = NULL;
    lines.y_lines = ql_pieces((1 + lines.y_two) * BLOCK, g->steps);
    lines.x_lines = lines.far_x ? ql_pieces(2 * TILE_ROWS, across) : 0;
    for (size_t i = 0; i < g->count; i++) {
        const segment *seg = &g->of[i];
        const uint16_t *x = seg->x + block * seg->steps * 2 * TILE;
        size_t at_once = steps_at_once(seg->steps), steps;
        for (size_t s = 0; s < seg->steps; s += steps, lines.y_line += steps * lines.y_lines, add = true) {
            steps = ql_least(at_once, seg->steps - s);
            for (size_t o = 0; o < across; o++) {
                lines.y = y ? y + o * (1 + lines.y_two) * TILE_LINE : NULL;
                lines.x = (const char *)(x + (s + steps) * 2 * TILE) + o * steps * lines.x_lines * TILE_LINE;
                multiply_block(transposed, x + s * 2 * TILE, seg->w + (o * seg->steps + s) * 2 * TILE, steps, add,
                               sums + o * SUMS, before, lines);
                before = sums + o * SUMS;
            }
        }
    }
    store_sums(before);
}

/* The same with no more than 16 tokens. */
static void multiply_few_tokens(bool transposed, const group *g, size_t block, size_t cols, bool add, float *sums)
{
    for (size_t i = 0; i < g->count; i++, add = true)
        for (size_t o = 0; o < ql_pieces(cols, BLOCK); o++)
            multiply_half_block(transposed, g->of[i].x + block * g->of[i].steps * 2 * TILE,
                                g->of[i].w + o * g->of[i].steps * 2 * TILE, g->of[i].steps, add, sums + o * SUMS);
}

/* Every token of rectangle t, no wider than a panel, with a group. */
static void multiply_group(const ql_product *p, const group *g, ql_tile t, bool first, bool last, bool waiting,
                           float *sums)
{
    size_t own = ql_pieces(t.cols, BLOCK) * SUMS;
    for (size_t r = 0; r < t.rows; r += BLOCK, sums += waiting ? own : 0) {
        ql_tile rows = {t.row + r, ql_least(BLOCK, t.rows - r), t.col, t.cols};
        size_t block = rows.row / BLOCK;
        size_t size = p->narrow_y ? sizeof(uint16_t) : sizeof(float);
        const char *y = p->narrow_y ? (const char *)p->narrow_y : (const char *)p->y;
        soon on_its_way = {.y = last ? y + (rows.row * p->ldy + t.col) * size : NULL,
                           .stride = p->ldy * size,
                           .y_two = !p->narrow_y,
                           .far_x = t.rows * g->steps * STEP > FAR_X};
        if (rows.rows <= LANES)
            multiply_few_tokens(p->transposed, g, block, t.cols, !first, sums);
        else if (p->transposed)
            multiply_tokens(true, g, block, t.cols, !first, sums, on_its_way);
        else
            multiply_tokens(false, g, block, t.cols, !first, sums, on_its_way);
        if (last)
            write_rows(p, rows, sums);
    }
}

static void tiles_tile(const ql_product *p, ql_tile t, void *scratch)
{
    bool waiting;
    size_t steps = deepest(p, &waiting), width = widest(steps);
    for (size_t c = 0; c < t.cols; c += width) {
        ql_tile panel = {t.row, t.rows, t.col + c, ql_least(width, t.cols - c)};
        size_t across = ql_pieces(panel.cols, QL_BLOCK) * 2;
        float *sums = (float *)(void *)((uint16_t *)scratch + across * steps * 2 * TILE);
        tiles_begin();
        for (place at = {p, 0}; at.p;) {
            bool first = at.p == p && at.from == 0;
            group g = next_group(&at);
            uint16_t *w = scratch;
            for (size_t i = 0; i < g.count; i++) {
                g.of[i].w = w;
                ql_fill_amx(g.of[i].p, panel.col, panel.cols, g.of[i].from, g.of[i].depth, w);
                w += across * g.of[i].steps * 2 * TILE;
            }
            multiply_group(p, &g, panel, first, !at.p, waiting, sums);
        }
        tiles_end();
    }
}

/* A few tokens would leave most of a tile empty. */
static bool few_fits(const ql_product *p)
{
    return p->m > QL_GEMV_INT16_TOKENS && p->m <= QL_GEMV_TOKENS && ql_few_fits(p);
}

static bool gemv_fits(const ql_product *p)
{
    return p->m <= QL_GEMV_INT16_TOKENS && ql_gemv_fits(p) && !ql_is_dense(p->w);
}

static const ql_way ways[] = {
    {.fits = few_fits, .packed = ql_few_packed, .plan = ql_few_plan,
     .pack = ql_few_int16_pack, .tile = ql_few_int16_tile},
    {.fits = gemv_fits, .packed = ql_gemv_packed, .plan = ql_gemv_plan,
     .pack = ql_gemv_int16_pack, .tile = ql_gemv_int16_tile},
    {.fits = ql_gemv_fits, .packed = ql_gemv_packed, .plan = ql_gemv_plan,
     .pack = ql_gemv_avx512_pack, .tile = ql_gemv_avx512_tile},
    {.fits = ql_takes_everything, .packed = tiles_packed, .plan = tiles_plan,
     .pack = tiles_pack, .tile = tiles_tile, .chains = true, .packs_alike = true,
     .pack_tokens = BLOCK},
};
enum { WAYS = sizeof ways / sizeof *ways };

static bool reads_narrow(const ql_product *p)
{
    return !few_fits(p) && !ql_gemv_fits(p);
}

#ifndef QL_AMX_EMULATED
const ql_matmul_kernel ql_matmul_amx = {
    .name = "amx",
    .cpu = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_VNNI | QL_CPU_AVX512_VBMI | QL_CPU_AVX512_BF16 | QL_CPU_AMX_BF16,
#else
const ql_matmul_kernel ql_matmul_amx_emulated = {
    .name = "amx, emulated",
    .cpu = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_VNNI | QL_CPU_AVX512_VBMI | QL_CPU_AVX512_BF16,
#endif
    .accepts = accepts,
    .ways = ways,
    .way_count = WAYS,
    .reads_narrow = reads_narrow,
    .bf16_inputs = true};
