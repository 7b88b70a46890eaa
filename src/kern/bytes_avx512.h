/* Numbers as signed bytes. Only for files compiled for AVX-512. */
#ifndef QL_SRC_KERN_BYTES_AVX512_H
#define QL_SRC_KERN_BYTES_AVX512_H

#include "kern/fixed_avx512.h"

/* Among `count` numbers; NaN, if one is there. */
static inline float largest_magnitude(const float *x, size_t count)
{
    uint32_t bits = largest_bits(x, count);
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    return largest;
}

/* 64 numbers, of which `count` exist, times `by`, rounded; zeros for the others. */
static inline __m512i bytes64(const float *x, size_t count, float by)
{
    __m128i bytes[4];
    for (size_t i = 0; i < 4; i++) {
        size_t left = count > 16 * i ? count - 16 * i : 0;
        __m512 v = _mm512_maskz_loadu_ps(left < 16 ? (__mmask16)((1u << left) - 1) : 0xffff, x + 16 * i);
        bytes[i] = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(by))));
    }
    return _mm512_loadu_si512(bytes);
}

#endif
