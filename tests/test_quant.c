/* The quant room: formats, sizes, codes and scales against definitions computed here in double. */
#include <float.h>
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/rng.h"
#include "qlora/quant.h"
#include "quant/encode.h"
#include "quant/weight.h"
#include "support.h"

static ql_error err;

static const struct {
    const char *name;
    bool twice;
} formats[] = {
    {"nf4", true},     {"nf4", false},     {"fp4", true},     {"fp4", false},    {"int4", true},
    {"int4", false},   {"int8", true},     {"int8", false},   {"bnb-nf4", true}, {"bnb-nf4", false},
    {"bnb-fp4", true}, {"bnb-fp4", false}, {"bf16", false},   {"f16", false},    {"f32", false},
};
static const uint32_t groups[] = {32, 64, 128, 256};
static const size_t shapes[][2] = {{1, 1}, {3, 31}, {5, 63}, {4, 64}, {7, 65}, {6, 172}, {5, 300}, {70, 512}, {9, 1000}};
static const ql_dtype types[] = {QL_F32, QL_F16, QL_BF16};
enum {
    FORMATS = sizeof formats / sizeof *formats,
    GROUPS = sizeof groups / sizeof *groups,
    SHAPES = sizeof shapes / sizeof *shapes,
    TYPES = sizeof types / sizeof *types,
};

static ql_format format_of(int which, uint32_t group)
{
    ql_format format;
    ck_assert_ok(ql_format_parse(&format, formats[which].name, group, formats[which].twice, &err), &err);
    return format;
}

static float to_type(void *dst, ql_dtype type, size_t i, float x)
{
    uint16_t half = type == QL_F16 ? ql_f32_to_f16(x) : ql_f32_to_bf16(x);
    if (type == QL_F32) {
        ((float *)dst)[i] = x;
        return x;
    }
    ((uint16_t *)dst)[i] = half;
    return type == QL_F16 ? ql_f16_to_f32(half) : ql_bf16_to_f32(half);
}

static float normal(ql_rng *rng)
{
    float sum = 0;
    for (int i = 0; i < 6; i++)
        sum += ql_uniform(ql_rng_next(rng)) - 0.5f;
    return sum * 1.4f;
}

/* A matrix W[n][k], rows ld apart, with what its type made of the values in fp32, packed. The scale of its
 * rows varies, some elements stand out and one group in nine is zero. */
typedef struct matrix {
    size_t n, k, ld;
    ql_dtype type;
    void *src;
    float *values;
} matrix;

static matrix matrix_make(size_t n, size_t k, ql_dtype type, uint64_t seed)
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

static void matrix_free(matrix a)
{
    free(a.src);
    free(a.values);
}

static ql_weight *quantize(ql_format format, matrix a, ql_workers *workers)
{
    ql_weight *w;
    ck_assert_ok(ql_weight_quantize(&w, format, "w", a.src, a.type, a.ld, a.n, a.k, workers, &err), &err);
    return w;
}

START_TEST(names_round_trip)
{
    static const char *const wanted[] = {"nf4 g64 dq",     "nf4 g64",     "fp4 g64 dq",     "fp4 g64", "int4 g64 dq",
                                         "int4 g64",       "int8 g64 dq", "int8 g64",       "bnb-nf4 g64 dq",
                                         "bnb-nf4 g64",    "bnb-fp4 g64 dq", "bnb-fp4 g64", "bf16",    "f16", "f32"};
    char text[48];
    for (int i = 0; i < FORMATS; i++)
        ck_assert_str_eq(ql_format_describe(format_of(i, 64), text), wanted[i]);
    ck_assert_str_eq(ql_format_describe(ql_format_default(), text), "nf4 g64 dq");
    ql_format format;
    ck_assert_ok(ql_format_parse(&format, "none", 0, true, &err), &err);
    ck_assert_int_eq(format.code, QL_CODE_F32);
    ck_assert_fails(ql_format_parse(&format, "nf5", 64, true, &err), QL_ERR_ARG, &err, "'nf5'");
    ck_assert_fails(ql_format_parse(&format, "nf5", 64, true, &err), QL_ERR_ARG, &err, "int4");
    ck_assert_fails(ql_format_parse(&format, "nf4", 48, true, &err), QL_ERR_ARG, &err, "48");
    ck_assert_fails(ql_format_parse(&format, "nf4", 512, true, &err), QL_ERR_ARG, &err, "512");
    ck_assert_ok(ql_format_parse(&format, "bnb-nf4", 4096, true, &err), &err);
}
END_TEST

