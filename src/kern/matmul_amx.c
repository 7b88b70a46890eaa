/* AMX, bf16: x and decoded weights rounded to bf16, sums in fp32; for up to eight tokens both in fixed point instead, by
 * vectors, which is more exact. Forward, rows of W are tiles as they lie and the result comes out turned; transposed, x
 * is. A panel of W (64 outputs x 2048 terms) is decoded into the second-level cache, where a panel of x waits. Of it 32
 * outputs x DEPTH terms at a time stay in the first-level cache, while x streams by. Sums wait in scratch between panels
 * of W. */
#include <immintrin.h>

#include "base/cpu.h"
#include "kern/amx_tiles.h"
#include "kern/decode.h"
#include "kern/few.h"
#include "kern/fill_amx.h"
#include "kern/gemv.h"
#include "kern/kernels.h"
#include "kern/turn_avx512.h"

#ifndef QL_AMX_EMULATED
enum { DEPTH = 512 /* terms of W that stay in the first-level cache */, MOST_ROWS = 1024, MOST_COLS = 1024 };
enum { MOST_TERMS = QL_AMX_TERMS, PANEL_OF_X = 3 << 18 /* bf16: most of a second-level cache of 2 MB */ };
#else /* small, so that small products have several of everything */
enum { DEPTH = 64, MOST_ROWS = 64, MOST_COLS = 128, MOST_TERMS = 128, PANEL_OF_X = 48 * 128 };
#endif
enum { BLOCK = 32, LANES = 16, STEP = 32, TILE = 512 /* bf16 */, SUMS = 4 * LANES * LANES /* of a block */ };

static size_t pieces(size_t length, size_t piece)
{
    return (length + piece - 1) / piece;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static bool accepts(const ql_wview *w)
{
    return w->format.code != QL_CODE_F32;
}

/* Packed x: rectangle after rectangle, in it panel after panel, in it block of 32 tokens after block, in it
 * [step][1 or 2 tiles of 16 tokens]. */
static size_t packed_rows(size_t rows)
{
    return pieces(rows, LANES) * LANES;
}

/* Terms of a panel: sums are cut into panels of about the same depth. */
static size_t panel_terms(size_t inputs)
{
    size_t panels = pieces(inputs, MOST_TERMS);
    return pieces(pieces(inputs, panels ? panels : 1), QL_BLOCK) * QL_BLOCK;
}

/* Blocks of sums side by side: all where they wait for another panel, otherwise a panel's. */
static size_t sums_across(size_t inputs, size_t cols)
{
    return pieces(inputs > panel_terms(inputs) ? cols : QL_AMX_OUTPUTS, BLOCK);
}

static size_t tiles_packed(const ql_product *p)
{
    return packed_rows(p->m) * ql_amx_steps(ql_product_inputs(p)) * STEP * sizeof(uint16_t);
}

static ql_plan tiles_plan(const ql_product *p, size_t threads)
{
    size_t inputs = ql_product_inputs(p), outputs = ql_product_outputs(p), terms = panel_terms(inputs);
    size_t most = least(MOST_ROWS, PANEL_OF_X / terms / BLOCK * BLOCK), down = pieces(p->m, most);
    /* As many rectangles for every thread, as wide as may be: each reads its panels of x once. */
    size_t across = threads * pieces(outputs, threads * MOST_COLS);
    ql_plan plan = {.rows = pieces(pieces(p->m, down ? down : 1), BLOCK) * BLOCK,
                    .cols = pieces(pieces(outputs, across), QL_AMX_OUTPUTS) * QL_AMX_OUTPUTS};
    /* Narrow weights give many threads too few rectangles: tokens are shared out as well. */
    while (plan.rows > 2 * BLOCK && pieces(p->m, plan.rows) * pieces(outputs, plan.cols) < threads)
        plan.rows = pieces(plan.rows / 2, BLOCK) * BLOCK;
    plan.packs = pieces(p->m, plan.rows ? plan.rows : 1) * pieces(inputs, terms);
    plan.packed = tiles_packed(p);
    plan.scratch = QL_AMX_OUTPUTS * terms * sizeof(uint16_t) +
                   pieces(least(p->m, most), BLOCK) * sums_across(inputs, plan.cols) * SUMS * sizeof(float);
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
            pack_tile(p, (row + r) * p->ldx + from + at, least(LANES, rows - r), least(STEP, depth - at), out);
}

static void tiles_pack(const ql_product *p, ql_plan plan, size_t index)
{
    size_t inputs = ql_product_inputs(p), terms = panel_terms(inputs), panels = pieces(inputs, terms);
    size_t row = index / panels * plan.rows, from = index % panels * terms;
    size_t rows = least(plan.rows, p->m - row), depth = least(terms, inputs - from);
    uint16_t *out = (uint16_t *)p->packed + (row * ql_amx_steps(inputs) + packed_rows(rows) * (from / STEP)) * STEP;
    for (size_t r = 0; r < rows; r += BLOCK) {
        size_t some = least(BLOCK, rows - r);
        pack_block(p, row + r, some, from, depth, out);
        out += packed_rows(some) * ql_amx_steps(depth) * STEP;
    }
}

/* y[rows][cols] (+)= a tile of sums, [16 tokens][16 outputs] or, forward, turned. */
static void write_tile(const float *sums, bool turned, size_t rows, size_t cols, float *y, size_t ldy, bool add)
{
    __m512i line[LANES];
#pragma GCC unroll 16
    for (size_t r = 0; r < LANES; r++)
        line[r] = _mm512_load_si512(sums + r * LANES);
    if (turned)
        turn16(line);
    __mmask16 mask = (__mmask16)(cols >= LANES ? ~0u : (1u << cols) - 1);
    float *out = y;
#pragma GCC unroll 16
    for (size_t r = 0; r < LANES; r++, out += ldy) {
        if (r >= rows)
            return;
        __m512 value = _mm512_castsi512_ps(line[r]);
        if (add)
            value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, out));
        _mm512_mask_storeu_ps(out, mask, value);
    }
}

