/* Scalar conversions between fp32 and the two 16-bit formats, round to nearest even. */
#ifndef QL_SRC_BASE_HALF_H
#define QL_SRC_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t ql_float_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float ql_float_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float ql_bf16_to_f32(uint16_t h)
{
    return ql_float_from_bits((uint32_t)h << 16);
}

static inline uint16_t ql_f32_to_bf16(float x)
{
    uint32_t u = ql_float_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u); /* keep a NaN a NaN */
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static inline float ql_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) /* infinity or NaN */
        return ql_float_from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x400u) /* normal */
        return ql_float_from_bits(sign | ((rest << 13) + 0x38000000u));
    float tiny = (float)rest * 0x1p-24f; /* zero or subnormal: exact */
    return ql_float_from_bits(sign | ql_float_bits(tiny));
}

static inline uint16_t ql_f32_to_f16(float x)
{
    uint32_t u = ql_float_bits(x), sign = u >> 16 & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (u >= 0x477ff000u) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00u);
    if (u < 0x38800000u) { /* subnormal in fp16: let the FPU round by adding 0.5 (ulp 2^-24) */
        float shifted = ql_float_from_bits(u) + 0.5f;
        return (uint16_t)(sign | (ql_float_bits(shifted) - 0x3f000000u));
    }
    u += 0xc8000fffu + (u >> 13 & 1u); /* rebias the exponent and round to even */
    return (uint16_t)(sign | u >> 13);
}

#endif
