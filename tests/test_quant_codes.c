/* Codes, scales and decoded values against definitions computed here in double. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant_case.h"

static ql_error err;

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
            double scale = ql_wview_scale(v, g), x = values[row * v->k + col];
            double error = fabs(x - ql_wview_at(v, row, col)), clipped = fmax(fabs(x) - end * scale, 0);
            if (!run || error > nearest(v, x, scale) + 2e-7 * fabs(x) + 4e-6 * scale ||
                error > fmax(half_gap * scale, clipped) * (1 + 1e-5))
                ck_abort_msg("row %zu, column %zu: %g with scale %g is off by %g", row, col, x, scale, error);
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
    int which = _i;
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

/* With a scale a group, a row's bytes do not depend on its neighbours. */
START_TEST(rows_stand_alone)
{
    static const int single[] = {1, 3, 5, 7}; /* nf4, fp4, int4, int8 with FP16 scales */
    ql_format format = format_of(single[_i], 64);
    matrix a = matrix_make(8, 100, QL_F32, 3); /* ld == k */
    ql_weight *all = quantize(format, a, NULL);
    const ql_wview *v = ql_weight_view(all);
    for (size_t row = 0; row < a.n; row++) {
        ql_weight *one;
        ck_assert_ok(ql_weight_quantize(&one, format, "w", a.values + row * a.k, QL_F32, a.k, 1, a.k, NULL, &err),
                     &err);
        ck_assert_mem_eq((const char *)v->codes + row * v->row_bytes, one->view.codes, v->row_bytes);
        ck_assert_mem_eq((const uint16_t *)v->scales + row * v->groups, one->view.scales, v->groups * 2);
        ql_weight_destroy(one);
    }
    ql_weight_destroy(all);
    matrix_free(a);
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
                    if (got != wanted)
                        ck_abort_msg("element %zu: %.9g, wanted %.9g", i, got, wanted);
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
                if (ql_float_bits(got[i]) != ql_float_bits(wanted))
                    ck_abort_msg("element %zu: %.9g, wanted %.9g", i, got[i], wanted);
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
                if (got[i] != 0)
                    ck_abort_msg("%zu x %zu, element %zu: %g", n, k, i, got[i]);
            ql_weight_destroy(w);
        }
        free(x);
        free(got);
    }
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
    static const float sizes[] = {1e-45f, 1e-40f, 1e-38f, 1e-30f, 1e-9f, 2e-8f, 9e-8f, 1e-6f, 1e-4f, 1.0f, 6e4f};
    float x[3 * 96], got[3 * 96];
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int i = 0; i < 3 * 96; i++)
            x[i] = sizes[s] * (float)(i % 17 - 8) / 8;
        ql_weight *w;
        ck_assert_ok(ql_weight_quantize(&w, format_of(_i, 32), "w", x, QL_F32, 96, 3, 96, NULL, &err), &err);
        ql_weight_dequantize(w, 0, 3, got, 96);
        bool wide = _i >= 8 && _i < 12;
        double bound = sizes[s] < FLT_MIN ? sizes[s] : 0.18 * sizes[s]; /* half a gap; 1 / scale must be finite */
        bound += wide ? 1e-44 : 0x1p-24;                                /* the smallest FP16 scale */
        for (int i = 0; i < 3 * 96; i++) {
            ck_assert(isfinite(got[i]));
            ck_assert(x[i] != 0 || got[i] == 0);
            if (_i < QUANTIZED)
                ck_assert_double_le(fabs(got[i] - x[i]), bound);
        }
        ql_weight_destroy(w);
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
    Suite *suite = suite_create("quant_codes");
    TCase *tests = tcase_create("quant_codes");
    tcase_set_timeout(tests, 300);
    tcase_add_loop_test(tests, codes_are_nearest_and_scales_true, 0, QUANTIZED);
    tcase_add_loop_test(tests, rows_stand_alone, 0, 4);
    tcase_add_test(tests, dense_weights_convert);
    tcase_add_loop_test(tests, dequantizes_to_the_bit, 0, FORMATS);
    tcase_add_loop_test(tests, zeros_stay_zeros, 0, FORMATS);
    tcase_add_test(tests, double_quantization_keeps_small_scales);
    tcase_add_loop_test(tests, extreme_magnitudes, 0, FORMATS);
    tcase_add_test(tests, int4_scales_are_worth_their_search);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
