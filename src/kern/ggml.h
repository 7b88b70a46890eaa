/* ggml's blocks (ggml-common.h): little-endian, fp16 scales, blocks of a row one after another. They are read
 * as a file holds them, 32 values at a time, and give the bits of ggml's own dequantize_row functions: every
 * product of integers and an fp16 scale is exact in fp32, so there is one rounding a value at most, and it does
 * not matter whether a compiler contracts them. */
#ifndef QL_SRC_KERN_GGML_H
#define QL_SRC_KERN_GGML_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kern/ggml_lanes.h"
#include "qlora/quant.h"

enum { QL_GGML_UNIT = 32 }; /* values that are decoded together; every block holds whole units */

typedef struct ql_ggml_block {
    size_t elements, bytes; /* 0: not one of ggml's */
} ql_ggml_block;

static inline ql_ggml_block ql_ggml_block_of(ql_code code)
{
    switch (code) {
    case QL_CODE_Q8_0:
        return (ql_ggml_block){32, 34};
    case QL_CODE_Q4_0:
        return (ql_ggml_block){32, 18};
    case QL_CODE_Q4_1:
        return (ql_ggml_block){32, 20};
    case QL_CODE_Q4_K:
        return (ql_ggml_block){256, 144};
    case QL_CODE_Q5_K:
        return (ql_ggml_block){256, 176};
    case QL_CODE_Q6_K:
        return (ql_ggml_block){256, 210};
    default:
        return (ql_ggml_block){0, 0};
    }
}

static inline bool ql_code_is_ggml(ql_code code)
{
    return ql_ggml_block_of(code).elements != 0;
}

static inline float ql_ggml_half(const uint8_t *at)
{
    uint16_t half;
    memcpy(&half, at, sizeof half);
    return ql_half_value(half);
}

static inline void ql_q8_0_unit(const uint8_t *block, float *x)
{
    float d = ql_ggml_half(block);
    ql_signed_times(ql_bytes_load(block + 2), d, x);
    ql_signed_times(ql_bytes_load(block + 18), d, x + 16);
}

static inline void ql_q4_0_unit(const uint8_t *block, float *x)
{
    float d = ql_ggml_half(block);
    ql_bytes q = ql_bytes_load(block + 2);
    ql_signed_times((q & 15) - 8, d, x);
    ql_signed_times((q >> 4) - 8, d, x + 16);
}

static inline void ql_q4_1_unit(const uint8_t *block, float *x)
{
    float d = ql_ggml_half(block), m = ql_ggml_half(block + 2);
    ql_bytes q = ql_bytes_load(block + 4);
    ql_bytes_times(q & 15, d, m, x);
    ql_bytes_times(q >> 4, d, m, x + 16);
}

/* Scale and minimum, negative, of unit u of Q4_K and Q5_K: d, dmin, then eight pairs of 6 bits in 12 bytes. */
static inline void ql_k_scales(const uint8_t *block, size_t u, float *scale, float *offset)
{
    const uint8_t *s = block + 4;
    unsigned sc = u < 4 ? s[u] & 63u : (s[u + 4] & 15u) | (s[u - 4] >> 6 << 4);
    unsigned m = u < 4 ? s[u + 4] & 63u : (unsigned)(s[u + 4] >> 4) | (s[u] >> 6 << 4);
    *scale = ql_ggml_half(block) * (float)sc;
    *offset = -(ql_ggml_half(block + 2) * (float)m);
}

static inline void ql_q4_k_unit(const uint8_t *block, size_t u, float *x)
{
    const uint8_t *low = block + 16 + u / 2 * 32;
    float scale, offset;
    ql_k_scales(block, u, &scale, &offset);
    for (size_t i = 0; i < 32; i += 16)
        ql_bytes_times(ql_bytes_load(low + i) >> (u % 2 * 4) & 15, scale, offset, x + i);
}

static inline void ql_q5_k_unit(const uint8_t *block, size_t u, float *x)
{
    const uint8_t *high = block + 16, *low = block + 48 + u / 2 * 32;
    float scale, offset;
    ql_k_scales(block, u, &scale, &offset);
    for (size_t i = 0; i < 32; i += 16) {
        ql_bytes q = (ql_bytes_load(low + i) >> (u % 2 * 4) & 15) | (ql_bytes_load(high + i) >> u & 1) << 4;
        ql_bytes_times(q, scale, offset, x + i);
    }
}

/* Units 4h .. 4h + 3 share 64 bytes of low nibbles and 32 of high pairs of bits; a scale serves 16 values. */
static inline void ql_q6_k_unit(const uint8_t *block, size_t u, float *x)
{
    const uint8_t *low = block + u / 4 * 64 + u % 2 * 32, *high = block + 128 + u / 4 * 32;
    const uint8_t *scales = block + 192 + 2 * u;
    float d = ql_ggml_half(block + 208);
    for (size_t i = 0; i < 32; i += 16) {
        ql_bytes q = (ql_bytes_load(low + i) >> (u % 4 / 2 * 4) & 15) | (ql_bytes_load(high + i) >> (u % 4 * 2) & 3)
                                                                            << 4;
        ql_signed_times(q - 32, d * (float)(int8_t)scales[i / 16], x + i);
    }
}

/* x[32] = values [32 unit, 32 unit + 32) of a row of blocks. */
static inline void ql_ggml_unit(ql_code code, const void *row, size_t unit, float *x)
{
    ql_ggml_block type = ql_ggml_block_of(code);
    size_t units = type.elements / QL_GGML_UNIT, u = unit % units;
    const uint8_t *block = (const uint8_t *)row + unit / units * type.bytes;
    switch (code) {
    case QL_CODE_Q8_0:
        ql_q8_0_unit(block, x);
        break;
    case QL_CODE_Q4_0:
        ql_q4_0_unit(block, x);
        break;
    case QL_CODE_Q4_1:
        ql_q4_1_unit(block, x);
        break;
    case QL_CODE_Q4_K:
        ql_q4_k_unit(block, u, x);
        break;
    case QL_CODE_Q5_K:
        ql_q5_k_unit(block, u, x);
        break;
    default:
        ql_q6_k_unit(block, u, x);
        break;
    }
}

/* dst[count] = values [col, col + count) of a row of blocks. */
static inline void ql_ggml_values(ql_code code, const void *row, size_t col, size_t count, float *dst)
{
    for (size_t end = col + count; col < end;) {
        size_t from = col % QL_GGML_UNIT, run = QL_GGML_UNIT - from;
        if (run <= end - col && from == 0) {
            ql_ggml_unit(code, row, col / QL_GGML_UNIT, dst);
        } else {
            float x[QL_GGML_UNIT];
            run = run < end - col ? run : end - col;
            ql_ggml_unit(code, row, col / QL_GGML_UNIT, x);
            memcpy(dst, x + from, run * sizeof *x);
        }
        col += run, dst += run;
    }
}

#endif
