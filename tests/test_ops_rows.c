/* RMSNorm, rounding and the vector exponential: each tier against double arithmetic and central
 * finite differences of it, at ragged widths against guard pages, on 1, 2 and 3 threads. */
#include "base/half.h"
#include "ops_support.h"

static const size_t widths[] = {1, 3, 4, 7, 8, 15, 16, 17, 33, 64, 80, 129, 576};
enum { WIDTHS = sizeof widths / sizeof *widths, TOKENS = 37, GAP = 5 };
static const double unit = 0x1p-24;

START_TEST(exponential_is_within_two_ulp)
{
    if (!use_tier(_i))
        return;
    const ql_row_kernels *rows = ql_ops_select(ql_cpu_features())->rows;
    float x[64], y[64];
    double worst = 0;
    for (uint32_t bits = 0; bits < 0x42b17218u; bits += 64 * 41) { /* up to ln of the largest float */
        for (uint32_t i = 0; i < 64; i++) {
            uint32_t pattern = (bits + i * 41) | (i % 2 ? 0x80000000u : 0);
            memcpy(x + i, &pattern, 4);
        }
        memcpy(y, x, sizeof x);
        rows->exponentials(64, y);
        for (int i = 0; i < 64; i++) {
            double want = exp((double)x[i]);
            if (want < 0x1p-126 || want > 0x1.fffffep127) /* subnormal results are checked absolutely below */
                continue;
            double ulp = ldexp(1, ilogb(want) - 23), error = fabs(y[i] - want) / ulp;
            worst = error > worst ? error : worst;
        }
    }
    printf("exp %s: %.3f ulp at most\n", tier_names[_i], worst);
    ck_assert_double_le(worst, 2);
    float ends[] = {-INFINITY, -1e30f, -105, 0, 89, INFINITY, NAN, -88}, got[8];
    memcpy(got, ends, sizeof ends);
    rows->exponentials(8, got);
    for (int i = 0; i < 3; i++)
        ck_assert(got[i] == 0 && !signbit(got[i]));
    ck_assert(got[3] == 1 && got[4] == INFINITY && got[5] == INFINITY && isnan(got[6]));
    ck_assert_double_eq_tol(got[7], exp(-88), 0x1p-147);
}
END_TEST

START_TEST(exponentials_are_added_up)
{
    if (!use_tier(_i))
        return;
    const ql_row_kernels *rows = ql_ops_select(ql_cpu_features())->rows;
    enum { N = 3001 };
    float *x = guarded(N), *e = guarded(N);
    for (int rough = 0; rough < 2; rough++)
        for (float shift = -30; shift < 70; shift += 45) {
            ql_exp_sum sum = {.max = -INFINITY}, same = sum;
            double want_sum = 0, worst = 0;
            for (int i = 0; i < N; i++) {
                x[i] = e[i] = shift - 60 + (float)i * 0.03f;
                want_sum += exp((double)x[i] - (double)shift);
            }
            rows->exp_sum(N, x, shift, false, rough, &same);
            rows->exp_sum(N, e, shift, true, rough, &sum);
            double bound = rough ? QL_EXP_ROUGH + 100 * 0x1p-23 : 2 * 0x1p-23 + 60 * 0x1p-24;
            for (int i = 0; i < N; i++)
                worst = fmax(worst, fabs((double)e[i] / exp((double)x[i] - (double)shift) - 1));
            ck_assert_double_le(worst, bound);
            assert_near(sum.sum, want_sum, want_sum * (bound + 64 * 0x1p-24), "sum of exponentials, shift %g", (double)shift);
            ck_assert(sum.sum == same.sum && sum.max == x[N - 1] && !sum.bad && same.max == sum.max);
        }
    static const float ends[] = {INFINITY, -INFINITY, NAN};
    for (int i = 0; i < 6; i++) {
        ql_exp_sum sum = {.max = -INFINITY};
        float some[20] = {0, -__FLT_MAX__, -1e30f};
        rows->exp_sum(20, some, 0, true, i % 2, &sum);
        ck_assert(!sum.bad && fabs(sum.sum - 18) < 1e-4 && some[1] == 0 && some[2] == 0);
        some[i * 3] = ends[i / 2];
        rows->exp_sum(20, some, 0, true, i % 2, &sum);
        ck_assert(sum.bad);
    }
}
END_TEST

static double norm_loss(size_t d, const double *x, const float *w, double eps, const float *dy)
{
    double squares = 0, loss = 0;
    for (size_t i = 0; i < d; i++)
        squares += x[i] * x[i];
    for (size_t i = 0; i < d; i++)
        loss += x[i] / sqrt(squares / (double)d + eps) * w[i] * dy[i];
    return loss;
}

