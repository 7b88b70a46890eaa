/* What attention on tiles consists of, but for the products: laying fp32 rows into bf16 tiles, and 2^x. Only for files
 * compiled for AVX-512 with BF16. */
#ifndef QL_SRC_MODEL_OPS_ATTENTION_PACK_H
#define QL_SRC_MODEL_OPS_ATTENTION_PACK_H

#include "kern/turn_avx512.h"
#include "model/ops_attention_tiles.h"

enum { BLOCK = QL_TILES_BLOCK, SIDE = 16, TILE = SIDE * BLOCK /* bf16 */, AREA = SIDE * SIDE /* fp32 */, WIDEST = 256 };

/* A block of rows to pack, times factor; rows and columns that are not there become zeros. */
typedef struct source {
    const float *x;
    size_t ld, rows, cols;
    float factor;
    size_t next; /* floats from here to what will be packed next */
} source;

static inline __mmask16 some_lanes(size_t count)
{
    return (__mmask16)(count >= 16 ? 0xffff : (1u << count) - 1);
}

static inline size_t remains(size_t length, size_t at)
{
    return length > at ? length - at : 0;
}

static inline __m512 get(const source *s, size_t row, size_t col)
{
    __mmask16 lanes = row < s->rows ? some_lanes(remains(s->cols, col)) : 0;
    const float *x = s->x + row * s->ld + col;
    _mm_prefetch((const char *)(x + s->next), _MM_HINT_T1); /* rows are too far apart to be foreseen */
    return _mm512_maskz_loadu_ps(lanes, x) * _mm512_set1_ps(s->factor);
}

/* 32 numbers of a row. */
static inline __m512i words_of_row(const source *s, size_t row, size_t col)
{
    return (__m512i)_mm512_cvtne2ps_pbh(get(s, row, col + SIDE), get(s, row, col));
}

static inline __m512i interleaved(__m512 above, __m512 below)
{
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_loadu_si512(order), (__m512i)_mm512_cvtne2ps_pbh(below, above));
}

static inline void put_tile(uint16_t *tile, const __m512i line[SIDE])
{
#pragma GCC unroll 16
    for (size_t i = 0; i < SIDE; i++)
        _mm512_store_si512(tile + i * BLOCK, line[i]);
}

/* In which order lanes hold the queries of a block in the backward pass: unpacking two lines by words then leaves
 * queries 0 to 15 in one line and 16 to 31 in another. */
static const uint8_t lane_order[BLOCK] = {0, 1, 2,  3,  16, 17, 18, 19, 4,  5,  6,  7,  20, 21, 22, 23,
                                          8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31};
static const uint8_t plain_order[BLOCK] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                           16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

/* [2 of 16 tokens][pad / 32]: from the left, over dimensions. */
static void pack_rows(const source *s, size_t pad, uint16_t *out)
{
    for (size_t half = 0; half < BLOCK; half += SIDE)
        for (size_t col = 0; col < pad; col += BLOCK)
            for (size_t row = half; row < half + SIDE; row++, out += BLOCK)
                _mm512_store_si512(out, words_of_row(s, row, col));
}

/* [2 of 16 tokens][pad / 32]: from the right, over dimensions. */
static void pack_turned(const source *s, size_t pad, const uint8_t order[BLOCK], uint16_t *out)
{
    for (size_t half = 0; half < BLOCK; half += SIDE)
        for (size_t col = 0; col < pad; col += BLOCK, out += TILE) {
            __m512i line[SIDE];
#pragma GCC unroll 16
            for (size_t i = 0; i < SIDE; i++)
                line[i] = words_of_row(s, order[half + i], col);
            turn16(line);
            put_tile(out, line);
        }
}

/* [pad / 16]: from the right, over tokens. */
static void pack_pairs(const source *s, size_t pad, const uint8_t order[BLOCK], uint16_t *out)
{
    for (size_t col = 0; col < pad; col += SIDE)
        for (size_t i = 0; i < BLOCK; i += 2, out += BLOCK)
            _mm512_store_si512(out, interleaved(get(s, order[i], col), get(s, order[i + 1], col)));
}

/* [pad / 16]: from the left, over tokens. */
static void pack_turned_pairs(const source *s, size_t pad, uint16_t *out)
{
    for (size_t col = 0; col < pad; col += SIDE, out += TILE) {
        __m512i line[SIDE];
#pragma GCC unroll 16
        for (size_t i = 0; i < SIDE; i++)
            line[i] = interleaved(get(s, 2 * i, col), get(s, 2 * i + 1, col));
        turn16(line);
        put_tile(out, line);
    }
}

/* Tiles to multiply: two lines of them on a side, the next ones of both `step` further. */
typedef struct side {
    const uint16_t *one, *other;
    size_t step; /* bf16 */
} side;

/* 2^x for x up to 127, within 2^-13.2 of it relatively (tests/test_ops_attention.c); whole powers are exact, and from
 * -127 down it is 0. NaN of NaN. x = n + r, |r| <= 1/2; adding 1.5 * 2^23 leaves n in the low bits, and the cubic is
 * the one of least relative error among those that are 1 at 0. */
static inline __m512 exp2_cheap(__m512 x)
{
    const __m512 rounder = _mm512_set1_ps(12582912.0f);
    x = _mm512_max_ps(_mm512_set1_ps(-127.0f), x); /* NaN, being second, stays */
    __m512 whole = x + rounder, r = x - (whole - rounder);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0x1.c2a222p-5f), r, _mm512_set1_ps(0x1.f00c54p-3f));
    p = _mm512_fmadd_ps(_mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.62f5fap-1f)), r, _mm512_set1_ps(1.0f));
    return (__m512)_mm512_add_epi32((__m512i)p, _mm512_slli_epi32((__m512i)whole, 23));
}

#endif
