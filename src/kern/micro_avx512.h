/* The micro-tile of the AVX-512 kernels: up to 14 tokens x 32 outputs in registers. What one step does
 * with a word of x and 16 words of the panel (an FMA, a dot product of pairs) is a constant where it is
 * inlined. Only for files compiled for AVX-512. */
#ifndef QL_SRC_KERN_MICRO_AVX512_H
#define QL_SRC_KERN_MICRO_AVX512_H

#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kern/blocked.h"

enum { TOKENS = 14, WIDTH = 32 };

typedef __m512 step_avx512(__m512 sum, __m512 x, __m512 w);

/* Lines are fetched for a few steps at a time: all at once they would keep x and the panel waiting. */
enum { STEPS_A_ROW = 16 };

static inline __attribute__((always_inline)) void micro_avx512(step_avx512 *step, size_t rows, size_t depth,
                                                               const float *a, const float *panel, ql_sums to)
{
    __m512 low[TOKENS], high[TOKENS];
#pragma GCC unroll 14
    for (size_t r = 0; r < rows; r++)
        low[r] = high[r] = _mm512_setzero_ps();
    const float *before = to.before ? to.before : to.y;
    for (size_t row = 0, i = 0; i < depth; row++) {
        size_t end = i + STEPS_A_ROW < depth ? i + STEPS_A_ROW : depth;
        if (row < rows) {
            __builtin_prefetch(to.y + row * to.ld, 1);
            __builtin_prefetch(to.y + row * to.ld + 16, 1);
            __builtin_prefetch(before + row * WIDTH);
            __builtin_prefetch(before + row * WIDTH + 16);
        }
        for (; i < end; i++) {
            __m512 w0 = _mm512_load_ps(panel + i * WIDTH), w1 = _mm512_load_ps(panel + i * WIDTH + 16);
            __builtin_prefetch(a + (depth + i) * rows); /* of the next tokens */
#pragma GCC unroll 14
            for (size_t r = 0; r < rows; r++) {
                __m512 x = _mm512_set1_ps(a[i * rows + r]);
                low[r] = step(low[r], x, w0);
                high[r] = step(high[r], x, w1);
            }
        }
    }
    uint32_t bits = to.cols < WIDTH ? (1u << to.cols) - 1 : ~0u;
    __mmask16 m0 = (__mmask16)bits, m1 = (__mmask16)(bits >> 16);
#pragma GCC unroll 14
    for (size_t r = 0; r < rows; r++) {
        float *line = to.y + r * to.ld;
        if (to.before) {
            low[r] = _mm512_add_ps(low[r], _mm512_load_ps(to.before + r * WIDTH));
            high[r] = _mm512_add_ps(high[r], _mm512_load_ps(to.before + r * WIDTH + 16));
        }
        if (to.add) {
            low[r] = _mm512_add_ps(low[r], _mm512_maskz_loadu_ps(m0, line));
            high[r] = _mm512_add_ps(high[r], _mm512_maskz_loadu_ps(m1, line + 16));
        }
        _mm512_mask_storeu_ps(line, m0, low[r]);
        _mm512_mask_storeu_ps(line + 16, m1, high[r]);
    }
}

/* As ql_blocked.multiply(). */
static inline __attribute__((always_inline)) void multiply_avx512(step_avx512 *step, size_t rows, size_t depth,
                                                                  const float *a, const float *panel, ql_sums to)
{
    switch (rows) {
    case 1:
        micro_avx512(step, 1, depth, a, panel, to);
        break;
    case 2:
        micro_avx512(step, 2, depth, a, panel, to);
        break;
    case 3:
        micro_avx512(step, 3, depth, a, panel, to);
        break;
    case 4:
        micro_avx512(step, 4, depth, a, panel, to);
        break;
    case 5:
        micro_avx512(step, 5, depth, a, panel, to);
        break;
    case 6:
        micro_avx512(step, 6, depth, a, panel, to);
        break;
    case 7:
        micro_avx512(step, 7, depth, a, panel, to);
        break;
    case 8:
        micro_avx512(step, 8, depth, a, panel, to);
        break;
    case 9:
        micro_avx512(step, 9, depth, a, panel, to);
        break;
    case 10:
        micro_avx512(step, 10, depth, a, panel, to);
        break;
    case 11:
        micro_avx512(step, 11, depth, a, panel, to);
        break;
    case 12:
        micro_avx512(step, 12, depth, a, panel, to);
        break;
    case 13:
        micro_avx512(step, 13, depth, a, panel, to);
        break;
    default:
        micro_avx512(step, 14, depth, a, panel, to);
    }
}

#endif
