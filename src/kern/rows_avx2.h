/* Rows of W against some tokens with AVX2: scales, values and sums. Only for files compiled for it. */
#ifndef QL_SRC_KERN_ROWS_AVX2_H
#define QL_SRC_KERN_ROWS_AVX2_H

#include <immintrin.h>

#include "kern/decode.h"

enum { LANES = 8 };

/* Columns [at, at + 64) of x in the order in which a block's values come out, and zeros past the last: vector q of a
 * half has columns 4 q to 4 q + 3 and those 16 further on. Of INT8 and dense weights, as they are. */
static inline void pack_block(const ql_wview *w, const float *x, size_t at, float *out)
{
    for (size_t s = 0; s < 8; s++)
        for (size_t l = 0; l < LANES; l++) {
            size_t col = at + (w->table ? s / 4 * 32 + l / 4 * 16 + s % 4 * 4 + l % 4 : s * LANES + l);
            out[s * LANES + l] = col < w->k ? x[col] : 0;
        }
}

/* out[i] = the scales of groups [g, g + count) of the row-major array. */
static inline void decode_scales(const ql_wview *w, size_t g, size_t count, float *out)
{
    size_t i = 0;
    while (w->format.scale == QL_SCALE_DQ && i + LANES <= count) {
        size_t block = (g + i) / QL_DQ_GROUPS, left = QL_DQ_GROUPS - (g + i) % QL_DQ_GROUPS;
        size_t end = i + (left < count - i ? left : count - i);
        const uint8_t *codes = (const uint8_t *)w->scales + g;
        const __m256 step = _mm256_cvtph_ps(_mm_set1_epi16((short)w->steps[block]));
        const __m256 offset = _mm256_cvtph_ps(_mm_set1_epi16((short)w->offsets[block]));
        for (; i + LANES <= end; i += LANES) {
            __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(codes + i)));
            _mm256_storeu_ps(out + i, _mm256_fmadd_ps(_mm256_cvtepi32_ps(code), step, offset));
        }
        ql_decode_scales(w, g + i, end - i, out + i);
        i = end;
    }
    ql_decode_scales(w, g + i, count - i, out + i);
}

/* A table's values as four planes, one for each of their bytes, in both halves of a register. */
typedef struct planes {
    __m256i byte[4];
} planes;

static inline planes load_planes(const float *table)
{
    const __m128i by_byte = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m128i row[4];
    for (size_t i = 0; i < 4; i++)
        row[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(table + 4 * i)), by_byte);
    __m128i a = _mm_unpacklo_epi32(row[0], row[1]), b = _mm_unpacklo_epi32(row[2], row[3]);
    __m128i c = _mm_unpackhi_epi32(row[0], row[1]), d = _mm_unpackhi_epi32(row[2], row[3]);
    return (planes){{_mm256_broadcastsi128_si256(_mm_unpacklo_epi64(a, b)),
                     _mm256_broadcastsi128_si256(_mm_unpackhi_epi64(a, b)),
                     _mm256_broadcastsi128_si256(_mm_unpacklo_epi64(c, d)),
                     _mm256_broadcastsi128_si256(_mm_unpackhi_epi64(c, d))}};
}

/* The values of 32 codes, each in a byte. */
static inline void look_up_32(planes p, __m256i codes, __m256 values[4])
{
    __m256i b0 = _mm256_shuffle_epi8(p.byte[0], codes), b1 = _mm256_shuffle_epi8(p.byte[1], codes);
    __m256i b2 = _mm256_shuffle_epi8(p.byte[2], codes), b3 = _mm256_shuffle_epi8(p.byte[3], codes);
    __m256i low0 = _mm256_unpacklo_epi8(b0, b1), low1 = _mm256_unpackhi_epi8(b0, b1);
    __m256i high0 = _mm256_unpacklo_epi8(b2, b3), high1 = _mm256_unpackhi_epi8(b2, b3);
    values[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low0, high0));
    values[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low0, high0));
    values[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low1, high1));
    values[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low1, high1));
}

static inline __m256 load_row(ql_code code, const char *at)
{
    switch (code) {
    case QL_CODE_F32:
        return _mm256_loadu_ps((const float *)(const void *)at);
    case QL_CODE_F16:
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at));
    case QL_CODE_BF16:
        return _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)at)), 16));
    default:
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)at)));
    }
}

/* The values of half a block (0 or 1), without their scale. */
static inline __attribute__((always_inline)) void half_block(ql_code code, size_t bits, planes table, const char *codes,
                                                             size_t half, __m256 values[4])
{
    if (bits == 4) {
        __m256i all = _mm256_loadu_si256((const __m256i *)(const void *)codes);
        look_up_32(table, _mm256_and_si256(half ? _mm256_srli_epi16(all, 4) : all, _mm256_set1_epi8(15)), values);
        return;
    }
    for (size_t i = 0; i < 4; i++)
        values[i] = load_row(code, codes + (4 * half + i) * LANES * bits / 8);
}

/* Adds what a block contributes to the tokens' sums; x of the tokens is `ldx` apart. */
static inline __attribute__((always_inline)) void block_times(__m256 *sums, size_t tokens, ql_code code, size_t bits,
                                                              planes table, const char *codes, const float *x,
                                                              size_t ldx, const float scales[2])
{
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; half++) {
        __m256 value[4], scale = _mm256_broadcast_ss(scales + half);
        half_block(code, bits, table, codes, half, value);
#pragma GCC unroll 4
        for (size_t t = 0; t < tokens; t++) {
            const float *xs = x + t * ldx + half * 32;
            __m256 part = _mm256_mul_ps(value[0], _mm256_load_ps(xs));
#pragma GCC unroll 3
            for (size_t i = 1; i < 4; i++)
                part = _mm256_fmadd_ps(value[i], _mm256_load_ps(xs + i * LANES), part);
            sums[t] = bits > 8 ? _mm256_add_ps(part, sums[t]) : _mm256_fmadd_ps(part, scale, sums[t]);
        }
    }
}

static inline float sum_lanes(__m256 v)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#endif