/* The steps of a product of 2 x 2 tiles: w stays in the first-level cache, x streams by. */
static inline __attribute__((always_inline)) void more_steps(bool transposed, const uint16_t *x, const uint16_t *w,
                                                             size_t steps)
{
    for (size_t s = 0; s < steps; s++, x += 2 * TILE, w += 2 * TILE) {
        if (transposed) {
            tile_stream(4, x);
            tile_load(6, w);
            tile_dot_bf16(0, 4, 6);
            tile_load(7, w + TILE);
            tile_dot_bf16(1, 4, 7);
            tile_stream(5, x + TILE);
        } else {
            tile_load(4, w);
            tile_stream(6, x);
            tile_dot_bf16(0, 4, 6);
            tile_stream(7, x + TILE);
            tile_dot_bf16(1, 4, 7);
            tile_load(5, w + TILE);
        }
        tile_dot_bf16(2, 5, 6);
        tile_dot_bf16(3, 5, 7);
    }
}

static inline void store_sums(float *sums)
{
    tile_store(0, sums);
    tile_store(1, sums + LANES * LANES);
    tile_store(2, sums + 2 * LANES * LANES);
    tile_store(3, sums + 3 * LANES * LANES);
}

/* sums (+)= 32 tokens of packed x with 32 outputs of the panel. The tiles still hold the sums of the block before,
 * which go to `before`, each while the first step waits for its tiles. */
static inline __attribute__((always_inline)) void multiply_block(bool transposed, const uint16_t *x, const uint16_t *w,
                                                                 size_t steps, bool add, float *sums, float *before)
{
#define CHANGE_SUMS(t)                                                                                                 \
    do {                                                                                                               \
        if (before)                                                                                                    \
            tile_store(t, before + t * LANES * LANES);                                                                 \
        if (add)                                                                                                       \
            tile_load(t, sums + t * LANES * LANES);                                                                    \
        else                                                                                                           \
            tile_zero(t);                                                                                              \
    } while (0)
    const uint16_t *a = transposed ? x : w, *b = transposed ? w : x;
    tile_load(4, a);
    tile_load(6, b);
    CHANGE_SUMS(0);
    tile_dot_bf16(0, 4, 6);
    tile_load(7, b + TILE);
    CHANGE_SUMS(1);
    tile_dot_bf16(1, 4, 7);
    tile_load(5, a + TILE);
    CHANGE_SUMS(2);
    tile_dot_bf16(2, 5, 6);
    CHANGE_SUMS(3);
    tile_dot_bf16(3, 5, 7);
#undef CHANGE_SUMS
    more_steps(transposed, x + 2 * TILE, w + 2 * TILE, steps - 1);
}

/* The same with no more than 16 tokens. */
static void multiply_half_block(bool transposed, const uint16_t *x, const uint16_t *w, size_t steps, bool add,
                                float *sums)
{
    float *other = sums + (transposed ? 1 : 2) * LANES * LANES;
    tile_zero(0);
    tile_zero(1);
    if (add) {
        tile_load(0, sums);
        tile_load(1, other);
    }
    for (size_t s = 0; s < steps; s++, x += TILE, w += 2 * TILE) {
        tile_load(4, x);
        tile_load(5, w);
        tile_load(6, w + TILE);
        if (transposed) {
            tile_dot_bf16(0, 4, 5);
            tile_dot_bf16(1, 4, 6);
        } else {
            tile_dot_bf16(0, 5, 4);
            tile_dot_bf16(1, 6, 4);
        }
    }
    tile_store(0, sums);
    tile_store(1, other);
}

