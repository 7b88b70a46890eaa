/* A weight as the kernels see it: raw pointers, no ownership.
 *
 * Codes are row-major [n][k_padded], k_padded = k rounded up to 64. 4-bit: byte i of a 64-block holds
 * code(i) | code(32 + i) << 4. INT8: one signed byte an element. The padding decodes to nothing that
 * is ever used: its x is zero and its dx is not stored. Dense codes are [n][k], rows `row_bytes` apart
 * and not padded. ggml's blocks are rows of whole blocks, `row_bytes` apart. Scales are [n][groups], groups =
 * ceil(k / group), unless `flat`. */
#ifndef QL_SRC_KERN_WVIEW_H
#define QL_SRC_KERN_WVIEW_H

#include <assert.h>
#include <math.h>

#include "base/half.h"
#include "kern/ggml.h"
#include "qlora/quant.h"

enum { QL_BLOCK = 64, QL_DQ_GROUPS = 256 };

typedef struct ql_wview {
    ql_format format;
    size_t n, k, groups; /* groups a row; with flat: of the whole matrix */
    const void *codes;
    size_t row_bytes;
    const float *table;    /* 16 values of a 4-bit code; NULL otherwise */
    const void *scales;    /* F16: uint16_t; F32: float; DQ and nested: uint8_t codes */
    const uint16_t *steps; /* DQ: fp16 [ceil(n*groups / 256)] */
    const uint16_t *offsets;
    const float *absmax2, *map; /* nested */
    uint32_t nested_block;
    float nested_offset;
} ql_wview;

/* The scale of group g of the row-major [n][groups] array: what every kernel must reproduce to the bit. */
static inline float ql_wview_scale(const ql_wview *w, size_t g)
{
    switch (w->format.scale) {
    case QL_SCALE_F16:
        return ql_f16_to_f32(((const uint16_t *)w->scales)[g]);
    case QL_SCALE_DQ:
        return fmaf(((const uint8_t *)w->scales)[g], ql_f16_to_f32(w->steps[g / QL_DQ_GROUPS]),
                    ql_f16_to_f32(w->offsets[g / QL_DQ_GROUPS]));
    case QL_SCALE_F32:
        return ((const float *)w->scales)[g];
    case QL_SCALE_BNB_NESTED: {
        float product = w->map[((const uint8_t *)w->scales)[g]] * w->absmax2[g / w->nested_block];
        return product + w->nested_offset;
    }
    case QL_SCALE_NONE:
        break;
    }
    return 1.0f;
}

/* Element (row, col) in fp32: the plain scalar reference. */
static inline float ql_wview_at(const ql_wview *w, size_t row, size_t col)
{
    const char *line = (const char *)w->codes + row * w->row_bytes;
    switch (w->format.code) {
    case QL_CODE_F32:
        return ((const float *)line)[col];
    case QL_CODE_F16:
        return ql_f16_to_f32(((const uint16_t *)line)[col]);
    case QL_CODE_BF16:
        return ql_bf16_to_f32(((const uint16_t *)line)[col]);
    default:
        break;
    }
    if (ql_code_is_ggml(w->format.code)) {
        float unit[QL_GGML_UNIT];
        ql_ggml_unit(w->format.code, line, col / QL_GGML_UNIT, unit);
        return unit[col % QL_GGML_UNIT];
    }
    size_t g = w->format.flat ? (row * w->k + col) / w->format.group : row * w->groups + col / w->format.group;
    float scale = ql_wview_scale(w, g);
    if (w->format.code == QL_CODE_INT8)
        return (float)((const int8_t *)line)[col] * scale;
    size_t in_block = col % QL_BLOCK;
    unsigned byte = ((const uint8_t *)line)[col / QL_BLOCK * (QL_BLOCK / 2) + in_block % 32];
    return w->table[in_block < 32 ? byte & 15u : byte >> 4] * scale;
}

#endif
