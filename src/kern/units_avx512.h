/* The order in which 4-bit codes come out of 64 bytes of a row, 16 bits each. Only for files compiled for AVX-512. */
#ifndef QL_SRC_KERN_UNITS_AVX512_H
#define QL_SRC_KERN_UNITS_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

/* Puts 128 columns, `runs` of 32 half words, into that order: a unit has its columns in 32 half words, nibble s of half
 * word l is column 64 (l / 16) + 2 (l % 16) + s / 2 + 32 (s % 2), and out[32 s + l] meets it. */
static inline void deal_unit(const __m512i runs[4], void *out)
{
    static const uint16_t even[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                                      32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
    const __m512i evens = _mm512_loadu_si512(even), odds = _mm512_add_epi16(evens, _mm512_set1_epi16(1));
    for (size_t s = 0; s < 4; s++)
        _mm512_storeu_si512((uint16_t *)out + s * 32,
                            _mm512_permutex2var_epi16(runs[s % 2], s < 2 ? evens : odds, runs[s % 2 + 2]));
}

#endif
