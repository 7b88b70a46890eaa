/* Adam's moments in 8 bits, in blocks of up to 256 numbers that share a scale (block-wise optimizer states: Dettmers et
 * al. 2022; the grids are others).
 *
 * A code is a place on a grid over 12 octaves below the block's largest number that is even in the bits of the float,
 * which are a logarithm made of straight lines. So codes are integer arithmetic on bits, the same everywhere.
 * - The scale is the number of largest magnitude with its sign: that number is always exact.
 * - The first moment has 128 codes on the scale's side of 0 and 127 on the other; all 256 are in use.
 * - The second moment is kept as its root, which halves its octaves, with 255 codes above 0. A root that is not 0 never
 *   becomes 0, so an update never divides by eps alone.
 * - 0 stays 0. A number that was decoded has its own code again under the same scale.
 *
 * Inline, so that they become part of the update of each instruction set. */
#ifndef QL_SRC_TRAIN_MOMENTS8_H
#define QL_SRC_TRAIN_MOMENTS8_H

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"

#define QL_INLINE static inline __attribute__((always_inline))

enum { QL_MOMENT_BLOCK = 256 };

/* Bits of 1.0f, and between neighbours of a grid: 12 octaves in 127 and in 254 steps. */
enum { QL_MOMENT_ONE = 0x3f800000, QL_MOMENT1_STEP = (12 << 23) / 127, QL_MOMENT2_STEP = (12 << 23) / 254 };
enum { QL_MOMENT1_TOP = 128, QL_MOMENT2_TOP = 255 }; /* places above 0 */

/* The place of y in [0, 1]: the nearest, at most `top`; 0 or less for what lies below the grid. */
QL_INLINE int32_t ql_moment_place(float y, int32_t top, float steps)
{
    int32_t below = QL_MOMENT_ONE - (int32_t)ql_float_bits(y);
    return top - (int32_t)((float)below * steps + 0.5f);
}

QL_INLINE float ql_moment_number(int32_t at, int32_t top, int32_t step)
{
    return at > 0 ? ql_float_from_bits((uint32_t)(QL_MOMENT_ONE - (top - at) * step)) : 0.0f;
}

/* The largest of x[count] and 0, as integers of their bits: exact, and vectors for every instruction set. */
QL_INLINE float ql_moment_highest(const float *x, size_t count, uint32_t flip)
{
    int32_t most = 0;
#pragma omp simd reduction(max : most)
    for (size_t i = 0; i < count; i++) {
        int32_t bits = (int32_t)(ql_float_bits(x[i]) ^ flip);
        most = bits > most ? bits : most;
    }
    return ql_float_from_bits((uint32_t)most);
}

/* Codes of m[count], count at most QL_MOMENT_BLOCK; returns the scale. */
QL_INLINE float ql_moment1_encode(const float *m, size_t count, uint8_t *code)
{
    assert(count <= QL_MOMENT_BLOCK);
    const float up = ql_moment_highest(m, count, 0), down = ql_moment_highest(m, count, 0x80000000u);
    const float scale = up >= down ? up : -down;
    if (scale == 0) {
        memset(code, 0, count);
        return 0;
    }
    const float lowest = ql_moment_number(1, QL_MOMENT1_TOP, QL_MOMENT1_STEP);
    const float second = ql_moment_number(2, QL_MOMENT1_TOP, QL_MOMENT1_STEP);
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        float y = m[i] / scale, size = fabsf(y);
        int32_t at = ql_moment_place(size, QL_MOMENT1_TOP, 1.0f / QL_MOMENT1_STEP);
        int32_t above = at > 1 ? at : size >= lowest / 2, under = at > 2 ? at : size >= second / 2 ? 2 : 1;
        int32_t negative = under > 1 ? under + 127 : 0;
        code[i] = (uint8_t)(y > 0 ? above : negative);
    }
    return scale;
}

QL_INLINE void ql_moment1_decode(const uint8_t *code, size_t count, float scale, float *m)
{
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        int32_t at = code[i] > QL_MOMENT1_TOP ? code[i] - 127 : code[i];
        float size = ql_moment_number(at, QL_MOMENT1_TOP, QL_MOMENT1_STEP) * scale;
        m[i] = at == 0 ? 0.0f : code[i] > QL_MOMENT1_TOP ? -size : size;
    }
}

/* The same of v[count], none of which is negative. */
QL_INLINE float ql_moment2_encode(const float *v, size_t count, uint8_t *code)
{
    assert(count <= QL_MOMENT_BLOCK);
    const float scale = sqrtf(ql_moment_highest(v, count, 0));
    if (scale == 0) {
        memset(code, 0, count);
        return 0;
    }
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        int32_t at = ql_moment_place(sqrtf(v[i]) / scale, QL_MOMENT2_TOP, 1.0f / QL_MOMENT2_STEP);
        at = at > 1 ? at : 1;
        code[i] = (uint8_t)(v[i] > 0 ? at : 0);
    }
    return scale;
}

QL_INLINE void ql_moment2_decode(const uint8_t *code, size_t count, float scale, float *v)
{
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        float root = ql_moment_number(code[i], QL_MOMENT2_TOP, QL_MOMENT2_STEP) * scale;
        v[i] = code[i] ? root * root : 0.0f;
    }
}

#endif
