/* LoRA layers: forward and backward against an independent double implementation and its central differences, dropout
 * against Philox itself, threads bit for bit. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/half.h"
#include "base/rng.h"
#include "lora/dropout.h"
#include "qlora/lora.h"
#include "lora_support.h"
#include "support.h"

/* ---- dropout ---- */

/* The mask by its definition: 32 bits of Philox against p. */
static double mask_at(const ql_dropout *d, size_t row, size_t col)
{
    if (!d)
        return 1;
    uint32_t word[4];
    ql_philox(d->seed, (uint64_t)3 << 62 | d->step << 24 | d->layer, (uint64_t)row << 32 | col / 4, word);
    return word[col % 4] >= (double)d->p * 0x1p32 ? 1 / (1 - (double)d->p) : 0;
}

START_TEST(dropout_is_philox)
{
    enum { K = 1003 };
    const ql_dropout drops[] = {{0.3f, 7, 5, 9}, {0.3f, 7, 6, 9}, {0.3f, 7, 5, 10}, {0.3f, 8, 5, 9}, {0.05f, 7, 5, 9}};
    float *x = numbers(K, 2), y[K], part[K];
    for (size_t d = 0; d < 5; d++) {
        size_t kept = 0;
        for (size_t row = 0; row < 50; row++) {
            ql_dropout_apply(&drops[d], row, 0, K, x, y);
            for (size_t j = 0; j < K; j++) {
                ck_assert_float_eq_tol(y[j], x[j] * mask_at(&drops[d], row, j), 1e-6f);
                kept += y[j] != 0;
            }
            ql_dropout_apply(&drops[d], row, 48, 100, x + 48, part);
            ck_assert_mem_eq(part, y + 48, 100 * sizeof *part);
        }
        ck_assert_double_eq_tol((double)kept / (50 * K), 1 - drops[d].p, 0.01);
    }
    x[0] = INFINITY; /* a dropped infinity is 0, not NaN */
    for (size_t row = 0; row < 20; row++) {
        ql_dropout_apply(&drops[0], row, 0, 1, x, y);
        ck_assert(!isnan(y[0]));
    }
    free(x);
}
END_TEST

/* ---- the layer ---- */

typedef struct fixture {
    size_t m, n, k, r;
    ql_weight *base;
    ql_adapters *set;
    ql_workers *workers;
    ql_linear layer;
    float *bias, *x, *target, *y, *dy, *h, *dx, *work;
    size_t ldx, ldy;
} fixture;

static fixture setup(ql_format format, size_t m, size_t n, size_t k, size_t r, bool bias, size_t threads)
{
    fixture f = {.m = m, .n = n, .k = k, .r = r, .ldx = k + 3, .ldy = n + 5};
    f.base = quantized(format, n, k);
    ck_assert_int_eq(ql_adapters_create(&f.set, &(ql_adapter_shape){k, n, r, 0.75, false}, 1, true, NULL), QL_OK);
    float *start = numbers(f.set->count, 3);
    ql_adapters_set(f.set, 0, f.set->count, start);
    free(start);
    f.bias = bias ? numbers(n, 4) : NULL;
    f.layer = (ql_linear){f.base, f.bias, &f.set->layer[0]};
    f.x = numbers(m * f.ldx, 5);
    f.target = numbers(m * f.ldy, 6);
    f.y = numbers(m * f.ldy, 7);
    f.dy = numbers(m * f.ldy, 8);
    f.dx = numbers(m * f.ldx, 9);
    f.h = malloc(m * r * sizeof *f.h);
    f.work = malloc(ql_linear_work(&f.layer, m, 0.5f) * sizeof *f.work);
    ck_assert_int_eq(ql_workers_create(&f.workers, threads, NULL), QL_OK);
    ck_assert_int_eq(ql_workers_reserve(f.workers, ql_linear_scratch(&f.layer, m, threads), NULL), QL_OK);
    return f;
}

static void teardown(fixture *f)
{
    float *const arrays[] = {f->bias, f->x, f->target, f->y, f->dy, f->h, f->dx, f->work};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        free(arrays[i]);
    ql_workers_destroy(f->workers);
    ql_adapters_destroy(f->set);
    ql_weight_destroy(f->base);
}

