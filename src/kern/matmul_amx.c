/* AMX, bf16: x and decoded weights rounded to bf16, sums in fp32. A panel of W (64 outputs x 256 terms) is decoded
 * into the first-level cache and multiplied with every block of 32 tokens of the rectangle; sums wait in scratch
 * between panels. Forward, rows of W are tiles as they lie and the result comes out turned; transposed, x is. */
#include <immintrin.h>

#include "base/cpu.h"
#include "kern/amx_tiles.h"
#include "kern/decode.h"
#include "kern/fill_amx.h"
#include "kern/gemv.h"
#include "kern/kernels.h"
#include "kern/turn_avx512.h"

/* Rectangles: a panel's depth of packed x (512 KB) and the sums (1 MB) stay in a second-level cache of 2 MB. */
enum { MOST_ROWS = 1024, MOST_COLS = 256 };
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

static ql_plan plan(const ql_product *p, size_t threads)
{
    if (ql_gemv_fits(p))
        return ql_gemv_plan(p, threads);
    size_t inputs = ql_product_inputs(p), outputs = ql_product_outputs(p), down = pieces(p->m, MOST_ROWS);
    ql_plan plan = {.rows = packed_rows(pieces(p->m, down ? down : 1)), .cols = MOST_COLS};
    plan.cols = least(plan.cols, pieces(outputs, QL_AMX_OUTPUTS) * QL_AMX_OUTPUTS);
    while (plan.cols > QL_AMX_OUTPUTS && down * pieces(outputs, plan.cols) < 4 * threads)
        plan.cols -= QL_AMX_OUTPUTS;
    plan.packs = pieces(p->m, plan.rows ? plan.rows : 1) * pieces(inputs, QL_AMX_TERMS);
    plan.packed = packed_rows(p->m) * ql_amx_steps(inputs) * STEP * sizeof(uint16_t);
    plan.scratch = QL_AMX_OUTPUTS * QL_AMX_TERMS * sizeof(uint16_t) +
                   pieces(plan.rows, BLOCK) * pieces(plan.cols, BLOCK) * SUMS * sizeof(float);
    if (plan.packed < ql_gemv_packed(p))
        plan.packed = ql_gemv_packed(p);
    return plan;
}