/* All tokens of the rectangle with 32 outputs of the panel. */
static inline __attribute__((always_inline)) void multiply_rows(bool transposed, size_t rows, const uint16_t *x,
                                                                const uint16_t *w, size_t steps, bool add, float *sums)
{
    enum { AT_ONCE = DEPTH / STEP };
    float *before = NULL;
    size_t whole = packed_rows(rows) / BLOCK;
    for (size_t s = 0; s < steps; s += AT_ONCE)
        for (size_t i = 0; i < whole; i++) {
            multiply_block(transposed, x + (i * steps + s) * 2 * TILE, w + s * 2 * TILE, least(AT_ONCE, steps - s),
                           add || s, sums + i * SUMS, before);
            before = sums + i * SUMS;
        }
    if (before)
        store_sums(before);
    if (whole * BLOCK < rows)
        multiply_half_block(transposed, x + whole * steps * 2 * TILE, w, steps, add, sums + whole * SUMS);
}

/* All tokens of the rectangle with a panel of W. */
static void multiply_panel(const ql_product *p, size_t rows, const uint16_t *x, const uint16_t *panel, size_t cols,
                           size_t steps, bool add, float *sums)
{
    for (size_t c = 0; c < cols; c += BLOCK, panel += steps * 2 * TILE, sums += pieces(rows, BLOCK) * SUMS) {
        if (p->transposed)
            multiply_rows(true, rows, x, panel, steps, add, sums);
        else
            multiply_rows(false, rows, x, panel, steps, add, sums);
    }
}

/* The sums of rectangle t, [32 outputs][block of tokens], go to y; the next rows are on their way meanwhile. */
static void write_rows(const ql_product *p, ql_tile t, const float *sums)
{
    size_t across = pieces(t.rows, BLOCK) * SUMS;
    for (size_t r = 0; r < t.rows; r += LANES) {
        size_t rows = least(LANES, t.rows - r), token = r / LANES % 2;
        float *y = p->y + (t.row + r) * p->ldy + t.col;
        for (size_t o = 0; o < t.cols; o += LANES) {
            size_t output = o / LANES % 2, at = p->transposed ? 2 * token + output : 2 * output + token;
            for (size_t i = LANES; i < 2 * LANES && r + i < t.rows; i++)
                __builtin_prefetch(y + i * p->ldy + o, 1);
            write_tile(sums + o / BLOCK * across + r / BLOCK * SUMS + at * LANES * LANES, !p->transposed, rows,
                       t.cols - o, y + o, p->ldy, p->add);
        }
    }
}

static void tiles_tile(const ql_product *p, ql_tile t, void *scratch)
{
    size_t inputs = ql_product_inputs(p), terms = panel_terms(inputs), across = pieces(t.rows, BLOCK) * SUMS;
    uint16_t *panel = scratch;
    float *sums = (float *)(void *)(panel + QL_AMX_OUTPUTS * terms);
    const uint16_t *x = (const uint16_t *)p->packed + t.row * ql_amx_steps(inputs) * STEP;
    tiles_begin();
    for (size_t from = 0; from < inputs; from += terms, x += packed_rows(t.rows) * terms) {
        size_t depth = least(terms, inputs - from);
        for (size_t c = 0; c < t.cols; c += QL_AMX_OUTPUTS) {
            size_t cols = least(QL_AMX_OUTPUTS, t.cols - c);
            float *out = sums + (inputs > terms ? c / BLOCK * across : 0);
            ql_fill_amx(p, t.col + c, cols, from, depth, panel);
            multiply_panel(p, t.rows, x, panel, cols, ql_amx_steps(depth), from > 0, out);
            if (from + depth == inputs)
                write_rows(p, (ql_tile){t.row, t.rows, t.col + c, cols}, out);
        }
    }
    tiles_end();
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
     .pack = tiles_pack, .tile = tiles_tile},
};
enum { WAYS = sizeof ways / sizeof *ways };

static bool reads_narrow(const ql_product *p)
{
    return !few_fits(p) && !ql_gemv_fits(p);
}

#ifndef QL_AMX_EMULATED
const ql_matmul_kernel ql_matmul_amx = {
    .name = "amx",
    .cpu = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_VNNI | QL_CPU_AVX512_BF16 | QL_CPU_AMX_BF16,
#else
const ql_matmul_kernel ql_matmul_amx_emulated = {
    .name = "amx, emulated",
    .cpu = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_VNNI | QL_CPU_AVX512_BF16,
#endif
    .accepts = accepts,
    .ways = ways,
    .way_count = WAYS,
    .reads_narrow = reads_narrow,
    .bf16_inputs = true};