/* Forward and backward of the loss sum (y - target)^2 / 2. */
static void run(fixture *f, bool add, const ql_dropout *drop)
{
    ql_linear_forward(&f->layer, f->m, f->x, f->ldx, f->y, f->ldy, f->h, drop, f->work, f->workers);
    for (size_t i = 0; i < f->m * f->ldy; i++)
        f->dy[i] = f->y[i] - f->target[i];
    ql_linear_backward(&f->layer, f->m, f->x, f->ldx, f->dy, f->ldy, f->h, f->dx, f->ldx, add, drop, f->work,
                       f->workers);
}

/* The layer in double, from its dequantized weight and fp16 values; y and the loss. */
typedef struct reference {
    const fixture *f;
    const ql_dropout *drop;
    double *w, *x, *a, *b, *y;
} reference;

static double *doubles(const float *src, size_t count)
{
    double *d = malloc(count * sizeof *d);
    for (size_t i = 0; i < count; i++)
        d[i] = src ? src[i] : 0;
    return d;
}

static reference reference_of(const fixture *f, const ql_dropout *drop)
{
    reference ref = {.f = f, .drop = drop};
    float *w = malloc(f->n * f->k * sizeof *w);
    ql_weight_dequantize(f->base, 0, f->n, w, f->k);
    ref.w = doubles(w, f->n * f->k);
    free(w);
    ref.x = doubles(f->x, f->m * f->ldx);
    ref.a = doubles(NULL, f->r * f->k);
    ref.b = doubles(NULL, f->n * f->r);
    ref.y = doubles(NULL, f->m * f->n);
    for (size_t i = 0; i < f->r * f->k; i++)
        ref.a[i] = ql_f16_to_f32(f->set->value[i]);
    for (size_t i = 0; i < f->n * f->r; i++)
        ref.b[i] = ql_f16_to_f32(f->set->value[f->r * f->k + i]);
    return ref;
}

static void reference_free(reference *ref)
{
    double *const arrays[] = {ref->w, ref->x, ref->a, ref->b, ref->y};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        free(arrays[i]);
}

static double reference_loss(reference *ref)
{
    const fixture *f = ref->f;
    double loss = 0, low[8];
    for (size_t t = 0; t < f->m; t++) {
        for (size_t i = 0; i < f->r; i++) {
            low[i] = 0;
            for (size_t j = 0; j < f->k; j++)
                low[i] += ref->a[i * f->k + j] * ref->x[t * f->ldx + j] * mask_at(ref->drop, t, j);
        }
        for (size_t o = 0; o < f->n; o++) {
            double y = f->bias ? f->bias[o] : 0;
            for (size_t j = 0; j < f->k; j++)
                y += ref->w[o * f->k + j] * ref->x[t * f->ldx + j];
            for (size_t i = 0; i < f->r; i++)
                y += 0.75 * ref->b[o * f->r + i] * low[i];
            ref->y[t * f->n + o] = y;
            loss += (y - f->target[t * f->ldy + o]) * (y - f->target[t * f->ldy + o]) / 2;
        }
    }
    return loss;
}

/* The loss is quadratic in each variable alone, so a central difference is exact but for rounding. */
static double slope(reference *ref, double *variable)
{
    const double step = 1.0 / 1024;
    double at = *variable, up, down;
    *variable = at + step, up = reference_loss(ref);
    *variable = at - step, down = reference_loss(ref);
    *variable = at;
    return (up - down) / (2 * step);
}

static const ql_format layer_formats[] = {
    {QL_CODE_F32, QL_SCALE_NONE, 0, false}, {QL_CODE_F16, QL_SCALE_NONE, 0, false},
    {QL_CODE_BF16, QL_SCALE_NONE, 0, false}, {QL_CODE_INT8, QL_SCALE_DQ, 64, false},
    {QL_CODE_INT4, QL_SCALE_F16, 32, false}, {QL_CODE_NF4, QL_SCALE_DQ, 64, false},
    {QL_CODE_FP4, QL_SCALE_DQ, 128, false}};
enum { LAYER_FORMATS = sizeof layer_formats / sizeof *layer_formats };

