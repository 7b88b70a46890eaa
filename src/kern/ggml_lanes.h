/* Sixteen small integers to fp32, with whatever instructions a file is compiled for. */
#ifndef QL_SRC_KERN_GGML_LANES_H
#define QL_SRC_KERN_GGML_LANES_H

#include <stdint.h>
#include <string.h>

#include "base/half.h"

typedef uint8_t ql_bytes __attribute__((vector_size(16)));

static inline ql_bytes ql_bytes_load(const uint8_t *from)
{
    ql_bytes v;
    memcpy(&v, from, sizeof v);
    return v;
}

#if defined __AVX512F__
#include <immintrin.h>

/* x[16] = q * scale, q signed. */
static inline void ql_signed_times(ql_bytes q, float scale, float *x)
{
    __m512 value = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)q));
    _mm512_storeu_ps(x, _mm512_mul_ps(value, _mm512_set1_ps(scale)));
}

/* x[16] = q * scale + offset; the product must be exact. */
static inline void ql_bytes_times(ql_bytes q, float scale, float offset, float *x)
{
    __m512 value = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)q));
    _mm512_storeu_ps(x, _mm512_fmadd_ps(value, _mm512_set1_ps(scale), _mm512_set1_ps(offset)));
}

static inline float ql_half_value(uint16_t half)
{
    return _cvtsh_ss(half);
}

#elif defined __AVX2__ && defined __F16C__ && defined __FMA__
#include <immintrin.h>

static inline void ql_signed_times(ql_bytes q, float scale, float *x)
{
    __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32((__m128i)q)), by = _mm256_set1_ps(scale);
    __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128((__m128i)q, 8)));
    _mm256_storeu_ps(x, _mm256_mul_ps(low, by));
    _mm256_storeu_ps(x + 8, _mm256_mul_ps(high, by));
}

static inline void ql_bytes_times(ql_bytes q, float scale, float offset, float *x)
{
    __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32((__m128i)q)), by = _mm256_set1_ps(scale);
    __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128((__m128i)q, 8)));
    _mm256_storeu_ps(x, _mm256_fmadd_ps(low, by, _mm256_set1_ps(offset)));
    _mm256_storeu_ps(x + 8, _mm256_fmadd_ps(high, by, _mm256_set1_ps(offset)));
}

static inline float ql_half_value(uint16_t half)
{
    return _cvtsh_ss(half);
}

#else

static inline void ql_signed_times(ql_bytes q, float scale, float *x)
{
    for (int i = 0; i < 16; i++)
        x[i] = (float)(int8_t)q[i] * scale;
}

static inline void ql_bytes_times(ql_bytes q, float scale, float offset, float *x)
{
    for (int i = 0; i < 16; i++)
        x[i] = (float)q[i] * scale + offset;
}

static inline float ql_half_value(uint16_t half)
{
    return ql_f16_to_f32(half);
}

#endif
#endif
