/* See encode.h. The build defines ENCODER (the descriptor's name), ENCODER_NAME, ENCODER_CPU and
 * ENCODER_LANES, the floats of a register. */
#include "quant/encode.h"

#include <float.h>
#include <string.h>

#include "base/cpu.h"

enum { LANES = ENCODER_LANES, SUMS = 16 };

/* The compiler's own vectors. */
typedef float floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t ints __attribute__((vector_size(LANES * sizeof(int32_t))));

static void load(float *restrict dst, const void *restrict src, ql_dtype type, size_t count)
{
    const char *from = src;
    if (type == QL_F32) {
        memcpy(dst, src, count * sizeof *dst);
        return;
    }
    uint16_t h;
    if (type == QL_BF16) {
        for (size_t i = 0; i < count; i++) {
            memcpy(&h, from + i * sizeof h, sizeof h);
            dst[i] = ql_bf16_to_f32(h);
        }
        return;
    }
    assert(type == QL_F16);
    for (size_t i = 0; i < count; i++) {
        memcpy(&h, from + i * sizeof h, sizeof h);
        dst[i] = ql_f16_to_f32(h);
    }
}

static uint32_t largest(const float *x, size_t count)
{
    int32_t most = 0; /* as integers, magnitudes compare as they do as floats, and NaNs come last */
    for (size_t i = 0; i < count; i++) {
        int32_t bits = (int32_t)(ql_float_bits(x[i]) & 0x7fffffffu);
        most = bits > most ? bits : most;
    }
    return (uint32_t)most;
}

/* The sum of squared errors of coding x, in units of the scale, summed in the same order by all. */
static float int4_error(const float *x, size_t count, float inverse)
{
    const float shift = 0x1.8p23f; /* adding it rounds to an integer */
    float sums[SUMS] = {0}, sum = 0;
    for (size_t i = 0; i < count; i += SUMS)
        for (size_t lane = 0; lane < SUMS; lane++) {
            float value = x[i + lane] * inverse, rounded = (value + shift) - shift;
            rounded = rounded < -8.0f ? -8.0f : rounded;
            rounded = rounded > 7.0f ? 7.0f : rounded;
            sums[lane] += (value - rounded) * (value - rounded);
        }
    for (size_t lane = 0; lane < SUMS; lane++)
        sum += sums[lane];
    return sum;
}

static float int4_scale(const float *x, size_t count, float most)
{
    static const float divisors[] = {7.0f, 7.5f, 8.0f, 8.5f, 9.0f};
    float best = divisors[0], least = INFINITY;
    for (size_t i = 0; i < sizeof divisors / sizeof *divisors && most >= FLT_MIN; i++) {
        float error = int4_error(x, count, divisors[i] / most) / (divisors[i] * divisors[i]);
        if (error < least) {
            least = error;
            best = divisors[i];
        }
    }
    return most / best;
}

static void multiply(float *x, size_t count, float factor)
{
    for (size_t i = 0; i < count; i++)
        x[i] *= factor;
}

static void encode4(uint8_t bytes[QL_BLOCK / 2], const float x[QL_BLOCK], const ql_codebook *book)
{
    int32_t codes[QL_BLOCK];
    for (size_t i = 0; i < QL_BLOCK; i += LANES) {
        floats value;
        memcpy(&value, x + i, sizeof value);
        ints code = {0};
        code += book->codes[0];
        for (size_t t = 0; t < 15; t++) /* a comparison is -1 where it holds */
            code += (value > book->thresholds[t]) & (book->codes[t + 1] - book->codes[t]);
        memcpy(codes + i, &code, sizeof code);
    }
    for (size_t i = 0; i < QL_BLOCK / 2; i++)
        bytes[i] = (uint8_t)(codes[i] | codes[QL_BLOCK / 2 + i] << 4);
}

static void encode8(int8_t codes[QL_BLOCK], const float x[QL_BLOCK])
{
    const float shift = 0x1.8p23f; /* adding it rounds to an integer */
    for (size_t i = 0; i < QL_BLOCK; i++) {
        float rounded = (x[i] + shift) - shift;
        rounded = rounded < -127.0f ? -127.0f : rounded;
        codes[i] = (int8_t)(int32_t)(rounded > 127.0f ? 127.0f : rounded);
    }
}

static void decode4(float x[QL_BLOCK], const uint8_t bytes[QL_BLOCK / 2], const float table[16])
{
    for (size_t i = 0; i < QL_BLOCK / 2; i++) {
        x[i] = table[bytes[i] & 15];
        x[QL_BLOCK / 2 + i] = table[bytes[i] >> 4];
    }
}

static void decode8(float x[QL_BLOCK], const int8_t codes[QL_BLOCK])
{
    for (size_t i = 0; i < QL_BLOCK; i++)
        x[i] = codes[i];
}

const ql_encoder ENCODER = {
    ENCODER_NAME, ENCODER_CPU, load, largest, int4_scale, multiply, encode4, encode8, decode4, decode8,
};
