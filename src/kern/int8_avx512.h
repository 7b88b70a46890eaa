/* Activations as signed bytes with a factor for every 64, weights as unsigned ones. Only for files compiled for AVX-512
 * with VNNI. */
#ifndef QL_SRC_KERN_INT8_AVX512_H
#define QL_SRC_KERN_INT8_AVX512_H

#include <stdbool.h>

#include "kern/bytes_avx512.h"

/* The weights' bytes stand for 128 more than they mean: sums start at -128 times the sum of x. */
enum { INT8_ZERO = 128 };

/* 64 numbers of x, of which `count` exist, as round(x / factor), the largest magnitude as 127. */
static inline __m512i quantize64(const float *x, size_t count, float *factor)
{
    float largest = largest_magnitude(x, count < 64 ? count : 64);
    *factor = largest / 127;
    return bytes64(x, count, largest > 0 ? 127 / largest : 0);
}

/* What sums of every lane's four products start from. */
static inline __m512i int8_starts(__m512i x)
{
    __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), x);
    return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 7));
}

/* The table in bytes, in every quarter, and in *step what a unit of them means: 1 for a table of small integers, which
 * stays exact; otherwise the largest magnitude becomes 127. */
static inline __m512i int8_table(const float *table, float *step)
{
    bool whole = true;
    float largest = 0;
    uint8_t bytes[16];
    for (int i = 0; i < 16; i++) {
        largest = fmaxf(largest, fabsf(table[i]));
        whole = whole && table[i] == rintf(table[i]);
    }
    *step = (whole && largest <= 127) || largest == 0 ? 1 : largest / 127;
    for (int i = 0; i < 16; i++)
        bytes[i] = (uint8_t)((int)rintf(table[i] / *step) + INT8_ZERO);
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)bytes));
}

/* The bytes of the nibbles from bit `shift` (0 or 4) on. VBMI takes the other bits of an index for which quarter of the
 * table it is. */
static inline __m512i int8_of_nibbles(__m512i codes, unsigned shift, __m512i table)
{
#ifdef __AVX512VBMI__
    return _mm512_permutexvar_epi8(shift ? _mm512_srli_epi16(codes, 4) : codes, table);
#else
    return _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi32(codes, shift), _mm512_set1_epi8(15)));
#endif
}

static inline __m512i int8_of_bytes(__m512i codes)
{
    return _mm512_xor_si512(codes, _mm512_set1_epi8((char)INT8_ZERO));
}

#endif
