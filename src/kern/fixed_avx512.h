/* Numbers as 16-bit integers, each run of them with a power of two as its unit, so that it multiplies without rounding
 * and small integers stay what they are. Only for files compiled for AVX-512. */
#ifndef QL_SRC_KERN_FIXED_AVX512_H
#define QL_SRC_KERN_FIXED_AVX512_H

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The bits of the largest magnitude among `count` numbers; of NaN's, if one is there. */
static inline uint32_t largest_bits(const float *x, size_t count)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i most = _mm512_setzero_si512();
    for (size_t i = 0; i < count; i += 16) {
        __mmask16 lanes = count - i < 16 ? (__mmask16)((1u << (count - i)) - 1) : 0xffff;
        most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_maskz_loadu_epi32(lanes, x + i), magnitude));
    }
    return _mm512_reduce_max_epu32(most);
}

/* The unit with which a number of these bits takes `bits` bits beside its sign; 1 for 0, NaN when it is not finite. */
static inline float fixed_unit(uint32_t number, uint32_t bits)
{
    uint32_t exponent = number >> 23;
    if (exponent == 255)
        return NAN;
    if (number == 0)
        return 1;
    uint32_t unit = (exponent > bits ? exponent - bits + 1 : 1) << 23; /* as a float's bits, never subnormal */
    float value;
    memcpy(&value, &unit, sizeof value);
    return value;
}

/* 32 numbers, of which `count` exist, in units, at most `most` of them. */
static inline __m512i fixed32(const float *x, size_t count, float unit, int most)
{
    const __m512 by = _mm512_set1_ps(1 / unit), top = _mm512_set1_ps((float)most);
    const __m512 bottom = _mm512_sub_ps(_mm512_setzero_ps(), top);
    __m256i half[2];
    for (size_t i = 0; i < 2; i++) {
        size_t left = count > 16 * i ? count - 16 * i : 0;
        __mmask16 lanes = left < 16 ? (__mmask16)((1u << left) - 1) : 0xffff;
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + 16 * i), by);
        half[i] = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, bottom), top)));
    }
    return _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1);
}

/* The 16 values of a table in units, twice. */
static inline __m512i fixed_words(const float *table, float unit)
{
    __m512 values = _mm512_mul_ps(_mm512_loadu_ps(table), _mm512_set1_ps(1 / unit));
    __m256i words = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(values));
    return _mm512_broadcast_i64x4(words);
}

/* The same with a power of two as *unit, the largest at most 2^bits. */
static inline __m512i fixed_table(const float *table, uint32_t bits, float *unit)
{
    uint32_t largest = largest_bits(table, 16);
    *unit = fixed_unit(largest ? largest - 1 : 0, bits);
    return fixed_words(table, *unit);
}

#endif
