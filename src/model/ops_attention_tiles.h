/* The block products of attention by AMX tiles: operands rounded to bf16 as they are packed, sums in fp32. */
#ifndef QL_SRC_MODEL_OPS_ATTENTION_TILES_H
#define QL_SRC_MODEL_OPS_ATTENTION_TILES_H

#include "kern/amx_tiles.h"
#include "kern/turn_avx512.h"

/* Wide panels, as packing the stream takes longer than multiplying by it. */
enum { PANEL = 64, ROUNDS = 1, SIDE = 16, STEP = 32, TILE = SIDE * STEP /* bf16 */, WIDEST = 256 /* head_dim */ };
enum { MOST_TILES = WIDEST / SIDE * (PANEL / STEP) }; /* of an operand: WIDEST x PANEL */

typedef struct operand {
    _Alignas(64) uint16_t tile[MOST_TILES][TILE]; /* [blocks of 16 rows or columns][steps of 32 terms] */
} operand;

static void begin_products(void)
{
    tiles_begin();
}

static void end_products(void)
{
    tiles_end();
}

static inline __mmask16 some_lanes(size_t count)
{
    return (__mmask16)(count >= 16 ? 0xffff : (1u << count) - 1);
}

/* 16 words, each of a number of x and the one below it, of which `rows` rows and `cols` columns are there. */
static inline __m512i join_rows(const float *x, size_t ld, size_t rows, size_t cols)
{
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512 above = _mm512_maskz_loadu_ps(rows > 0 ? some_lanes(cols) : 0, x);
    __m512 below = _mm512_maskz_loadu_ps(rows > 1 ? some_lanes(cols) : 0, x + ld);
    return _mm512_permutexvar_epi16(_mm512_loadu_si512(order), (__m512i)_mm512_cvtne2ps_pbh(below, above));
}

static inline size_t remains(size_t length, size_t at)
{
    return length > at ? length - at : 0;
}

/* a[rows][depth] as it lies: what tiles multiply from the left. */
static void pack_left(operand *o, size_t rows, size_t depth, const float *a, size_t ld)
{
    uint16_t *out = o->tile[0];
    for (size_t row = 0; row < rows; row += SIDE)
        for (size_t at = 0; at < depth; at += STEP)
            for (size_t r = row; r < row + SIDE; r++, out += STEP) {
                size_t there = r < rows ? depth - at : 0;
                __m512 low = _mm512_maskz_loadu_ps(some_lanes(there), a + r * ld + at);
                __m512 high = _mm512_maskz_loadu_ps(some_lanes(remains(there, 16)), a + r * ld + at + 16);
                _mm512_store_si512(out, (__m512i)_mm512_cvtne2ps_pbh(high, low));
            }
}

/* The same of a[depth][rows] transposed. */
static void pack_left_turned(operand *o, size_t rows, size_t depth, const float *a, size_t ld)
{
    uint16_t *out = o->tile[0];
    for (size_t row = 0; row < rows; row += SIDE)
        for (size_t at = 0; at < depth; at += STEP, out += TILE) {
            __m512i line[SIDE];
#pragma GCC unroll 16
            for (size_t i = 0; i < SIDE; i++)
                line[i] = join_rows(a + (at + 2 * i) * ld + row, ld, remains(depth, at + 2 * i), rows - row);
            turn16(line);
#pragma GCC unroll 16
            for (size_t i = 0; i < SIDE; i++)
                _mm512_store_si512(out + i * STEP, line[i]);
        }
}

/* b[depth][cols] in pairs of rows: what tiles multiply from the right. cols is a multiple of 16. */
static void pack_right(operand *o, size_t depth, size_t cols, const float *b, size_t ld)
{
    uint16_t *out = o->tile[0];
    for (size_t col = 0; col < cols; col += SIDE)
        for (size_t at = 0; at < depth; at += STEP)
            for (size_t i = at; i < at + STEP; i += 2, out += STEP)
                _mm512_store_si512(out, join_rows(b + i * ld + col, ld, remains(depth, i), SIDE));
}

/* c[rows][cols] (+)= scale * a b; cols is a multiple of 32. */
static void multiply(size_t rows, size_t cols, size_t depth, const operand *a, const operand *b, float scale, bool add,
                     float *c, size_t ldc)
{
    size_t steps = (depth + STEP - 1) / STEP;
    for (size_t row = 0; row < rows; row += 2 * SIDE)
        for (size_t col = 0; col < cols; col += 2 * SIDE) {
            _Alignas(64) float sums[4][SIDE * SIDE];
            const uint16_t *up = a->tile[row / SIDE * steps], *left_side = b->tile[col / SIDE * steps];
            const uint16_t *down = row + SIDE < rows ? up + steps * TILE : up; /* once more, and not stored */
            tile_zero(0);
            tile_zero(1);
            tile_zero(2);
            tile_zero(3);
            for (size_t s = 0; s < steps; s++) {
                tile_load(4, up + s * TILE);
                tile_load(6, left_side + s * TILE);
                tile_dot_bf16(0, 4, 6);
                tile_load(7, left_side + (steps + s) * TILE);
                tile_dot_bf16(1, 4, 7);
                tile_load(5, down + s * TILE);
                tile_dot_bf16(2, 5, 6);
                tile_dot_bf16(3, 5, 7);
            }
            tile_store(0, sums[0]);
            tile_store(1, sums[1]);
            tile_store(2, sums[2]);
            tile_store(3, sums[3]);
            for (size_t r = 0; r < 2 * SIDE && row + r < rows; r++)
                for (size_t half = 0; half < 2; half++) {
                    float *line = c + (row + r) * ldc + col + half * SIDE;
                    vf x = vload(sums[r / SIDE * 2 + half] + r % SIDE * SIDE) * vset(scale);
                    if (add)
                        x = vload(line) + x;
                    vstore(line, x);
                }
        }
}

/* As without tiles: */
static void scores(size_t rows, size_t head_dim, const float *stream, size_t ld, const float *panel, float scale, float *s)
{
    operand a, b;
    pack_left(&a, rows, head_dim, stream, ld);
    pack_right(&b, head_dim, PANEL, panel, PANEL);
    multiply(rows, PANEL, head_dim, &a, &b, scale, false, s, PANEL);
}

static void accumulate(size_t rows, size_t head_dim, const float *stream, size_t ld, const float *s, float *sum)
{
    operand a, b;
    pack_left_turned(&a, head_dim, rows, stream, ld);
    pack_right(&b, rows, PANEL, s, PANEL);
    multiply(head_dim, PANEL, rows, &a, &b, 1, true, sum, PANEL);
}

static void accumulate_stream(size_t rows, size_t width, const float *s, const float *panel_rows, float *sum, bool add)
{
    operand a, b;
    pack_left(&a, rows, PANEL, s, PANEL);
    pack_right(&b, PANEL, width, panel_rows, width);
    multiply(rows, width, PANEL, &a, &b, 1, add, sum, width);
}

#endif
