/* Weights to ggml's blocks, with the bits of its quantize_row_*_ref functions. */
#include <math.h>

#include "base/error.h"
#include "quant/weight.h"

static void put_half(uint8_t *at, float value)
{
    uint16_t half = ql_f32_to_f16(value);
    memcpy(at, &half, sizeof half);
}

static void encode_q8_0(const float *x, uint8_t *block)
{
    float most = 0;
    for (size_t i = 0; i < 32; i++)
        most = fmaxf(most, fabsf(x[i]));
    float d = most / 127, inverse = d != 0 ? 1 / d : 0;
    put_half(block, d);
    for (size_t i = 0; i < 32; i++)
        block[2 + i] = (uint8_t)(int8_t)roundf(x[i] * inverse);
}

/* A float that is not negative, without its fraction, at most 15. */
static uint8_t nibble(float value)
{
    return value < 15 ? (uint8_t)value : 15;
}

/* The scale has the sign that makes the value of largest magnitude code 0, which is -8. */
static void encode_q4_0(const float *x, uint8_t *block)
{
    float most = 0;
    for (size_t i = 0; i < 32; i++)
        if (fabsf(x[i]) > fabsf(most))
            most = x[i];
    float d = most / -8, inverse = d != 0 ? 1 / d : 0;
    put_half(block, d);
    for (size_t i = 0; i < 16; i++) {
        float low = x[i] * inverse, high = x[16 + i] * inverse;
        block[2 + i] = (uint8_t)(nibble(low + 8.5f) | nibble(high + 8.5f) << 4);
    }
}

static void encode_q4_1(const float *x, uint8_t *block)
{
    float least = x[0], most = x[0];
    for (size_t i = 1; i < 32; i++) {
        least = fminf(least, x[i]);
        most = fmaxf(most, x[i]);
    }
    float d = (most - least) / 15, inverse = d != 0 ? 1 / d : 0;
    put_half(block, d);
    put_half(block + 2, least);
    for (size_t i = 0; i < 16; i++) {
        float low = (x[i] - least) * inverse, high = (x[16 + i] - least) * inverse;
        block[4 + i] = (uint8_t)(nibble(low + 0.5f) | nibble(high + 0.5f) << 4);
    }
}

ql_status ql_blocks_encode(ql_code code, const char *name, const float *x, size_t count, void *blocks, ql_error *err)
{
    char text[48];
    ql_ggml_block type = ql_ggml_block_of(code);
    if (code != QL_CODE_Q8_0 && code != QL_CODE_Q4_0 && code != QL_CODE_Q4_1)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: nothing is encoded in %s; in q8_0, q4_0 and q4_1", name,
                       ql_format_describe((ql_format){.code = code}, text));
    if (count % type.elements)
        return ql_fail(err, QL_ERR_SHAPE, "%s: %zu values are not whole blocks of %zu", name, count, type.elements);
    for (size_t i = 0; i < count; i++)
        if (!isfinite(x[i]))
            return ql_fail(err, QL_ERR_VALUE, "%s: value %zu is %s", name, i, isnan(x[i]) ? "NaN" : "infinite");
    uint8_t *block = blocks;
    for (size_t i = 0; i < count; i += type.elements, block += type.bytes) {
        if (code == QL_CODE_Q8_0)
            encode_q8_0(x + i, block);
        else if (code == QL_CODE_Q4_0)
            encode_q4_0(x + i, block);
        else
            encode_q4_1(x + i, block);
    }
    return QL_OK;
}