static inline __m512i load_terms(const float *x, size_t count)
{
    uint32_t bits = count >= STEP ? ~0u : (1u << count) - 1;
    __m512 first = _mm512_maskz_loadu_ps((__mmask16)bits, x), second = _mm512_maskz_loadu_ps((__mmask16)(bits >> 16), x + LANES);
    return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

/* One tile: up to 16 tokens x 32 terms of x; forward as pairs of terms side by side. */
static inline void pack_tile(const float *x, size_t ldx, size_t rows, size_t terms, bool transposed, uint16_t *tile)
{
    __m512i line[LANES];
    if (rows == LANES) {
#pragma GCC unroll 16
        for (size_t r = 0; r < LANES; r++)
            line[r] = load_terms(x + r * ldx, terms);
    } else {
        for (size_t r = 0; r < LANES; r++)
            line[r] = r < rows ? load_terms(x + r * ldx, terms) : _mm512_setzero_si512();
    }
    if (!transposed)
        turn16(line);
#pragma GCC unroll 16
    for (size_t r = 0; r < LANES; r++)
        _mm512_store_si512(tile + r * STEP, line[r]);
}

static void pack_block(const float *x, size_t ldx, size_t rows, size_t depth, bool transposed, uint16_t *out)
{
    for (size_t at = 0; at < depth; at += STEP)
        for (size_t r = 0; r < rows; r += LANES, out += TILE)
            pack_tile(x + r * ldx + at, ldx, least(LANES, rows - r), least(STEP, depth - at), transposed, out);
}

static void pack(const ql_product *p, ql_plan plan, size_t index, void *packed)
{
    if (ql_gemv_fits(p)) {
        ql_gemv_avx512_pack(p, plan, index, packed);
        return;
    }
    size_t inputs = ql_product_inputs(p), panels = pieces(inputs, QL_AMX_TERMS);
    size_t row = index / panels * plan.rows, from = index % panels * QL_AMX_TERMS;
    size_t rows = least(plan.rows, p->m - row), depth = least(QL_AMX_TERMS, inputs - from);
    uint16_t *out = (uint16_t *)packed + (row * ql_amx_steps(inputs) + packed_rows(rows) * (from / STEP)) * STEP;
    const float *x = p->x + row * p->ldx + from;
    for (size_t r = 0; r < rows; r += BLOCK) {
        size_t some = least(BLOCK, rows - r);
        pack_block(x + r * p->ldx, p->ldx, some, depth, p->transposed, out);
        out += packed_rows(some) * ql_amx_steps(depth) * STEP;
    }
}

/* sums[2 x 2 tiles] (+)= a[2] b[2]: a and b hold two tiles a step. */
static void block_2x2(const uint16_t *a, const uint16_t *b, size_t steps, bool add, float *sums)
{
    if (add) {
        tile_load(0, sums);
        tile_load(1, sums + 256);
        tile_load(2, sums + 512);
        tile_load(3, sums + 768);
    } else {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
    }
    for (size_t s = 0; s < steps; s++, a += 2 * TILE, b += 2 * TILE) {
        tile_load(4, a);
        tile_load(6, b);
        tile_dot_bf16(0, 4, 6);
        tile_load(7, b + TILE);
        tile_dot_bf16(1, 4, 7);
        tile_load(5, a + TILE);
        tile_dot_bf16(2, 5, 6);
        tile_dot_bf16(3, 5, 7);
    }
    tile_store(0, sums);
    tile_store(1, sums + 256);
    tile_store(2, sums + 512);
    tile_store(3, sums + 768);
}

/* As above with one tile of a (sums 0, 1) ... */
static void block_1x2(const uint16_t *a, const uint16_t *b, size_t steps, bool add, float *sums)
{
    tile_zero(0);
    tile_zero(1);
    if (add) {
        tile_load(0, sums);
        tile_load(1, sums + 256);
    }
    for (size_t s = 0; s < steps; s++, a += TILE, b += 2 * TILE) {
        tile_load(4, a);
        tile_load(6, b);
        tile_dot_bf16(0, 4, 6);
        tile_load(7, b + TILE);
        tile_dot_bf16(1, 4, 7);
    }
    tile_store(0, sums);
    tile_store(1, sums + 256);
}

/* ... or one tile of b (sums 0, 2). */
static void block_2x1(const uint16_t *a, const uint16_t *b, size_t steps, bool add, float *sums)
{
    tile_zero(0);
    tile_zero(2);
    if (add) {
        tile_load(0, sums);
        tile_load(2, sums + 512);
    }
    for (size_t s = 0; s < steps; s++, a += 2 * TILE, b += TILE) {
        tile_load(4, a);
        tile_load(6, b);
        tile_dot_bf16(0, 4, 6);
        tile_load(5, a + TILE);
        tile_dot_bf16(2, 5, 6);
    }
    tile_store(0, sums);
    tile_store(2, sums + 512);
}

/* A block of 32 (or 16) tokens of packed x with 32 outputs of the panel. */
static void multiply(bool transposed, size_t tokens, const uint16_t *x, const uint16_t *w, size_t steps, bool add,
                     float *sums)
{
    if (tokens > LANES)
        block_2x2(transposed ? x : w, transposed ? w : x, steps, add, sums);
    else if (transposed)
        block_1x2(x, w, steps, add, sums);
    else
        block_2x1(w, x, steps, add, sums);
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

static void write_block(const ql_product *p, const float *sums, size_t row, size_t rows, size_t col, size_t cols)
{
    for (size_t i = 0; i < 4; i++) {
        size_t t = p->transposed ? i / 2 : i % 2, o = p->transposed ? i % 2 : i / 2;
        if (t * LANES >= rows || o * LANES >= cols)
            continue;
        write_tile(sums + i * LANES * LANES, !p->transposed, rows - t * LANES, cols - o * LANES,
                   p->y + (row + t * LANES) * p->ldy + col + o * LANES, p->ldy, p->add);
    }
}

/* All tokens of the rectangle with one panel of W. */
static void multiply_panel(const ql_product *p, ql_tile t, const uint16_t *x, const uint16_t *panel, size_t col,
                           size_t cols, size_t steps, bool first, bool last, float *sums)
{
    for (size_t half = 0; half < cols; half += BLOCK, panel += steps * 2 * TILE) {
        const uint16_t *block = x;
        for (size_t r = 0; r < t.rows; r += BLOCK, sums += SUMS) {
            size_t tokens = least(BLOCK, t.rows - r);
            multiply(p->transposed, tokens, block, panel, steps, !first, sums);
            if (last)
                write_block(p, sums, t.row + r, tokens, col + half, cols - half);
            block += packed_rows(tokens) * steps * STEP;
        }
    }
}

static void tile(const ql_product *p, ql_tile t, const void *packed, void *scratch)
{
    if (ql_gemv_fits(p)) {
        ql_gemv_avx512_tile(p, t, packed, scratch);
        return;
    }
    uint16_t *panel = scratch;
    float *sums = (float *)(void *)(panel + QL_AMX_OUTPUTS * QL_AMX_TERMS);
    size_t inputs = ql_product_inputs(p), panel_sums = QL_AMX_OUTPUTS / BLOCK * pieces(t.rows, BLOCK) * SUMS;
    const uint16_t *x = (const uint16_t *)packed + t.row * ql_amx_steps(inputs) * STEP;
    tiles_begin();
    for (size_t from = 0; from < inputs; from += QL_AMX_TERMS) {
        size_t depth = least(QL_AMX_TERMS, inputs - from), steps = ql_amx_steps(depth);
        for (size_t c = 0; c < t.cols; c += QL_AMX_OUTPUTS) {
            size_t cols = least(QL_AMX_OUTPUTS, t.cols - c);
            ql_fill_amx(p, t.col + c, cols, from, depth, panel);
            multiply_panel(p, t, x, panel, t.col + c, cols, steps, from == 0, from + depth == inputs,
                           sums + c / QL_AMX_OUTPUTS * panel_sums);
        }
        x += packed_rows(t.rows) * steps * STEP;
    }
    tiles_end();
}

#ifndef QL_AMX_EMULATED
const ql_matmul_kernel ql_matmul_amx = {
    .name = "amx",
    .cpu = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_BF16 | QL_CPU_AMX_BF16,
#else
const ql_matmul_kernel ql_matmul_amx_emulated = {
    .name = "amx, emulated",
    .cpu = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_BF16,
#endif
    .accepts = accepts,
    .plan = plan,
    .pack = pack,
    .tile = tile,
    .bf16_inputs = true};
