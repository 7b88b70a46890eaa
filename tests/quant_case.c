#include "quant_case.h"

#include <stdlib.h>
#include <string.h>

const format_name formats[FORMATS] = {
    {"nf4", true},     {"nf4", false},     {"fp4", true},   {"fp4", false},    {"int4", true},
    {"int4", false},   {"int8", true},     {"int8", false}, {"bnb-nf4", true}, {"bnb-nf4", false},
    {"bnb-fp4", true}, {"bnb-fp4", false}, {"bf16", false}, {"f16", false},    {"f32", false},
};
const uint32_t groups[GROUPS] = {32, 64, 128, 256};
const size_t shapes[SHAPES][2] = {{1, 1}, {3, 31}, {5, 63}, {4, 64}, {7, 65}, {6, 172}, {5, 300}, {70, 512}, {9, 1000}};
const ql_dtype types[TYPES] = {QL_F32, QL_F16, QL_BF16};

ql_format format_of(int which, uint32_t group)
{
    ql_error err;
    ql_format format;
    ck_assert_ok(ql_format_parse(&format, formats[which].name, group, formats[which].twice, &err), &err);
    return format;
}

float to_type(void *dst, ql_dtype type, size_t i, float x)
{
    uint16_t half = type == QL_F16 ? ql_f32_to_f16(x) : ql_f32_to_bf16(x);
    if (type == QL_F32) {
        ((float *)dst)[i] = x;
        return x;
    }
    ((uint16_t *)dst)[i] = half;
    return type == QL_F16 ? ql_f16_to_f32(half) : ql_bf16_to_f32(half);
}

float normal(ql_rng *rng)
{
    float sum = 0;
    for (int i = 0; i < 6; i++)
        sum += ql_uniform(ql_rng_next(rng)) - 0.5f;
    return sum * 1.4f;
}

matrix matrix_make(size_t n, size_t k, ql_dtype type, uint64_t seed)
{
    matrix a = {.n = n, .k = k, .ld = k + seed % 3, .type = type};
    a.src = malloc(n * a.ld * ql_dtype_size(type));
    a.values = malloc(n * k * sizeof *a.values);
    ql_rng rng = {.seed = seed};
    for (size_t i = 0; i < n * a.ld; i++) {
        size_t row = i / a.ld, col = i % a.ld;
        float x = normal(&rng) * 0.02f * (float)(1 + row % 5);
        if (i % 97 == 3)
            x *= 6;
        if ((col / 32 + row) % 9 == 8)
            x = 0;
        x = to_type(a.src, type, i, x);
        if (col < k)
            a.values[row * k + col] = x;
    }
    return a;
}

void matrix_free(matrix a)
{
    free(a.src);
    free(a.values);
}

ql_weight *quantize(ql_format format, matrix a, ql_workers *workers)
{
    ql_error err;
    ql_weight *w;
    ck_assert_ok(ql_weight_quantize(&w, format, "w", a.src, a.type, a.ld, a.n, a.k, workers, &err), &err);
    return w;
}
