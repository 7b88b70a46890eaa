/* Pairs of bf16 values. Only for files compiled for AVX-512 with BF16. */
#ifndef QL_SRC_KERN_PAIRS_AVX512_H
#define QL_SRC_KERN_PAIRS_AVX512_H

#include <immintrin.h>
#include <stdint.h>

/* Word i = first[i] in its low half, second[i] in its high half. */
static inline __m512i join_bf16(__m512 first, __m512 second)
{
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_loadu_si512(order), (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/* For vpermt2w: pairs of words of two vectors, from number `first` on. */
static inline __m512i pair_order(uint32_t first)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i from = _mm512_add_epi32(lane, _mm512_set1_epi32((int)first));
    return _mm512_or_si512(from, _mm512_slli_epi32(_mm512_add_epi32(from, _mm512_set1_epi32(32)), 16));
}

/* The 16 values of a table in bf16, twice. */
static inline __m512i table_bf16(const float *table)
{
    __m512 values = _mm512_loadu_ps(table);
    return (__m512i)_mm512_cvtne2ps_pbh(values, values);
}

#endif