static void check_against_reference(fixture *f, bool add, const ql_dropout *drop)
{
    float *old_dx = malloc(f->m * f->ldx * sizeof *old_dx);
    memcpy(old_dx, f->dx, f->m * f->ldx * sizeof *old_dx);
    for (size_t i = 0; i < f->set->count; i++)
        f->set->grad[i] = 100; /* gradients are added to what is there */
    run(f, add, drop);
    reference ref = reference_of(f, drop);
    reference_loss(&ref);
    for (size_t t = 0; t < f->m; t++)
        for (size_t o = 0; o < f->n; o++)
            ck_assert_double_eq_tol(f->y[t * f->ldy + o], ref.y[t * f->n + o], 2e-5);
    for (size_t i = 0; i < f->r * f->k; i++)
        ck_assert_double_eq_tol(f->set->layer[0].grad_a[i] - 100.0, slope(&ref, &ref.a[i]), 1e-3);
    for (size_t i = 0; i < f->n * f->r; i++)
        ck_assert_double_eq_tol(f->set->layer[0].grad_b[i] - 100.0, slope(&ref, &ref.b[i]), 1e-3);
    for (size_t t = 0; t < f->m; t++)
        for (size_t j = 0; j < f->ldx; j++) {
            size_t i = t * f->ldx + j;
            double expected = j >= f->k ? old_dx[i] : slope(&ref, &ref.x[i]) + (add ? old_dx[i] : 0);
            ck_assert_double_eq_tol(f->dx[i], expected, 1e-3);
        }
    reference_free(&ref);
    free(old_dx);
}

/* _i: format, then bias, add and dropout as bits. */
START_TEST(layer_against_double)
{
    fixture f = setup(layer_formats[_i / 8], 5, 9, 70, 3, _i & 1, 2);
    const ql_dropout drop = {0.4f, 1234, 17, 3};
    check_against_reference(&f, _i & 2, _i & 4 ? &drop : NULL);
    teardown(&f);
}
END_TEST

/* h and dx (added to what was there) of one token, in double. */
static void check_token(const fixture *f, const float *old_dx, size_t t, const ql_dropout *drop)
{
    const ql_adapter *a = &f->set->layer[0];
    float *w = malloc(f->n * f->k * sizeof *w);
    double *dh = calloc(f->r, sizeof *dh);
    ql_weight_dequantize(f->base, 0, f->n, w, f->k);
    for (size_t i = 0; i < f->r; i++) {
        double h = 0;
        for (size_t j = 0; j < f->k; j++)
            h += 0.75 * ql_f16_to_f32(a->a[i * f->k + j]) * f->x[t * f->ldx + j] * mask_at(drop, t, j);
        ck_assert_double_eq_tol(f->h[t * f->r + i], h, 1e-4);
        for (size_t o = 0; o < f->n; o++)
            dh[i] += 0.75 * f->dy[t * f->ldy + o] * ql_f16_to_f32(a->b[o * f->r + i]);
    }
    for (size_t j = 0; j < f->k; j++) {
        double dx = old_dx[t * f->ldx + j], low = 0;
        for (size_t o = 0; o < f->n; o++)
            dx += (double)f->dy[t * f->ldy + o] * w[o * f->k + j];
        for (size_t i = 0; i < f->r; i++)
            low += dh[i] * ql_f16_to_f32(a->a[i * f->k + j]);
        dx += low * mask_at(drop, t, j);
        ck_assert_double_eq_tol(f->dx[t * f->ldx + j], dx, 2e-5 * (30 + fabs(dx)));
    }
    free(dh);
    free(w);
}

/* More tokens than one piece of dropout(x), more ranks than one rectangle of a gradient. */
START_TEST(threads_do_not_change_a_bit)
{
    const ql_dropout drop = {_i ? 0.1f : 0, 99, 1, 2};
    fixture f[3];
    for (size_t t = 0; t < 3; t++) {
        f[t] = setup(layer_formats[5], 150, 131, 210, 70, true, t + 1);
        run(&f[t], true, &drop);
        ck_assert_mem_eq(f[t].y, f[0].y, f[0].m * f[0].ldy * sizeof(float));
        ck_assert_mem_eq(f[t].h, f[0].h, f[0].m * f[0].r * sizeof(float));
        ck_assert_mem_eq(f[t].dx, f[0].dx, f[0].m * f[0].ldx * sizeof(float));
        ck_assert_mem_eq(f[t].set->grad, f[0].set->grad, f[0].set->count * sizeof(float));
    }
    float *old_dx = numbers(f[0].m * f[0].ldx, 9); /* as setup() filled dx */
    for (size_t t = 0; t < f[0].m; t += 149)
        check_token(&f[0], old_dx, t, _i ? &drop : NULL);
    free(old_dx);
    /* The gradients of so many tokens and ranks, in double, from the layer's own h and dy. */
    const ql_adapter *a = &f[0].set->layer[0];
    for (size_t o = 0; o < f[0].n; o += 13)
        for (size_t i = 0; i < f[0].r; i++) {
            double sum = 0;
            for (size_t t = 0; t < f[0].m; t++)
                sum += (double)f[0].dy[t * f[0].ldy + o] * f[0].h[t * f[0].r + i];
            ck_assert_double_eq_tol(a->grad_b[o * a->r + i], sum, 1e-5 * (1 + fabs(sum)) * 30);
        }
    for (size_t j = 0; j < f[0].k; j += 11)
        for (size_t i = 0; i < f[0].r; i += 3) {
            double sum = 0;
            for (size_t t = 0; t < f[0].m; t++) {
                double dh = 0;
                for (size_t o = 0; o < f[0].n; o++)
                    dh += (double)f[0].dy[t * f[0].ldy + o] * ql_f16_to_f32(a->b[o * a->r + i]);
                sum += 0.75 * dh * f[0].x[t * f[0].ldx + j] * mask_at(_i ? &drop : NULL, t, j);
            }
            ck_assert_double_eq_tol(a->grad_a[i * a->k + j], sum, 1e-5 * (1 + fabs(sum)) * 30);
        }
    for (size_t t = 0; t < 3; t++)
        teardown(&f[t]);
}
END_TEST

