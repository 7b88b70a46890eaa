/* 4-bit weights to and from bitsandbytes' order: flattened row-major, the first element of a pair in the
 * high nibble. */
#include <string.h>

#include "base/error.h"
#include "quant/weight.h"

static size_t blocks_of(size_t elements, size_t block)
{
    return (elements + block - 1) / block;
}

static ql_status check_source(const char *name, const ql_bnb_source *src, ql_error *err)
{
    if (src->code != QL_CODE_NF4 && src->code != QL_CODE_FP4)
        return ql_fail(err, QL_ERR_ARG, "%s: bitsandbytes' 4-bit weights are nf4 or fp4", name);
    if (!src->packed || (src->nested_block ? !src->absmax_codes || !src->absmax2 || !src->map : !src->absmax))
        return ql_fail(err, QL_ERR_ARG, "%s: an array of the quantized weight is missing", name);
    return QL_OK;
}

static ql_status fill_scales(ql_wview *v, const char *name, const ql_bnb_source *src, ql_error *err)
{
    size_t scales = ql_wview_scales(v);
    if (src->nested_block) {
        memcpy(ql_writable(v->scales), src->absmax_codes, scales);
        memcpy(ql_writable(v->absmax2), src->absmax2, blocks_of(scales, src->nested_block) * sizeof(float));
        memcpy(ql_writable(v->map), src->map, 256 * sizeof(float));
        v->nested_offset = src->offset;
    } else {
        memcpy(ql_writable(v->scales), src->absmax, scales * sizeof(float));
    }
    for (size_t i = 0; i < scales; i++)
        if (!isfinite(ql_wview_scale(v, i)))
            return ql_fail(err, QL_ERR_VALUE, "%s: the absmax of block %zu is not finite", name, i);
    return QL_OK;
}

static void pack_block(uint8_t bytes[QL_BLOCK / 2], const uint8_t codes[QL_BLOCK])
{
    for (size_t i = 0; i < QL_BLOCK / 2; i++)
        bytes[i] = (uint8_t)(codes[i] | codes[QL_BLOCK / 2 + i] << 4);
}

static void fill_codes(ql_wview *v, const uint8_t *packed)
{
    uint8_t *dst = ql_writable(v->codes);
    uint8_t zero = ql_codebook_of(v->format.code)->zero;
    for (size_t row = 0; row < v->n; row++)
        for (size_t col = 0; col < v->k; col += QL_BLOCK) {
            uint8_t codes[QL_BLOCK];
            memset(codes, zero, sizeof codes);
            for (size_t i = 0; i < QL_BLOCK && i < v->k - col; i++) {
                size_t at = row * v->k + col + i;
                codes[i] = at % 2 ? packed[at / 2] & 15 : packed[at / 2] >> 4;
            }
            pack_block(dst + row * v->row_bytes + col / 2, codes);
        }
}

ql_status ql_weight_from_bnb(ql_weight **out, const char *name, const ql_bnb_source *src, size_t n, size_t k,
                             ql_error *err)
{
    *out = NULL;
    ql_status status = check_source(name, src, err);
    if (status != QL_OK)
        return status;
    ql_format format = {src->code, src->nested_block ? QL_SCALE_BNB_NESTED : QL_SCALE_F32, src->block, .flat = true};
    ql_weight *w;
    status = ql_weight_create(&w, format, src->nested_block, name, n, k, err);
    if (status != QL_OK)
        return status;
    status = fill_scales(&w->view, name, src, err);
    if (status != QL_OK) {
        ql_weight_destroy(w);
        return status;
    }
    fill_codes(&w->view, src->packed);
    *out = w;
    return QL_OK;
}

static uint8_t code_at(const ql_wview *v, size_t at)
{
    size_t row = at / v->k, col = at % v->k;
    const uint8_t *block = (const uint8_t *)v->codes + row * v->row_bytes + col / QL_BLOCK * (QL_BLOCK / 2);
    uint8_t byte = block[col % (QL_BLOCK / 2)];
    return col % QL_BLOCK < QL_BLOCK / 2 ? byte & 15 : byte >> 4;
}

ql_status ql_weight_to_bnb(const ql_weight *w, ql_bnb_source *out, uint8_t *packed, ql_error *err)
{
    const ql_wview *v = &w->view;
    bool nested = v->format.scale == QL_SCALE_BNB_NESTED;
    *out = (ql_bnb_source){0};
    if (!nested && v->format.scale != QL_SCALE_F32) {
        char text[48];
        return ql_fail(err, QL_ERR_UNSUPPORTED, "a weight of format %s is not in bitsandbytes' layout",
                       ql_format_describe(v->format, text));
    }
    if (!v->format.flat && v->k % v->format.group != 0)
        return ql_fail(err, QL_ERR_UNSUPPORTED,
                       "rows of %zu in groups of %u that end with the row: bitsandbytes' "
                       "blocks cross row ends",
                       v->k, v->format.group);
    size_t elements = v->n * v->k;
    for (size_t i = 0; i < elements; i += 2)
        packed[i / 2] = (uint8_t)(code_at(v, i) << 4 |
                                  (i + 1 < elements ? code_at(v, i + 1) : ql_codebook_of(v->format.code)->zero));
    *out = (ql_bnb_source){.code = v->format.code, .block = v->format.group, .packed = packed};
    if (!nested) {
        out->absmax = v->scales;
        return QL_OK;
    }
    out->nested_block = v->nested_block;
    out->absmax_codes = v->scales;
    out->absmax2 = v->absmax2;
    out->map = v->map;
    out->offset = v->nested_offset;
    return QL_OK;
}