static void check_norm(size_t heads, size_t d)
{
    size_t cols = heads * d, ld = cols + GAP;
    float *x = random_matrix(TOKENS, cols, ld), *dy = random_matrix(TOKENS, cols, ld), *w = random_matrix(1, d, d);
    float *y = empty_matrix(TOKENS, cols, ld), *dx = random_matrix(TOKENS, cols, ld), *rstd = guarded(TOKENS * heads);
    ql_rmsnorm norm = {heads, d, w, 1e-5f};
    float *before = random_matrix(TOKENS, cols, ld);
    memcpy(before, dx, ((TOKENS - 1) * ld + cols) * sizeof *dx);
    ql_rmsnorm_forward(&norm, TOKENS, x, ld, y, ld, rstd, NULL);
    ql_rmsnorm_backward(&norm, TOKENS, x, ld, rstd, dy, ld, dx, ld, true, NULL);
    double row[1024];
    for (size_t t = 0; t < TOKENS; t++)
        for (size_t h = 0; h < heads; h++) {
            const float *xr = x + t * ld + h * d, *g = dy + t * ld + h * d;
            double squares = 0;
            for (size_t i = 0; i < d; i++) {
                row[i] = xr[i];
                squares += row[i] * row[i];
            }
            double want = 1 / sqrt(squares / (double)d + 1e-5);
            assert_near(rstd[t * heads + h], want, want * ((double)d + 4) * unit, "rstd, d %zu", d);
            for (size_t i = 0; i < d; i++)
                assert_near(y[t * ld + h * d + i], xr[i] * want * w[i], want * ((double)d + 4) * unit, "y, d %zu", d);
            for (size_t i = 0; i < d; i += d / 8 + 1) {
                double step = 1e-6;
                row[i] = xr[i] + step;
                double high = norm_loss(d, row, w, 1e-5, g);
                row[i] = xr[i] - step;
                double slope = (high - norm_loss(d, row, w, 1e-5, g)) / (2 * step);
                row[i] = xr[i];
                assert_near(dx[t * ld + h * d + i], slope + before[t * ld + h * d + i],
                            1e-8 * want + (want * 2 + 1) * ((double)d + 8) * unit, "dx, d %zu", d);
            }
        }
    assert_gaps_untouched(y, TOKENS, cols, ld);
    assert_gaps_untouched(dx, TOKENS, cols, ld);
}

/* As the tier rounds: the instruction takes subnormal numbers for 0. */
static uint16_t narrowed(int tier, float x)
{
    bool flushes = strcmp(tier_names[tier], "avx512-bf16") == 0;
    return flushes && fabsf(x) < 0x1p-126f ? ql_f32_to_bf16(copysignf(0, x)) : ql_f32_to_bf16(x);
}

/* Every bf16 number there and back, numbers that round, and what is not finite; ragged, to the ends of arrays. */
START_TEST(narrow_rounds_to_nearest_even)
{
    if (!use_tier(_i))
        return;
    const ql_row_kernels *rows = ql_ops_select(ql_cpu_features())->rows;
    uint16_t narrow[65];
    for (uint32_t bits = 0; bits < 0x10000; bits += 61) {
        size_t n = bits % 65 + 1;
        float *x = guarded(n), *back = guarded(n);
        for (size_t i = 0; i < n; i++)
            x[i] = ql_float_from_bits((bits + (uint32_t)i) << 16 | (uint32_t[]){0, 1, 0x7fff, 0x8000, 0x8001}[i % 5]);
        rows->narrow(n, x, narrow);
        rows->widen(n, narrow, back);
        for (size_t i = 0; i < n; i++) {
            ck_assert_uint_eq(narrow[i], narrowed(_i, x[i]));
            ck_assert_uint_eq(ql_float_bits(back[i]), (uint32_t)narrow[i] << 16);
        }
    }
}
END_TEST

START_TEST(norm_matches_double_and_its_differences)
{
    if (!use_tier(_i))
        return;
    for (size_t i = 0; i < WIDTHS; i++) {
        check_norm(1, widths[i]);
        check_norm(3, widths[i]);
    }
}
END_TEST

START_TEST(norm_in_place_and_on_any_threads)
{
    if (!use_tier(_i))
        return;
    enum { D = 80, H = 2, N = TOKENS * H * D };
    float *x = random_matrix(1, N, N), *dy = random_matrix(1, N, N), *w = random_matrix(1, D, D);
    float y[2][N], dx[2][N], rstd[TOKENS * H];
    ql_rmsnorm norm = {H, D, w, 1e-6f};
    ql_rmsnorm_forward(&norm, TOKENS, x, H * D, y[0], H * D, rstd, NULL);
    ql_rmsnorm_backward(&norm, TOKENS, x, H * D, rstd, dy, H * D, dx[0], H * D, false, NULL);
    for (size_t threads = 2; threads <= 3; threads++) {
        ql_workers *workers = make_workers(threads, (ql_scratch){0});
        memcpy(y[1], x, sizeof y[1]);
        memcpy(dx[1], dy, sizeof dx[1]);
        ql_rmsnorm_forward(&norm, TOKENS, y[1], H * D, y[1], H * D, NULL, workers);
        ql_rmsnorm_backward(&norm, TOKENS, x, H * D, rstd, dx[1], H * D, dx[1], H * D, false, workers);
        ck_assert_mem_eq(y[0], y[1], sizeof y[0]);
        ck_assert_mem_eq(dx[0], dx[1], sizeof dx[0]);
        ql_workers_destroy(workers);
    }
}
END_TEST

