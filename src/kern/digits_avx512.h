/* Products of fixed-point numbers by their bytes, of one token: x and a table as integers of at most 127 * 256 + 127,
 * each of two signed digits of 8 bits, v = 256 high + low. 64 bytes are looked up at a time, and of
 *
 *     w x = 2^16 w_high x_high + 2^8 (w_high x_low + w_low x_high) + w_low x_low
 *
 * four products a lane are one instruction; the last term, at most 2^14, is left out, and what remains is counted in
 * 2^8. It is 0 for small integers, whose low digits are; a table of nothing else needs no product with w_low. Why not
 * words at once: some processors take two steps to look up 32 of those, but one for 64 bytes.
 *
 * The instruction wants w without a sign: each digit has ZERO more than it means, so a lane must start from
 * -ZERO (257 sum x_high + sum x_low), with 256 where there is no w_low. The sums of high digits begin with the start's
 * upper 24 bits, and their shift by 8 takes in its lower ones: it is kept turned round by as much.
 *
 * A lane has eight products of at most 2^30, in 2^8: in the end it is at most 2^25, whatever its parts amount to on the
 * way, modulo 2^32. Only for files compiled for AVX-512 with VNNI, VBMI and VBMI2. */
#ifndef QL_SRC_KERN_DIGITS_AVX512_H
#define QL_SRC_KERN_DIGITS_AVX512_H

#include <stdbool.h>

#include "kern/fixed_avx512.h"

enum { DIGITS_TABLE_BITS = 14, DIGITS_TABLE_MOST = 127 * 256, DIGITS_ZERO = 128 };
enum { DIGITS_BITS = 15, DIGITS_MOST = 127 * 256 + 127 };

/* Of 64 numbers: of a unit's columns that have low nibbles, or of those that have high ones. */
typedef struct digits {
    __m512i high, low;
} digits;

/* The x of a unit of 128 columns, and where sums start: of each half of the nibbles, or the first of both. */
typedef struct digits_unit {
    digits of[2];
    __m512i starts[2];
} digits_unit;

/* The digits of 64 words. */
static inline digits digits_of(__m512i first, __m512i second)
{
    const __m512i half = _mm512_set1_epi16(128);
    __m256i high[2], low[2] = {_mm512_cvtepi16_epi8(first), _mm512_cvtepi16_epi8(second)};
    high[0] = _mm512_cvtepi16_epi8(_mm512_srai_epi16(_mm512_add_epi16(first, half), 8));
    high[1] = _mm512_cvtepi16_epi8(_mm512_srai_epi16(_mm512_add_epi16(second, half), 8));
    return (digits){_mm512_inserti64x4(_mm512_castsi256_si512(high[0]), high[1], 1),
                    _mm512_inserti64x4(_mm512_castsi256_si512(low[0]), low[1], 1)};
}

/* The table's digits, in every quarter: bits of an index beyond the fourth do not count. A table that no power of two
 * divides gets the least unit that will do. */
static inline digits digits_table(const float *table, float *unit)
{
    const __m512i zero = _mm512_set1_epi8((char)DIGITS_ZERO);
    const __m512 values = _mm512_loadu_ps(table);
    __m512i words = fixed_table(table, DIGITS_TABLE_BITS, unit);
    __m512 rounded = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(words)));
    if (_mm512_cmpneq_ps_mask(_mm512_mul_ps(rounded, _mm512_set1_ps(*unit)), values)) {
        *unit = _mm512_reduce_max_ps(_mm512_abs_ps(values)) / DIGITS_TABLE_MOST;
        words = fixed_words(table, *unit);
    }
    digits of = digits_of(words, words);
    return (digits){_mm512_xor_si512(of.high, zero), _mm512_xor_si512(of.low, zero)};
}

/* The unit with which the largest of these numbers, rounded, is at most DIGITS_MOST. */
static inline float digits_unit_of(const float *x, size_t count)
{
    uint32_t bits = largest_bits(x, count);
    float unit = fixed_unit(bits, DIGITS_BITS), largest;
    memcpy(&largest, &bits, sizeof largest);
    return largest / unit > (float)DIGITS_MOST ? 2 * unit : unit;
}

/* Whether no value has a low digit. */
static inline bool digits_whole(digits table)
{
    return _mm512_cmpeq_epi8_mask(table.low, _mm512_set1_epi8((char)DIGITS_ZERO)) == ~(__mmask64)0;
}

static inline __m512i digits_start(const digits *x, size_t count, bool whole)
{
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i high = _mm512_setzero_si512(), low = high;
    for (size_t i = 0; i < count; i++) {
        high = _mm512_dpbusd_epi32(high, ones, x[i].high);
        low = _mm512_dpbusd_epi32(low, ones, x[i].low);
    }
    __m512i sums = _mm512_add_epi32(_mm512_mullo_epi32(high, _mm512_set1_epi32(whole ? 256 : 257)), low);
    return _mm512_ror_epi32(_mm512_mullo_epi32(sums, _mm512_set1_epi32(-DIGITS_ZERO)), 8);
}

/* 128 columns of x as words in units, `runs` of 32, for a table that is `whole` or not; `split`: the halves of the
 * nibbles have sums of their own. */
static inline digits_unit digits_pack(const __m512i runs[4], bool split, bool whole)
{
    digits_unit x;
    for (size_t i = 0; i < 2; i++)
        x.of[i] = digits_of(runs[i], runs[i + 2]);
    x.starts[0] = digits_start(x.of, split ? 1 : 2, whole);
    x.starts[1] = digits_start(x.of + 1, 1, whole);
    return x;
}

static inline __attribute__((always_inline)) digits digits_look_up(__m512i index, digits table)
{
    return (digits){_mm512_permutexvar_epi8(index, table.high), _mm512_permutexvar_epi8(index, table.low)};
}

/* What is needed twice, so that compilers do not load it twice. */
static inline __attribute__((always_inline)) __m512i digits_keep(__m512i v)
{
    __asm__("" : "+v"(v));
    return v;
}

/* The sums of `count` times 64 products, one or two, in 2^8 units. Those with w_low are a chain of their own, which
 * need not wait for the other. */
static inline __attribute__((always_inline)) __m512i digits_sum(const __m512i *start, const digits *w, const digits *x,
                                                                size_t count, bool whole)
{
    __m512i from = digits_keep(*start), sum = from, other = _mm512_setzero_si512(), high[2];
#pragma GCC unroll 2
    for (size_t i = 0; i < count; i++) {
        high[i] = digits_keep(x[i].high);
        sum = _mm512_dpbusd_epi32(sum, w[i].high, high[i]);
        if (!whole)
            other = _mm512_dpbusd_epi32(other, w[i].low, high[i]);
    }
    sum = _mm512_shldi_epi32(sum, from, 8);
    if (count == 2)
        sum = _mm512_dpbusd_epi32(sum, w[1].high, x[1].low);
    if (whole)
        return _mm512_dpbusd_epi32(sum, w[0].high, x[0].low);
    return _mm512_add_epi32(sum, _mm512_dpbusd_epi32(other, w[0].high, x[0].low));
}

#endif
