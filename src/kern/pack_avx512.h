/* x into the micro-tiles of the AVX-512 kernels, 16 words of each token at a time: a word is a term or, in bf16, two
 * neighbouring ones. Only for files compiled for AVX-512. */
#ifndef QL_SRC_KERN_PACK_AVX512_H
#define QL_SRC_KERN_PACK_AVX512_H

#include <stddef.h>

#include "kern/turn_avx512.h"

/* 16 words of a row, of which `count` terms are there; zeros for the others. */
typedef __m512i load_avx512(const float *x, size_t count);

/* As ql_blocked.pack(); `terms` that a word holds. */
static inline __attribute__((always_inline)) void pack_avx512(load_avx512 *load, size_t terms, const float *x,
                                                              size_t ldx, size_t depth, size_t tokens, float *out)
{
    size_t words = (depth + terms - 1) / terms;
    __mmask16 last = (__mmask16)((1u << tokens) - 1);
    for (size_t at = 0; at < words; at += 16) {
        __m512i line[16];
        for (size_t r = 0; r < tokens; r++)
            line[r] = load(x + r * ldx + at * terms, depth - at * terms);
        for (size_t r = tokens; r < 16; r++)
            line[r] = _mm512_setzero_si512();
        turn16(line);
        /* Whole vectors, whose excess the next line writes over; nothing comes after the last. */
        for (size_t i = 0; i < 16 && at + i < words; i++) {
            float *to = out + (at + i) * tokens;
            if (at + i + 16 < words)
                _mm512_storeu_si512(to, line[i]);
            else
                _mm512_mask_storeu_epi32(to, last, line[i]);
        }
    }
}

#endif