/* A block's norm, which adds and narrows on the way, and what the backward pass makes of the narrow x; the second time
 * on threads, and without what may be left out. */
START_TEST(block_norm_matches_double)
{
    if (!use_tier(_i))
        return;
    for (size_t k = 0; k < WIDTHS; k++) {
        size_t d = widths[k], n = TOKENS * d;
        float *x = random_matrix(TOKENS, d, d), *add = random_matrix(TOKENS, d, d), *w = random_matrix(1, d, d);
        float *y = guarded(n), *rstd = guarded(TOKENS), *again = guarded(n), *dy = random_matrix(TOKENS, d, d);
        float *dx = random_matrix(TOKENS, d, d), *wide_dx = guarded(n), *rounded = guarded(n), *unrounded = guarded(n);
        float *sum = guarded(n);
        uint16_t *narrow = (uint16_t *)(void *)guarded(n);
        ql_rmsnorm norm = {1, d, w, 1e-5f};
        ql_workers *workers = make_workers(3, (ql_scratch){0});
        memcpy(sum, x, n * sizeof *x);
        memcpy(wide_dx, dx, n * sizeof *dx);
        ql_residual_rmsnorm(&norm, TOKENS, &(ql_residual){sum, add, narrow}, (ql_either){.wide = y}, rstd, NULL);
        for (size_t t = 0; t < TOKENS; t++) {
            double squares = 0;
            for (size_t i = t * d; i < (t + 1) * d; i++) {
                double both = (double)x[i] + (double)add[i];
                assert_near(sum[i], both, 2 * unit, "x + add, d %zu", d);
                ck_assert_uint_eq(narrow[i], ql_f32_to_bf16(sum[i]));
                rounded[i] = ql_bf16_to_f32(narrow[i]);
                squares += both * both;
            }
            double want = 1 / sqrt(squares / (double)d + 1e-5);
            assert_near(rstd[t], want, want * ((double)d + 8) * unit, "rstd, d %zu", d);
            for (size_t i = t * d; i < (t + 1) * d; i++)
                assert_near(y[i], ((double)x[i] + add[i]) * want * w[i % d], 2 * want * ((double)d + 8) * unit, "y, d %zu",
                            d);
        }
        /* In bf16, as of the fp32 numbers that it stands for. */
        ql_rmsnorm_again(&norm, TOKENS, narrow, (ql_either){.wide = again}, rstd, workers);
        ql_residual_rmsnorm(&norm, TOKENS, &(ql_residual){.x = rounded}, (ql_either){.wide = unrounded}, NULL, workers);
        ck_assert_mem_eq(again, unrounded, n * sizeof *again);
        uint16_t *out = (uint16_t *)(void *)guarded((n + 1) / 2); /* and to bf16, from both */
        for (int from = 0; from < 2; from++) {
            if (from)
                ql_rmsnorm_again(&norm, TOKENS, narrow, (ql_either){.narrow = out}, rstd, workers);
            else
                ql_residual_rmsnorm(&norm, TOKENS, &(ql_residual){.x = rounded}, (ql_either){.narrow = out}, NULL,
                                    NULL);
            for (size_t i = 0; i < n; i++)
                ck_assert_uint_eq(out[i], ql_f32_to_bf16(again[i]));
        }
        ql_rmsnorm_backward_narrow(&norm, TOKENS, narrow, rstd, dy, dx, workers);
        ql_rmsnorm_backward(&norm, TOKENS, rounded, d, rstd, dy, d, wide_dx, d, true, NULL);
        ck_assert_mem_eq(dx, wide_dx, n * sizeof *dx);
        ql_workers_destroy(workers);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ops_rows");
    TCase *tests = tcase_create("rows");
    tcase_set_timeout(tests, 120);
    tcase_add_loop_test(tests, exponential_is_within_two_ulp, 0, TIERS);
    tcase_add_loop_test(tests, exponentials_are_added_up, 0, TIERS);
    tcase_add_loop_test(tests, narrow_rounds_to_nearest_even, 0, TIERS);
    tcase_add_loop_test(tests, block_norm_matches_double, 0, TIERS);
    tcase_add_loop_test(tests, norm_matches_double_and_its_differences, 0, TIERS);
    tcase_add_loop_test(tests, norm_in_place_and_on_any_threads, 0, TIERS);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