START_TEST(layer_without_adapter_or_gradient)
{
    fixture f = setup(layer_formats[0], 4, 6, 10, 2, false, 1);
    ql_linear bare = {f.base, NULL, NULL};
    ck_assert_uint_eq(ql_linear_work(&bare, 4, 0.5f), 0);
    ql_linear_forward(&bare, 4, f.x, f.ldx, f.y, f.ldy, NULL, NULL, NULL, f.workers);
    float *w = malloc(6 * 10 * sizeof *w);
    ql_weight_dequantize(f.base, 0, 6, w, 10);
    for (size_t t = 0; t < 4; t++)
        for (size_t o = 0; o < 6; o++) {
            double y = 0;
            for (size_t j = 0; j < 10; j++)
                y += (double)w[o * 10 + j] * f.x[t * f.ldx + j];
            ck_assert_double_eq_tol(f.y[t * f.ldy + o], y, 1e-5);
        }
    free(w);
    ql_linear_backward(&bare, 4, f.x, f.ldx, f.dy, f.ldy, NULL, f.dx, f.ldx, false, NULL, NULL, f.workers);

    /* dx is not wanted: the gradients are the same as with it. */
    ql_linear_forward(&f.layer, 4, f.x, f.ldx, f.y, f.ldy, f.h, NULL, f.work, f.workers);
    float with[2 * 16];
    for (int pass = 0; pass < 2; pass++) {
        ql_adapters_zero_grad(f.set, NULL);
        ql_linear_backward(&f.layer, 4, f.x, f.ldx, f.dy, f.ldy, f.h, pass ? NULL : f.dx, f.ldx, false, NULL, f.work,
                           f.workers);
        if (pass == 0)
            memcpy(with, f.set->grad, sizeof with);
    }
    ck_assert_mem_eq(with, f.set->grad, sizeof with);
    teardown(&f);
}
END_TEST

START_TEST(merge_is_base_plus_product)
{
    fixture f = setup(layer_formats[5], 1, 9, 70, 3, false, 1);
    float w[4 * 70], merged[4 * 72];
    ql_weight_dequantize(f.base, 3, 4, w, 70);
    ql_linear_merge_rows(&f.layer, 3, 4, merged, 72);
    const ql_adapter *a = &f.set->layer[0];
    for (size_t o = 0; o < 4; o++)
        for (size_t j = 0; j < 70; j++) {
            double sum = w[o * 70 + j];
            for (size_t i = 0; i < 3; i++)
                sum += 0.75 * a->master_b[(o + 3) * 3 + i] * a->master_a[i * 70 + j];
            ck_assert_double_eq_tol(merged[o * 72 + j], sum, 1e-6);
        }
    teardown(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("lora");
    TCase *tc = tcase_create("lora");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, dropout_is_philox);
    tcase_add_loop_test(tc, layer_against_double, 0, 8 * LAYER_FORMATS);
    tcase_add_loop_test(tc, threads_do_not_change_a_bit, 0, 2);
    tcase_add_test(tc, layer_without_adapter_or_gradient);
    tcase_add_test(tc, merge_is_base_plus_product);
    return test_run(suite);
}