static size_t lines(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* The bytes of every array, each rounded up to a cache line. */
START_TEST(sizes_are_what_is_held)
{
    for (int s = 0; s < SHAPES; s++)
        for (int g = 0; g < GROUPS; g++) {
            size_t n = shapes[s][0], k = shapes[s][1], padded = (k + 63) / 64 * 64;
            ql_format f = format_of(_i, groups[g]);
            bool dense = f.code <= QL_CODE_BF16;
            size_t scales = dense ? 0 : f.flat ? (n * k + f.group - 1) / f.group : n * ((k + f.group - 1) / f.group);
            size_t codes = f.code == QL_CODE_F32    ? n * k * 4
                           : dense                  ? n * k * 2
                           : f.code == QL_CODE_INT8 ? n * padded
                                                    : n * padded / 2;
            size_t scale_bytes = 0, blocks = (scales + 255) / 256;
            if (f.scale == QL_SCALE_F16)
                scale_bytes = lines(scales * 2);
            else if (f.scale == QL_SCALE_DQ)
                scale_bytes = lines(scales) + 2 * lines(blocks * 2);
            else if (f.scale == QL_SCALE_F32)
                scale_bytes = lines(scales * 4);
            else if (f.scale == QL_SCALE_BNB_NESTED)
                scale_bytes = lines(scales) + lines(blocks * 4) + 1024;
            ql_weight_size size;
            ck_assert_ok(ql_format_size(&size, f, n, k, &err), &err);
            ck_assert_uint_eq(size.codes, lines(codes));
            ck_assert_uint_eq(size.scales, scale_bytes);
            matrix a = matrix_make(n, k, QL_F32, 1);
            ql_weight *w = quantize(f, a, NULL);
            ck_assert_uint_eq(ql_weight_bytes(w), size.codes + size.scales);
            ck_assert_uint_ge(malloc_usable_size(w->memory), size.codes + size.scales);
            ck_assert_uint_eq(ql_weight_rows(w), n);
            ck_assert_uint_eq(ql_weight_cols(w), k);
            ql_weight_destroy(w);
            matrix_free(a);
        }
}
END_TEST

START_TEST(sizes_of_a_layer)
{
    ql_weight_size size;
    ck_assert_ok(ql_format_size(&size, format_of(4, 64), 4096, 4096, &err), &err); /* int4 g64 dq */
    ck_assert_uint_eq(size.codes, 8388608);
    ck_assert_uint_eq(size.scales, 262144 + 2 * 1024 * 2);
}
END_TEST

START_TEST(shapes_and_formats_are_checked)
{
    ql_weight_size size;
    ql_format nf4 = ql_format_default();
    ck_assert_fails(ql_format_size(&size, nf4, 0, 64, &err), QL_ERR_SHAPE, &err, "0 x 64");
    ck_assert_fails(ql_format_size(&size, nf4, 64, 0, &err), QL_ERR_SHAPE, &err, "64 x 0");
    ck_assert_fails(ql_format_size(&size, nf4, SIZE_MAX / 64, 65, &err), QL_ERR_SHAPE, &err, "too large");
    ck_assert_fails(ql_format_size(&size, nf4, 1, SIZE_MAX, &err), QL_ERR_SHAPE, &err, "too large");
    ql_format odd = {QL_CODE_INT8, QL_SCALE_F32, 64, false};
    ck_assert_fails(ql_format_size(&size, odd, 1, 64, &err), QL_ERR_ARG, &err, "does not go with");
    odd = (ql_format){QL_CODE_NF4, QL_SCALE_F16, 64, true};
    ck_assert_fails(ql_format_size(&size, odd, 1, 64, &err), QL_ERR_ARG, &err, "row ends");
    odd = (ql_format){QL_CODE_NF4, QL_SCALE_F16, 0, false};
    ck_assert_fails(ql_format_size(&size, odd, 1, 64, &err), QL_ERR_ARG, &err, "group size 0");
    float x[64] = {0};
    ql_weight *w;
    ck_assert_fails(ql_weight_quantize(&w, nf4, "blk.0", x, QL_I8, 64, 1, 64, NULL, &err), QL_ERR_UNSUPPORTED, &err,
                    "blk.0");
    ck_assert_ptr_null(w);
    ck_assert_fails(ql_weight_quantize(&w, nf4, "blk.0", x, QL_F32, 16, 2, 32, NULL, &err), QL_ERR_SHAPE, &err, "16");
}
END_TEST

/* The distance from x to the nearest value that the format has with this scale. */
static double nearest(const ql_wview *v, double x, double scale)
{
    double best = INFINITY;
    if (v->table)
        for (int c = 0; c < 16; c++)
            best = fmin(best, fabs(x - v->table[c] * scale));
    else
        for (int c = -127; c <= 127; c++)
            best = fmin(best, fabs(x - c * scale));
    return best;
}

/* Every code is the nearest one, up to the rounding of x / scale, and the error is within the format's bound: half
 * the widest gap between values, plus what a scale that came out too small clips. */
static void check_codes(const ql_wview *v, const float *values)
{
    bool nf4 = v->format.code == QL_CODE_NF4, fp4 = v->format.code == QL_CODE_FP4;
    double half_gap = nf4 ? 0.152 : fp4 ? 1.0 / 6 : 0.5, end = nf4 || fp4 ? 1 : v->table ? 7 : 127;
    for (size_t row = 0; row < v->n; row++)
        for (size_t col = 0; col < v->k; col++) {
            size_t g, run = ql_wview_run(v, row, col, &g);
            ck_assert_uint_gt(run, 0);
            double scale = ql_wview_scale(v, g), x = values[row * v->k + col];
            double error = fabs(x - ql_wview_at(v, row, col)), clipped = fmax(fabs(x) - end * scale, 0);
            ck_assert_double_le(error, nearest(v, x, scale) + 2e-7 * fabs(x) + 4e-6 * scale);
            ck_assert_double_le(error, fmax(half_gap * scale, clipped) * (1 + 1e-5));
        }
}

/* The largest magnitude of group g, by the definition of the layout. */
static double largest_of(const ql_wview *v, size_t g, const float *values)
{
    size_t size = v->format.group, total = v->n * v->k;
    size_t start = v->format.flat ? g * size : g / v->groups * v->k + g % v->groups * size;
    size_t end = v->format.flat ? total : (g / v->groups + 1) * v->k;
    double most = 0;
    for (size_t i = start; i < end && i < start + size; i++)
        most = fmax(most, fabs(values[i]));
    return most;
}

static void check_scales(const ql_wview *v, const float *values)
{
    size_t total = v->format.flat ? v->groups : v->n * v->groups;
    double unit = v->format.code == QL_CODE_INT8 ? 127 : 1;
    bool searched = v->format.code == QL_CODE_INT4; /* from most/9 to most/7 */
    for (size_t first = 0; first < total; first += QL_DQ_GROUPS) {
        size_t end = first + QL_DQ_GROUPS < total ? first + QL_DQ_GROUPS : total;
        double low = INFINITY, high = 0;
        for (size_t g = first; g < end; g++) {
            double most = largest_of(v, g, values) / unit;
            low = most > 0 ? fmin(low, most / (searched ? 9 : 1)) : low;
            high = fmax(high, most / (searched ? 7 : 1));
        }
        double step = high > 0 ? (high - low * (1 - 0x1p-10)) / 255 * (1 + 0x1p-10) : 0;
        for (size_t g = first; g < end; g++) {
            double most = largest_of(v, g, values) / unit, scale = ql_wview_scale(v, g);
            double slack = v->format.scale == QL_SCALE_F16   ? most * 0x1p-11 + 0x1p-25
                           : v->format.scale == QL_SCALE_DQ  ? step * 0.501 + 0x1p-25
                           : v->format.scale == QL_SCALE_F32 ? 0
                                                             : INFINITY; /* bitsandbytes' vectors hold it to the bit */
            if (most > 0) {
                ck_assert_double_ge(scale, most / (searched ? 9 : 1) - slack);
                ck_assert_double_le(scale, most / (searched ? 7 : 1) + slack);
                ck_assert(scale > 0 || v->format.scale == QL_SCALE_BNB_NESTED);
            }
        }
    }
}

START_TEST(codes_are_nearest_and_scales_true)
{
    int which = _i % 12;
    for (int s = 0; s < SHAPES; s++)
        for (int g = 0; g < GROUPS; g++)
            for (int t = 0; t < TYPES; t++) {
                matrix a = matrix_make(shapes[s][0], shapes[s][1], types[t], (uint64_t)(s * 16 + g * 4 + t));
                ql_weight *w = quantize(format_of(which, groups[g]), a, NULL);
                if (ql_weight_format(w).scale != QL_SCALE_BNB_NESTED) /* whose codes go by the scales of before */
                    check_codes(ql_weight_view(w), a.values);
                check_scales(ql_weight_view(w), a.values);
                ql_weight_destroy(w);
                matrix_free(a);
            }
}
END_TEST

START_TEST(dense_weights_convert)
{
    for (int s = 0; s < SHAPES; s++)
        for (int t = 0; t < TYPES; t++)
            for (int which = 12; which < FORMATS; which++) {
                matrix a = matrix_make(shapes[s][0], shapes[s][1], types[t], (uint64_t)(s + t));
                ql_weight *w = quantize(format_of(which, 64), a, NULL);
                for (size_t i = 0; i < a.n * a.k; i++) {
                    float x = a.values[i], got = ql_wview_at(ql_weight_view(w), i / a.k, i % a.k);
                    float wanted = which == 12   ? ql_bf16_to_f32(ql_f32_to_bf16(x))
                                   : which == 13 ? ql_f16_to_f32(ql_f32_to_f16(x))
                                                 : x;
                    ck_assert(got == wanted);
                }
                ql_weight_destroy(w);
                matrix_free(a);
            }
}
END_TEST

/* ql_weight_dequantize() against the scalar definition, in pieces of rows, writing nothing beside them. */
START_TEST(dequantizes_to_the_bit)
{
    for (int s = 0; s < SHAPES; s++)
        for (int g = 0; g < GROUPS; g++) {
            size_t n = shapes[s][0], k = shapes[s][1], ld = k + 3, first = n / 3, rows = n - first;
            matrix a = matrix_make(n, k, QL_F32, 7);
            ql_weight *w = quantize(format_of(_i, groups[g]), a, NULL);
            float *got = malloc(rows * ld * sizeof *got);
            for (size_t i = 0; i < rows * ld; i++)
                got[i] = 123;
            ql_weight_dequantize(w, first, rows, got, ld);
            for (size_t i = 0; i < rows * ld; i++) {
                float wanted = i % ld < k ? ql_wview_at(ql_weight_view(w), first + i / ld, i % ld) : 123;
                ck_assert_uint_eq(ql_float_bits(got[i]), ql_float_bits(wanted));
            }
            free(got);
            ql_weight_destroy(w);
            matrix_free(a);
        }
}
END_TEST

START_TEST(zeros_stay_zeros)
{
    for (int s = 0; s < SHAPES; s++) {
        size_t n = shapes[s][0], k = shapes[s][1];
        float *x = calloc(n * k, sizeof *x), *got = malloc(n * k * sizeof *got);
        for (int turn = 0; turn < 2; turn++) { /* all zeros, then the first row large and a negative zero */
            for (size_t i = 0; turn && i < k; i++)
                x[i] = 1000.0f - (float)i;
            x[n * k - 1] = n > 1 ? -0.0f : x[n * k - 1];
            ql_weight *w;
            ck_assert_ok(ql_weight_quantize(&w, format_of(_i, 32), "w", x, QL_F32, k, n, k, NULL, &err), &err);
            ql_weight_dequantize(w, 0, n, got, k);
            for (size_t i = turn ? k : 0; i < n * k; i++)
                ck_assert_msg(got[i] == 0, "%zu x %zu, element %zu: %g", n, k, i, got[i]);
            ql_weight_destroy(w);
        }
        free(x);
        free(got);
    }
}
END_TEST

START_TEST(padding_decodes_to_zero)
{
    matrix a = matrix_make(5, 70, QL_F32, 3);
    ql_weight *w = quantize(format_of(_i, 64), a, NULL);
    const ql_wview *v = ql_weight_view(w);
    for (size_t row = 0; row < a.n; row++)
        for (size_t col = a.k; col < 128; col++) {
            const uint8_t *line = (const uint8_t *)v->codes + row * v->row_bytes;
            unsigned byte = v->table ? line[32 + col % 32] : line[col];
            if (v->table)
                ck_assert(v->table[col % 64 < 32 ? byte & 15 : byte >> 4] == 0);
            else
                ck_assert_uint_eq(byte, 0);
        }
    ql_weight_destroy(w);
    matrix_free(a);
}
END_TEST

/* Blocks of 256 groups: of equal scales, of one huge and many tiny ones, and with zeros between. */
START_TEST(double_quantization_keeps_small_scales)
{
    enum { N = 8, K = 64 * 64 };
    float *x = calloc(N * K, sizeof *x);
    ql_weight *w;
    for (size_t g = 0; g < N * K / 64; g++) {
        x[g * 64] = 0.0371f;
        x[g * 64 + 1] = -0.01f;
    }
    ck_assert_ok(ql_weight_quantize(&w, ql_format_default(), "w", x, QL_F32, K, N, K, NULL, &err), &err);
    for (size_t g = 0; g < N * K / 64; g++)
        ck_assert_double_le(fabs(ql_wview_scale(&w->view, g) - 0.0371f), 0.0371 * 0x1p-16);
    ql_weight_destroy(w);

    memset(x, 0, N * K * sizeof *x);
    for (size_t g = 0; g < N * K / 64; g++)
        x[g * 64] = g % 256 == 17 ? 50.0f : g % 3 ? 1e-6f : 0;
    ck_assert_ok(ql_weight_quantize(&w, ql_format_default(), "w", x, QL_F32, K, N, K, NULL, &err), &err);
    for (size_t g = 0; g < N * K / 64; g++) {
        double scale = ql_wview_scale(&w->view, g), wanted = x[g * 64];
        if (wanted > 0)
            ck_assert_double_gt(scale, 0);
        if (wanted > 1)
            ck_assert_double_eq_tol(scale, wanted, wanted * 0x1p-9);
    }
    ql_weight_destroy(w);
    free(x);
}
END_TEST

/* Magnitudes at the ends of what scales can hold. */
START_TEST(extreme_magnitudes)
{
    static const float sizes[] = {1e-45f, 1e-38f, 1e-30f, 1e-9f, 2e-8f, 9e-8f, 1e-6f, 1e-4f, 1.0f, 6e4f};
    float x[3 * 96], got[3 * 96];
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int i = 0; i < 3 * 96; i++)
            x[i] = sizes[s] * (float)(i % 17 - 8) / 8;
        ql_weight *w;
        ck_assert_ok(ql_weight_quantize(&w, format_of(_i, 32), "w", x, QL_F32, 96, 3, 96, NULL, &err), &err);
        ql_weight_dequantize(w, 0, 3, got, 96);
        bool wide = _i >= 8 && _i < 12;
        for (int i = 0; i < 3 * 96; i++) { /* half a gap, and the smallest fp16 scale */
            ck_assert(isfinite(got[i]));
            if (_i < 12)
                ck_assert_double_le(fabs(got[i] - x[i]), 0.18 * sizes[s] + (wide ? 0 : 0x1p-24) + 1e-44);
        }
        ql_weight_destroy(w);
    }
}
END_TEST

