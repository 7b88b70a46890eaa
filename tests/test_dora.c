/* DoRA: a layer against sums in double and finite differences. */
#include <math.h>
#include <stdlib.h>

#include "base/half.h"
#include "base/rng.h"
#include "qlora/lora.h"
#include "support.h"

static ql_error err;

enum { N = 21, K = 70, R = 3 };
static const double S = 0.75;

typedef struct layer_case {
    size_t m;
    ql_workers *workers;
    ql_weight *base;
    ql_adapters *set;
    float bias[N], *x, *y, *h, *dy, *dx, *work;
    ql_linear linear;
    double w[N * K], a[R * K], b[N * R], mag[N], norm[N];
} layer_case;

static float *numbers(size_t count, uint64_t seed, float scale)
{
    float *x = malloc(count * sizeof *x);
    ql_rng rng = {.seed = seed};
    for (size_t i = 0; i < count; i++)
        x[i] = (ql_uniform(ql_rng_next(&rng)) - 0.5f) * scale;
    return x;
}

static void take_norms(layer_case *c)
{
    for (size_t i = 0; i < N; i++) {
        double sum = 0;
        for (size_t j = 0; j < K; j++) {
            double v = c->w[i * K + j];
            for (size_t r = 0; r < R; r++)
                v += S * c->b[i * R + r] * c->a[r * K + j];
            sum += v * v;
        }
        c->norm[i] = sqrt(sum);
    }
}

static void open_layer(layer_case *c, ql_format format, size_t m, size_t threads)
{
    *c = (layer_case){.m = m, .x = numbers(m * K, 1, 2), .dy = numbers(m * N, 2, 2), .y = calloc(m * N, sizeof(float)),
                      .h = calloc(m * R, sizeof(float)), .dx = calloc(m * K, sizeof(float))};
    float *w = numbers(N * K, 3, 1), *bias = numbers(N, 4, 1), dense[K];
    const ql_adapter_shape shape = {K, N, R, S, true};
    ck_assert_ok(ql_workers_create(&c->workers, threads, &err), &err);
    ck_assert_ok(ql_weight_quantize(&c->base, format, "w", w, QL_F32, K, N, K, c->workers, &err), &err);
    ck_assert_ok(ql_adapters_create(&c->set, &shape, 1, true, &err), &err);
    float *start = numbers(c->set->count, 5, 1);
    for (size_t i = 0; i < N; i++)
        start[c->set->count - N + i] = 1 + start[c->set->count - N + i];
    ql_adapters_set(c->set, 0, c->set->count, start);
    memcpy(c->bias, bias, sizeof c->bias);
    c->linear = (ql_linear){c->base, c->bias, &c->set->layer[0]};
    ck_assert_ok(ql_workers_reserve(c->workers, ql_linear_scratch(&c->linear, m, threads), &err), &err);
    c->work = aligned_alloc(64, (ql_linear_work(&c->linear, m, 0) * sizeof(float) + 63) / 64 * 64);
    ck_assert_ok(ql_dora_start(&c->linear, false, c->workers, &err), &err);
    ql_dora_refresh(&c->linear, c->workers);
    for (size_t i = 0; i < N; i++) {
        ql_weight_dequantize(c->base, i, 1, dense, K);
        for (size_t j = 0; j < K; j++)
            c->w[i * K + j] = dense[j];
        c->mag[i] = c->set->layer[0].magnitude[i];
    }
    for (size_t i = 0; i < R * K; i++)
        c->a[i] = ql_f16_to_f32(c->set->layer[0].a[i]);
    for (size_t i = 0; i < N * R; i++)
        c->b[i] = ql_f16_to_f32(c->set->layer[0].b[i]);
    take_norms(c);
    free(w);
    free(bias);
    free(start);
}

static void close_layer(layer_case *c)
{
    float *const arrays[] = {c->x, c->dy, c->y, c->h, c->dx, c->work};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        free(arrays[i]);
    ql_adapters_destroy(c->set);
    ql_weight_destroy(c->base);
    ql_workers_destroy(c->workers);
}

/* Output `i` of a token in double; the norms stand still. */
static double output(const layer_case *c, const double *x, size_t i)
{
    double sum = 0;
    for (size_t j = 0; j < K; j++) {
        double v = c->w[i * K + j];
        for (size_t r = 0; r < R; r++)
            v += S * c->b[i * R + r] * c->a[r * K + j];
        sum += v * x[j];
    }
    return sum * c->mag[i] / c->norm[i] + c->bias[i];
}

/* Sum of dy * y over all tokens: linear in each variable, so that a central difference is exact but for rounding. */
static double objective(const layer_case *c, const double *x)
{
    double sum = 0;
    for (size_t t = 0; t < c->m; t++)
        for (size_t i = 0; i < N; i++)
            sum += c->dy[t * N + i] * output(c, x + t * K, i);
    return sum;
}

static double slope(const layer_case *c, const double *x, double *variable)
{
    const double step = 1.0 / 256;
    double at = *variable, up, down;
    *variable = at + step, up = objective(c, x);
    *variable = at - step, down = objective(c, x);
    *variable = at;
    return (up - down) / (2 * step);
}

