/* Looking up 4-bit codes with AVX2. Only for files compiled for it. */
#ifndef QL_SRC_KERN_TABLE_AVX2_H
#define QL_SRC_KERN_TABLE_AVX2_H

#include <immintrin.h>

/* 16 values in two registers. */
typedef struct table16 {
    __m256 first, second;
} table16;

/* The values of the codes in the low four bits of each word; what is above them does not matter. */
static inline __m256 look_up(table16 t, __m256i code)
{
    __m256 a = _mm256_permutevar8x32_ps(t.first, code), b = _mm256_permutevar8x32_ps(t.second, code);
    return _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
}

static inline table16 load_table(const float *table)
{
    if (!table)
        return (table16){_mm256_setzero_ps(), _mm256_setzero_ps()};
    return (table16){_mm256_loadu_ps(table), _mm256_loadu_ps(table + 8)};
}

#endif