START_TEST(scales_too_large_are_refused)
{
    float x[3 * 256];
    for (int i = 0; i < 3 * 256; i++)
        x[i] = 1;
    x[256 + 130] = -1e6f;
    x[2 * 256 + 5] = 1e7f;
    ql_format nf4 = format_of(1, 64);
    ql_weight *w;
    ck_assert_fails(ql_weight_quantize(&w, nf4, "blk.3.up", x, QL_F32, 256, 3, 256, NULL, &err), QL_ERR_VALUE, &err,
                    "blk.3.up: row 1, group 2");
    ck_assert_ptr_null(w);
    /* Double quantization reaches further, fp32 scales to the end. */
    ck_assert_ok(ql_weight_quantize(&w, format_of(0, 64), "w", x, QL_F32, 256, 3, 256, NULL, &err), &err);
    ck_assert_double_eq_tol(ql_wview_at(&w->view, 2, 5), 1e7, 1e4);
    ql_weight_destroy(w);
    x[2 * 256 + 5] = 1e9f;
    ck_assert_fails(ql_weight_quantize(&w, format_of(0, 64), "w", x, QL_F32, 256, 3, 256, NULL, &err), QL_ERR_VALUE,
                    &err, "row 2, group 0");
    ck_assert_ok(ql_weight_quantize(&w, format_of(9, 64), "w", x, QL_F32, 256, 3, 256, NULL, &err), &err);
    ck_assert(ql_wview_at(&w->view, 2, 5) == 1e9f);
    ql_weight_destroy(w);
    ck_assert_fails(ql_weight_quantize(&w, format_of(13, 64), "w", x, QL_F32, 256, 3, 256, NULL, &err), QL_ERR_VALUE,
                    &err, "row 1, column 130: -1e+06 is too large for F16");
    float edge[2] = {65519.996f, 3.4e38f};
    ck_assert_ok(ql_weight_quantize(&w, format_of(13, 64), "w", edge, QL_F32, 1, 1, 1, NULL, &err), &err);
    ql_weight_destroy(w);
    ck_assert_fails(ql_weight_quantize(&w, format_of(12, 64), "w", edge, QL_F32, 2, 1, 2, NULL, &err), QL_ERR_VALUE,
                    &err, "column 1");
}
END_TEST