static const ql_format formats[] = {{QL_CODE_F32, QL_SCALE_NONE, 0, false},
                                    {QL_CODE_NF4, QL_SCALE_DQ, 64, false},
                                    {QL_CODE_INT8, QL_SCALE_F16, 32, false}};

/* _i: the format; few tokens, and so many that the backward pass takes them in parts. */
START_TEST(layer_against_double)
{
    for (size_t m = 5; m <= 300; m += 295) {
        layer_case c;
        open_layer(&c, formats[_i], m, 2);
        const ql_adapter *a = &c.set->layer[0];
        double *x = malloc(m * K * sizeof *x), tolerance = 2e-4 * sqrt((double)m);
        for (size_t i = 0; i < m * K; i++)
            x[i] = c.x[i];
        for (size_t i = 0; i < N; i++) {
            ck_assert_double_eq_tol(a->norm[i], c.norm[i], 2e-6 * c.norm[i]);
            ck_assert_double_eq_tol(a->gain[i], c.mag[i] / c.norm[i], 1e-5);
        }
        ql_linear_forward(&c.linear, m, c.x, K, c.y, N, c.h, NULL, c.work, c.workers);
        for (size_t t = 0; t < m; t++)
            for (size_t i = 0; i < N; i++)
                ck_assert_double_eq_tol(c.y[t * N + i], output(&c, x + t * K, i), 2e-5);
        for (size_t i = 0; i < c.set->count; i++)
            c.set->grad[i] = 10; /* gradients are added to what is there */
        for (size_t i = 0; i < m * K; i++)
            c.dx[i] = 3;
        ql_linear_backward(&c.linear, m, c.x, K, c.dy, N, c.h, c.dx, K, true, NULL, c.work, c.workers);
        for (size_t i = 0; i < R * K; i += m > 5 ? 23 : 1)
            ck_assert_double_eq_tol(a->grad_a[i] - 10, slope(&c, x, &c.a[i]), tolerance);
        for (size_t i = 0; i < N * R; i += m > 5 ? 7 : 1)
            ck_assert_double_eq_tol(a->grad_b[i] - 10, slope(&c, x, &c.b[i]), tolerance);
        for (size_t i = 0; i < N; i++)
            ck_assert_double_eq_tol(a->grad_m[i] - 10, slope(&c, x, &c.mag[i]), tolerance);
        for (size_t i = 0; i < m * K; i += m > 5 ? 1511 : 1)
            ck_assert_double_eq_tol(c.dx[i] - 3, slope(&c, x, &x[i]), tolerance);
        free(x);
        close_layer(&c);
    }
}
END_TEST

START_TEST(threads_do_not_matter)
{
    layer_case c[2];
    for (size_t i = 0; i < 2; i++) {
        open_layer(&c[i], formats[1], 300, 1 + 2 * i);
        ql_linear_forward(&c[i].linear, 300, c[i].x, K, c[i].y, N, c[i].h, NULL, c[i].work, c[i].workers);
        ql_linear_backward(&c[i].linear, 300, c[i].x, K, c[i].dy, N, c[i].h, c[i].dx, K, false, NULL, c[i].work,
                           c[i].workers);
    }
    ck_assert_mem_eq(c[0].y, c[1].y, 300 * N * sizeof(float));
    ck_assert_mem_eq(c[0].dx, c[1].dx, 300 * K * sizeof(float));
    ck_assert_mem_eq(c[0].set->grad, c[1].set->grad, c[0].set->count * sizeof(float));
    close_layer(&c[0]);
    close_layer(&c[1]);
}
END_TEST

/* With B = 0 and fresh magnitudes the base comes out; a merged row is its direction times its magnitude. */
START_TEST(merges_rows)
{
    layer_case c;
    float row[K], base[K];
    open_layer(&c, formats[1], 1, 1);
    for (size_t i = 0; i < N; i++) {
        ql_linear_merge_rows(&c.linear, i, 1, row, K);
        for (size_t j = 0; j < K; j++) {
            double v = c.w[i * K + j];
            for (size_t r = 0; r < R; r++)
                v += S * c.set->layer[0].master_b[i * R + r] * c.set->layer[0].master_a[r * K + j];
            ck_assert_double_eq_tol(row[j], v * c.mag[i] / c.norm[i], 2e-3); /* the norm is that of FP16 values here */
        }
    }
    ql_adapters_init(c.set, 1);
    ck_assert_ok(ql_dora_start(&c.linear, true, c.workers, &err), &err);
    for (size_t i = 0; i < N; i++) {
        ql_linear_merge_rows(&c.linear, i, 1, row, K);
        ql_weight_dequantize(c.base, i, 1, base, K);
        ck_assert_mem_eq(row, base, sizeof row);
    }
    close_layer(&c);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("dora");
    TCase *tc = tcase_create("dora");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, layer_against_double, 0, sizeof formats / sizeof *formats);
    tcase_add_test(tc, threads_do_not_matter);
    tcase_add_test(tc, merges_rows);
    suite_add_tcase(suite, tc);
    return test_run(suite);
}
