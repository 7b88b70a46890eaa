/* Turning 16 x 16 words in registers. Only for files compiled for AVX-512. */
#ifndef QL_SRC_KERN_TURN_AVX512_H
#define QL_SRC_KERN_TURN_AVX512_H

#include <immintrin.h>

/* line[i] becomes what was word i of all the lines. */
static inline __attribute__((always_inline)) void turn16(__m512i line[16])
{
    __m512i part[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        part[i] = _mm512_unpacklo_epi32(line[i], line[i + 1]);
        part[i + 1] = _mm512_unpackhi_epi32(line[i], line[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        line[i] = _mm512_unpacklo_epi64(part[i], part[i + 2]);
        line[i + 1] = _mm512_unpackhi_epi64(part[i], part[i + 2]);
        line[i + 2] = _mm512_unpacklo_epi64(part[i + 1], part[i + 3]);
        line[i + 3] = _mm512_unpackhi_epi64(part[i + 1], part[i + 3]);
    }
    /* line[4a + b] now holds, in quarter q, word 4q + b of lines 4a .. 4a + 3. */
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) {
        part[b] = _mm512_shuffle_i32x4(line[b], line[4 + b], 0x88);
        part[4 + b] = _mm512_shuffle_i32x4(line[b], line[4 + b], 0xdd);
        part[8 + b] = _mm512_shuffle_i32x4(line[8 + b], line[12 + b], 0x88);
        part[12 + b] = _mm512_shuffle_i32x4(line[8 + b], line[12 + b], 0xdd);
    }
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) {
        line[b] = _mm512_shuffle_i32x4(part[b], part[8 + b], 0x88);
        line[8 + b] = _mm512_shuffle_i32x4(part[b], part[8 + b], 0xdd);
        line[4 + b] = _mm512_shuffle_i32x4(part[4 + b], part[12 + b], 0x88);
        line[12 + b] = _mm512_shuffle_i32x4(part[4 + b], part[12 + b], 0xdd);
    }
}

#endif