/* The first bad element is named, whichever thread finds one first. */
START_TEST(bad_values_are_named)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const char *const words[] = {"not a number", "an infinity", "an infinity"};
    enum { N = 400, K = 172 };
    for (int t = 0; t < TYPES; t++) {
        void *src = calloc(N * K, ql_dtype_size(types[t]));
        for (int b = 0; b < 3; b++)
            for (size_t threads = 1; threads <= 3; threads += 2) {
                ql_workers *workers;
                ck_assert_ok(ql_workers_create(&workers, threads, &err), &err);
                for (size_t row = 211; row < N; row += 3)
                    to_type(src, types[t], row * K + 170, bad[(b + row) % 3]);
                to_type(src, types[t], 211 * K + 170, bad[b]);
                ql_weight *w;
                ck_assert_fails(ql_weight_quantize(&w, format_of(_i, 64), "model.q_proj", src, types[t], K, N, K, workers,
                                                   &err),
                                QL_ERR_VALUE, &err, "model.q_proj: row 211, column 170: ");
                ck_assert_ptr_nonnull(strstr(err.message, words[b]));
                ck_assert_ptr_null(w);
                ql_workers_destroy(workers);
            }
        free(src);
    }
}
END_TEST

START_TEST(threads_do_not_change_bits)
{
    matrix a = matrix_make(300, 1000, QL_BF16, 11);
    ql_workers *workers;
    ck_assert_ok(ql_workers_create(&workers, 3, &err), &err);
    ql_weight *one = quantize(format_of(_i, 32), a, NULL), *three = quantize(format_of(_i, 32), a, workers);
    ck_assert_uint_eq(one->bytes, three->bytes);
    ck_assert_mem_eq(one->memory, three->memory, one->bytes);
    ck_assert(one->view.nested_offset == three->view.nested_offset);
    ql_weight_destroy(one);
    ql_weight_destroy(three);
    ql_workers_destroy(workers);
    matrix_free(a);
}
END_TEST

