/* NaNs and infinities in arrays. */
#ifndef QL_SRC_BASE_FINITE_H
#define QL_SRC_BASE_FINITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The exponent's bits are all ones; an OR over the rest of the loop lets it run in vectors. */
static inline bool ql_all_finite(const float *x, size_t count)
{
    uint32_t bad = 0;
#pragma omp simd reduction(| : bad)
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bad |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !bad;
}

static inline bool ql_all_finite_f16(const uint16_t *x, size_t count)
{
    uint16_t bad = 0;
#pragma omp simd reduction(| : bad)
    for (size_t i = 0; i < count; i++)
        bad |= (x[i] & 0x7c00u) == 0x7c00u;
    return !bad;
}

#endif
