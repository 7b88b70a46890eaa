/* Decoding runs of scales with AVX-512. Only for files compiled for it. */
#ifndef QL_SRC_KERN_SCALES_AVX512_H
#define QL_SRC_KERN_SCALES_AVX512_H

#include <immintrin.h>

#include "kern/decode.h"

static inline __m512 half_everywhere(uint16_t half)
{
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)half));
}

/* out[i] = codes[i] * step + offset, i < count, and up to 15 more. */
static inline void decode_dq_run(const uint8_t *codes, size_t count, __m512 step, __m512 offset, float *out)
{
    size_t i = 0;
    for (; i + 16 <= count; i += 16) {
        __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(codes + i)));
        _mm512_storeu_ps(out + i, _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), step, offset));
    }
    if (i < count) {
        __m128i code = _mm_maskz_loadu_epi8((__mmask16)((1u << (count - i)) - 1), codes + i);
        _mm512_storeu_ps(out + i, _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(code)), step, offset));
    }
}

/* out[i] = the scales of groups [g, g + count) of the row-major array; up to 15 more are written. Those after them are
 * prefetched. */
static inline void decode_scales_avx512(const ql_wview *w, size_t g, size_t count, float *out)
{
    const uint16_t *half = (const uint16_t *)w->scales + g;
    if (w->format.scale != QL_SCALE_DQ && w->format.scale != QL_SCALE_F16) {
        ql_decode_scales(w, g, count, out);
        return;
    }
    size_t size = w->format.scale == QL_SCALE_F16 ? 2 : 1;
    for (size_t i = 0; i < count * size; i += 64)
        _mm_prefetch((const char *)w->scales + (g + count) * size + i, _MM_HINT_T0);
    for (size_t i = 0; i < count && w->format.scale == QL_SCALE_F16; i += 16) {
        __mmask16 lanes = count - i < 16 ? (__mmask16)((1u << (count - i)) - 1) : 0xffff;
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, half + i)));
    }
    for (size_t i = 0, run; i < count && w->format.scale == QL_SCALE_DQ; i += run) {
        size_t block = (g + i) / QL_DQ_GROUPS, left = QL_DQ_GROUPS - (g + i) % QL_DQ_GROUPS;
        run = left < count - i ? left : count - i;
        decode_dq_run((const uint8_t *)w->scales + g + i, run, half_everywhere(w->steps[block]),
                      half_everywhere(w->offsets[block]), out + i);
    }
}

/* The same and 16 zeros: where a row has an odd number of groups, a vector reads one that is not there, for columns
 * whose x is 0. */
static inline void decode_scales_and_zeros(const ql_wview *w, size_t g, size_t count, float *out)
{
    decode_scales_avx512(w, g, count, out);
    _mm512_storeu_ps(out + count, _mm512_setzero_ps());
}

#endif