START_TEST(sources_need_no_alignment)
{
    matrix a = matrix_make(5, 300, types[_i], 3);
    size_t bytes = a.n * a.ld * ql_dtype_size(a.type);
    char *shifted = malloc(bytes + 1);
    memcpy(shifted + 1, a.src, bytes);
    ql_weight *w, *other = quantize(ql_format_default(), a, NULL);
    ck_assert_ok(ql_weight_quantize(&w, ql_format_default(), "w", shifted + 1, a.type, a.ld, a.n, a.k, NULL, &err),
                 &err);
    ck_assert_mem_eq(w->memory, other->memory, w->bytes);
    ql_weight_destroy(w);
    ql_weight_destroy(other);
    free(shifted);
    matrix_free(a);
}
END_TEST

START_TEST(borrowed_weights_own_nothing)
{
    float x[6] = {1, 2, 3, 4, 5, NAN}, row[3];
    ql_weight *w;
    ck_assert_ok(ql_weight_borrow(&w, x, QL_F32, 2, 3, &err), &err);
    ck_assert_uint_eq(ql_weight_bytes(w), 0);
    ck_assert_ptr_eq(w->view.codes, x);
    ql_weight_dequantize(w, 1, 1, row, 3);
    ck_assert(row[0] == 4 && row[1] == 5 && isnan(row[2]));
    ck_assert_str_ne(ql_weight_kernel(w), "");
    ql_weight_destroy(w);
    ck_assert_fails(ql_weight_borrow(&w, (char *)x + 1, QL_BF16, 2, 2, &err), QL_ERR_ARG, &err, "aligned");
    ck_assert_fails(ql_weight_borrow(&w, x, QL_I32, 2, 2, &err), QL_ERR_UNSUPPORTED, &err, "I32");
    ck_assert_fails(ql_weight_borrow(&w, x, QL_F32, 2, 0, &err), QL_ERR_SHAPE, &err, "2 x 0");
    ql_weight_destroy(NULL);
}
END_TEST

