/* The vector work of quantizing and dequantizing: plain C that the compiler turns into vector code,
 * encode.c compiled once for each instruction set. Every one gives the same bits. */
#ifndef QL_SRC_QUANT_ENCODE_H
#define QL_SRC_QUANT_ENCODE_H

#include "quant/weight.h"

typedef struct ql_encoder {
    const char *name;
    uint32_t cpu; /* QL_CPU_ bits, all of which it needs */

    /* dst[count] = src, which is F32, F16 or BF16 and need not be aligned. */
    void (*load)(float *dst, const void *src, ql_dtype type, size_t count);

    /* The bits of the largest magnitude, at least 0x7f800000 if there is an infinity or a NaN. */
    uint32_t (*largest)(const float *x, size_t count);

    /* The INT4 scale of least squared error among most/7, most/7.5 ... most/9, where `most` is the largest
     * magnitude. x is followed by zeros up to a multiple of 16 elements. */
    float (*int4_scale)(const float *x, size_t count, float most);

    void (*multiply)(float *x, size_t count, float factor);

    /* The nearest codes of 64 values in units of their scales. INT8 rounds ties to even. */
    void (*encode4)(uint8_t bytes[QL_BLOCK / 2], const float x[QL_BLOCK], const ql_codebook *book);
    void (*encode8)(int8_t codes[QL_BLOCK], const float x[QL_BLOCK]);

    /* The values of 64 codes in units of their scales. */
    void (*decode4)(float x[QL_BLOCK], const uint8_t bytes[QL_BLOCK / 2], const float table[16]);
    void (*decode8)(float x[QL_BLOCK], const int8_t codes[QL_BLOCK]);
} ql_encoder;

/* Slowest first; the first one runs everywhere. */
extern const ql_encoder *const ql_encoders[];
extern const size_t ql_encoder_count;

/* The last of the list that needs no more than `features`. */
const ql_encoder *ql_encoder_select(uint32_t features);

#endif
