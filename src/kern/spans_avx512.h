/* What row-wise products by integer sums have in common: a span of sixteen blocks of 64 columns has its sums' factors
 * in one vector. Only for files compiled for AVX-512. */
#ifndef QL_SRC_KERN_SPANS_AVX512_H
#define QL_SRC_KERN_SPANS_AVX512_H

#include "kern/gemv.h"
#include "kern/scales_avx512.h"

enum { SPAN_BLOCKS = 16, SPAN_SLACK = 2 * SPAN_BLOCKS /* what is read past a row's scales */ };

/* Of each block; with groups of 32, of its first half and of its second. */
typedef struct span {
    __m512 first, second;
} span;

static inline size_t span_blocks(const ql_wview *w)
{
    return (w->k + QL_BLOCK - 1) / QL_BLOCK;
}

/* Numbers of x have a factor a block, and zeros after them up to a whole span. */
static inline size_t span_factors(const ql_wview *w)
{
    return (span_blocks(w) + SPAN_BLOCKS - 1) / SPAN_BLOCKS * SPAN_BLOCKS;
}

/* 0 for what lies past the row: whatever is there is not a number that counts. */
static inline __mmask16 span_mask(size_t blocks)
{
    return blocks < SPAN_BLOCKS ? (__mmask16)((1u << blocks) - 1) : 0xffff;
}

/* A row's scales times x's factors, from block `from` on. `group` is a constant where this is inlined: 32, 64, or 128
 * for all that are larger. */
static inline __attribute__((always_inline)) span span_of(const ql_wview *w, size_t group, const float *scales,
                                                          const float *factors, size_t from)
{
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512 x = _mm512_loadu_ps(factors + from);
    const __mmask16 have = span_mask(span_blocks(w) - from);
    if (group == 32) {
        const __m512i even = _mm512_slli_epi32(lanes, 1), odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        __m512 a = _mm512_loadu_ps(scales + 2 * from), b = _mm512_loadu_ps(scales + 2 * from + SPAN_BLOCKS);
        __mmask16 halves = span_mask((w->k + 31) / 32 / 2 - from);
        return (span){_mm512_maskz_mul_ps(have, x, _mm512_permutex2var_ps(a, even, b)),
                      _mm512_maskz_mul_ps(halves, x, _mm512_permutex2var_ps(a, odd, b))};
    }
    const unsigned shift = (unsigned)__builtin_ctz(w->format.group / QL_BLOCK);
    __m512 own = _mm512_loadu_ps(scales + (from >> shift));
    if (group > QL_BLOCK)
        own = _mm512_permutexvar_ps(_mm512_srl_epi32(lanes, _mm_cvtsi32_si128((int)shift)), own);
    own = _mm512_maskz_mul_ps(have, x, own);
    return (span){own, own};
}

/* What the lanes of four vectors add up to, in the same order each. */
static inline __m128 add_lanes(__m512 a, __m512 b, __m512 c, __m512 d)
{
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 four = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
    return _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
}

/* Sums of rows [row, row + rows), at most four, of token t go to y. */
static inline void write_sums(const ql_product *p, size_t t, size_t row, size_t rows, const __m512 sums[4])
{
    __mmask8 lanes = (__mmask8)((1u << (rows < 4 ? rows : 4)) - 1);
    float *y = p->y + t * p->ldy + row;
    __m128 four = add_lanes(sums[0], sums[1], sums[2], sums[3]);
    if (p->add)
        four = _mm_add_ps(four, _mm_maskz_loadu_ps(lanes, y));
    _mm_mask_storeu_ps(y, lanes, four);
}

#endif