static unsigned encode_one(const ql_encoder *encoder, ql_code code, float x)
{
    float block[QL_BLOCK] = {0};
    uint8_t bytes[QL_BLOCK / 2];
    block[37] = x;
    encoder->encode4(bytes, block, ql_codebook_of(code));
    return bytes[5] >> 4;
}

/* Thresholds lie in the middle between values that follow each other; a tie goes to the lower value, in FP4 to
 * the one nearer to zero. */
START_TEST(ties)
{
    static const ql_code codes[] = {QL_CODE_NF4, QL_CODE_INT4, QL_CODE_FP4};
    const ql_encoder *encoder = ql_encoder_select(ql_cpu_features());
    for (int b = 0; b < 3; b++) {
        const ql_codebook *book = ql_codebook_of(codes[b]);
        for (int r = 0; r < 15; r++) {
            float t = book->thresholds[r];
            double low = book->table[book->codes[r]], high = book->table[book->codes[r + 1]];
            ck_assert(low < high || (low == 0 && high == 0));
            ck_assert_double_eq_tol(t, (low + high) / 2, 4e-8 + 4e-6 * fabs(t));
            ck_assert_uint_eq(encode_one(encoder, codes[b], t), book->codes[r]);
            ck_assert_uint_eq(encode_one(encoder, codes[b], nextafterf(t, 9)), book->codes[r + 1]);
        }
        ck_assert_uint_eq(encode_one(encoder, codes[b], 0), book->zero);
        ck_assert_uint_eq(encode_one(encoder, codes[b], -0.0f), book->zero);
    }
    ck_assert_uint_eq(encode_one(encoder, QL_CODE_FP4, .0859375f), 1);
    ck_assert_uint_eq(encode_one(encoder, QL_CODE_FP4, -.0859375f), 9);
    float halves[QL_BLOCK];
    int8_t bytes[QL_BLOCK];
    for (int i = 0; i < QL_BLOCK; i++)
        halves[i] = (float)(i - 32) + 0.5f;
    halves[63] = 127.6f;
    encoder->encode8(bytes, halves);
    for (int i = 0; i < 63; i++)
        ck_assert_int_eq(bytes[i], (int)rint(i - 32 + 0.5));
    ck_assert_int_eq(bytes[63], 127);
}
END_TEST

