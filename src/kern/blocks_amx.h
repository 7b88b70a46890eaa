/* Products of 32 tokens with 32 outputs by 2 x 2 tiles. Forward, rows of W are tiles as they lie and the result comes out
 * turned; transposed, x is. */
#ifndef QL_SRC_KERN_BLOCKS_AMX_H
#define QL_SRC_KERN_BLOCKS_AMX_H

#include "kern/amx_tiles.h"
#include "kern/fill_amx.h"
#include "kern/turn_avx512.h"

enum { BLOCK = 32, LANES = 16, STEP = 32, TILE = 512 /* bf16 */, SUMS = 4 * LANES * LANES /* of a block */ };

/* A tile of sums, [16 tokens][16 outputs] or, forward, turned. */
static inline __attribute__((always_inline)) void load_sums(const float *sums, bool turned, __m512i line[LANES])
{
#pragma GCC unroll 16
    for (size_t r = 0; r < LANES; r++)
        line[r] = _mm512_load_si512(sums + r * LANES);
    if (turned)
        turn16(line);
}

static inline __mmask16 first_lanes(size_t count)
{
    return (__mmask16)(count >= LANES ? ~0u : (1u << count) - 1);
}

/* y[rows][cols] (+)= such a tile. */
static void write_tile(const float *sums, bool turned, size_t rows, size_t cols, float *y, size_t ldy, bool add)
{
    __m512i line[LANES];
    load_sums(sums, turned, line);
    __mmask16 mask = first_lanes(cols);
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

static void write_narrow_tile(const float *sums, bool turned, size_t rows, size_t cols, uint16_t *y, size_t ldy)
{
    __m512i line[LANES];
    load_sums(sums, turned, line);
    __mmask16 mask = first_lanes(cols);
    uint16_t *out = y;
#pragma GCC unroll 16
    for (size_t r = 0; r < LANES; r++, out += ldy) {
        if (r >= rows)
            return;
        _mm256_mask_storeu_epi16(out, mask, (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(line[r])));
    }
}

/* The sums of rectangle t, at most 32 tokens, go to y. */
static void write_rows(const ql_product *p, ql_tile t, const float *sums)
{
    for (size_t r = 0; r < t.rows; r += LANES)
        for (size_t o = 0; o < t.cols; o += LANES) {
            size_t token = r / LANES, output = o / LANES % 2;
            const float *tile = sums + o / BLOCK * SUMS +
                                (p->transposed ? 2 * token + output : 2 * output + token) * LANES * LANES;
            size_t rows = ql_least(LANES, t.rows - r), at = (t.row + r) * p->ldy + t.col + o;
            if (p->narrow_y)
                write_narrow_tile(tile, !p->transposed, rows, t.cols - o, p->narrow_y + at, p->ldy);
            else
                write_tile(tile, !p->transposed, rows, t.cols - o, p->y + at, p->ldy, p->add);
        }
}

/* Rectangles of `most` rows and columns at most, of panels `width` wide: the time of all threads is about that of the
 * one with the most, and a quarter of a rectangle more, for which a slower processor keeps the others waiting. Decoding
 * counts as 75 tokens more, reading x as 24 outputs more. */
static void cut(ql_plan *plan, const ql_product *p, ql_tile most, size_t width, size_t threads)
{
    size_t best = SIZE_MAX, before = 0, fewest = ql_pieces(p->m, most.rows), last = ql_pieces(p->m, 2 * BLOCK);
    size_t outputs = ql_product_outputs(p), widest = ql_least(most.cols, ql_pieces(outputs, QL_BLOCK) * QL_BLOCK);
    for (size_t down = fewest; down == fewest || down <= last; down++) {
        size_t rows = ql_pieces(ql_pieces(p->m, down ? down : 1), BLOCK) * BLOCK, high = ql_pieces(p->m, rows);
        if (rows == before)
            continue;
        before = rows;
        for (size_t cols = widest; cols >= QL_BLOCK; cols -= QL_BLOCK) {
            size_t rounds = ql_pieces(high * ql_pieces(outputs, cols), threads);
            size_t time = (4 * rounds + 1) * (rows * (cols + 24 * ql_pieces(cols, width)) + 75 * cols);
            if (time < best)
                best = time, plan->rows = rows, plan->cols = cols;
        }
    }
}

/* What is fetched into the second-level cache while tiles are multiplied, a few lines a step. */
typedef struct soon {
    const char *y; /* [32 rows][2 lines, or 1 in bf16], to be written; NULL: none */
    size_t stride; /* bytes, of rows of y */
    size_t y_two;  /* 1: two lines */
    size_t y_line, y_lines; /* the first of them at this block's first step, and how many a step */
    bool far_x;
    const char *x; /* packed */
    size_t x_lines;
} soon;

static inline __attribute__((always_inline)) void fetch(soon lines, size_t step)
{
    for (size_t i = 0; lines.y && i < lines.y_lines; i++) {
        size_t line = lines.y_line + step * lines.y_lines + i;
        if (line >> lines.y_two < BLOCK)
            __builtin_prefetch(lines.y + (line >> lines.y_two) * lines.stride + (line & lines.y_two) * TILE_LINE, 0, 2);
    }
    for (size_t i = 0; i < lines.x_lines; i++)
        __builtin_prefetch(lines.x + (step * lines.x_lines + i) * TILE_LINE, 0, 2);
}

/* The steps of a product of 2 x 2 tiles: x stays in the first-level cache, w streams by. */
static inline __attribute__((always_inline)) void more_steps(bool transposed, const uint16_t *x, const uint16_t *w,
                                                             size_t first, size_t steps, soon lines)
{
    for (size_t s = first; s < steps; s++, x += 2 * TILE, w += 2 * TILE) {
        fetch(lines, s);
        if (transposed) {
            tile_load(4, x);
            tile_stream(6, w);
            tile_dot_bf16(0, 4, 6);
            tile_stream(7, w + TILE);
            tile_dot_bf16(1, 4, 7);
            tile_load(5, x + TILE);
        } else {
            tile_load(6, x);
            tile_stream(4, w);
            tile_dot_bf16(0, 4, 6);
            tile_load(7, x + TILE);
            tile_dot_bf16(1, 4, 7);
            tile_stream(5, w + TILE);
        }
        tile_dot_bf16(2, 5, 6);
        tile_dot_bf16(3, 5, 7);
    }
}

/* In fp32 or 32-bit integers. */
static inline void store_sums(void *sums)
{
    char *to = sums;
    tile_store(0, to);
    tile_store(1, to + TILE_BYTES);
    tile_store(2, to + 2 * TILE_BYTES);
    tile_store(3, to + 3 * TILE_BYTES);
}

/* sums (+)= 32 tokens of packed x with 32 outputs of the panel. The tiles still hold the sums of the block before,
 * which go to `before`, each while the first step waits for its tiles. */
static inline __attribute__((always_inline)) void multiply_block(bool transposed, const uint16_t *x, const uint16_t *w,
                                                                 size_t steps, bool add, float *sums, float *before,
                                                                 soon lines)
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
    fetch(lines, 0);
    more_steps(transposed, x + 2 * TILE, w + 2 * TILE, 1, steps, lines);
}

/* The same with no more than 16 tokens. */
static inline void multiply_half_block(bool transposed, const uint16_t *x, const uint16_t *w, size_t steps, bool add,
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

#endif
