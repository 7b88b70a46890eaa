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

/* The 16 values of a table in bf16, twice. */
static inline __m512i table_bf16(const float *table)
{
    __m512 values = _mm512_loadu_ps(table);
    return (__m512i)_mm512_cvtne2ps_pbh(values, values);
}

#endif