/* Every instruction set gives the bits of the first of the list. */
START_TEST(encoders_agree)
{
    const ql_encoder *plain = ql_encoders[0];
    ql_rng rng = {.seed = 5};
    float x[256], y[256];
    uint8_t a[32], b[32];
    int8_t c[64], d[64];
    for (size_t e = 1; e < ql_encoder_count; e++) {
        const ql_encoder *encoder = ql_encoders[e];
        if (encoder->cpu & ~ql_cpu_features()) {
            printf("skipped: encoder %s on this processor\n", encoder->name);
            continue;
        }
        for (uint32_t first = 0; first < 0x10000; first += 64) { /* every half there is */
            uint16_t halves[64];
            for (uint32_t i = 0; i < 64; i++)
                halves[i] = (uint16_t)(first + i);
            for (int t = 0; t < 2; t++) {
                plain->load(x, halves, types[1 + t], 61);
                encoder->load(y, halves, types[1 + t], 61);
                ck_assert_mem_eq(x, y, 61 * sizeof *x);
                ck_assert_uint_eq(plain->largest(x, 61), encoder->largest(x, 61));
            }
        }
        for (int turn = 0; turn < 4000; turn++) {
            float size = turn % 2 ? 1.2f : 140;
            for (int i = 0; i < 256; i++)
                x[i] = y[i] = size * (2 * ql_uniform(ql_rng_next(&rng)) - 1);
            for (int code = QL_CODE_INT4; code <= QL_CODE_FP4; code++) {
                x[turn % 64] = ql_codebook_of(code)->thresholds[turn % 15];
                plain->encode4(a, x, ql_codebook_of(code));
                encoder->encode4(b, x, ql_codebook_of(code));
                ck_assert_mem_eq(a, b, sizeof a);
                plain->decode4(x + 64, a, ql_codebook_of(code)->table);
                encoder->decode4(x + 128, a, ql_codebook_of(code)->table);
                ck_assert_mem_eq(x + 64, x + 128, 64 * sizeof *x);
            }
            plain->encode8(c, x);
            encoder->encode8(d, x);
            ck_assert_mem_eq(c, d, sizeof c);
            memcpy(x, y, sizeof x);
            ck_assert(plain->int4_scale(x, 256, 140) == encoder->int4_scale(x, 256, 140));
            ck_assert(plain->int4_scale(x, 32, size) == encoder->int4_scale(x, 32, size));
            plain->multiply(x, 77, 0.3f);
            encoder->multiply(y, 77, 0.3f);
            ck_assert_mem_eq(x, y, sizeof x);
        }
    }
}
END_TEST

/* What choosing INT4's scale by error gains over most/7, on normal values. */
START_TEST(int4_scales_are_worth_their_search)
{
    enum { N = 64, K = 1024 };
    float *x = malloc(N * K * sizeof *x);
    double plain = 0, chosen = 0;
    ql_rng rng = {.seed = 9};
    ql_weight *w;
    for (size_t i = 0; i < N * K; i++)
        x[i] = normal(&rng);
    ck_assert_ok(ql_weight_quantize(&w, format_of(5, 64), "w", x, QL_F32, K, N, K, NULL, &err), &err);
    for (size_t g = 0; g < N * K / 64; g++) {
        double most = 0;
        for (size_t i = g * 64; i < g * 64 + 64; i++)
            most = fmax(most, fabs(x[i]));
        for (size_t i = g * 64; i < g * 64 + 64; i++) {
            plain += pow(x[i] - rint(x[i] / most * 7) * most / 7, 2);
            chosen += pow(x[i] - ql_wview_at(&w->view, i / K, i % K), 2);
        }
    }
    ck_assert_double_le(chosen, 0.85 * plain);
    ql_weight_destroy(w);
    free(x);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quant");
    TCase *tests = tcase_create("quant");
    tcase_set_timeout(tests, 300);
    tcase_add_test(tests, names_round_trip);
    tcase_add_loop_test(tests, sizes_are_what_is_held, 0, FORMATS);
    tcase_add_test(tests, sizes_of_a_layer);
    tcase_add_test(tests, shapes_and_formats_are_checked);
    tcase_add_loop_test(tests, codes_are_nearest_and_scales_true, 0, 12);
    tcase_add_test(tests, dense_weights_convert);
    tcase_add_loop_test(tests, dequantizes_to_the_bit, 0, FORMATS);
    tcase_add_loop_test(tests, zeros_stay_zeros, 0, FORMATS);
    tcase_add_loop_test(tests, padding_decodes_to_zero, 0, 12);
    tcase_add_test(tests, double_quantization_keeps_small_scales);
    tcase_add_loop_test(tests, extreme_magnitudes, 0, FORMATS);
    tcase_add_test(tests, scales_too_large_are_refused);
    tcase_add_loop_test(tests, bad_values_are_named, 0, FORMATS);
    tcase_add_loop_test(tests, threads_do_not_change_bits, 0, FORMATS);
    tcase_add_loop_test(tests, sources_need_no_alignment, 0, TYPES);
    tcase_add_test(tests, borrowed_weights_own_nothing);
    tcase_add_test(tests, ties);
    tcase_add_test(tests, encoders_agree);
    tcase_add_test(tests, int4_scales_are_worth_their_search);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
