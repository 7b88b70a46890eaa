/* Layers that share x, by every kernel, against sums in double. Small integers leave no error at all. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cpu.h"
#include "base/half.h"
#include "chain_case.h"
#include "kern/kernels.h"
#include "matmul_case.h"
#include "qlora/lora.h"
#include "quant/weight.h"
#include "support.h"

enum { LAYERS = QL_LINEARS, K = 70, PAD = 3 };
static const size_t outputs[LAYERS] = {96, 33, 50}, ranks[LAYERS] = {5, 0, 40};

static const ql_matmul_kernel *kernel_at(size_t index)
{
    if (index < ql_matmul_kernel_count)
        return ql_matmul_kernels[index];
#ifdef __x86_64__
    if (index == ql_matmul_kernel_count + 1)
        return &ql_matmul_amx_emulated;
#endif
    return &chain_case_kernel;
}

/* The first and third layer have an adapter, the first a bias; arrays end where memory does. */
typedef struct group {
    size_t m;
    ql_weight *base[LAYERS];
    uint16_t *dense[LAYERS];
    ql_adapters *set;
    float bias[96];
    ql_linear layer[LAYERS];
    const ql_linear *layers[LAYERS];
    guarded x, dx, y[LAYERS], dy[LAYERS], h[LAYERS];
    float *work;
    ql_workers *workers;
} group;

static float *floats(guarded g)
{
    return (float *)(void *)g.data;
}

/* Integers of up to `most`, or anything below it. */
static void fill(float *x, size_t count, float most, bool exact, ql_rng *rng)
{
    for (size_t i = 0; i < count; i++)
        x[i] = exact ? (float)ql_rng_below(rng, (uint32_t)(2 * most) + 1) - most
                     : most * (2 * ql_uniform(ql_rng_next(rng)) - 1);
}

static guarded filled(size_t count, bool exact, ql_rng *rng)
{
    guarded g = guarded_new(count * sizeof(float), false);
    fill(floats(g), count, 2, exact, rng);
    return g;
}

static size_t span(size_t m, size_t width)
{
    return (m - 1) * (width + PAD) + width;
}

static void group_make(group *g, const ql_matmul_kernel *kernel, const ql_matmul_kernel *other, size_t m, bool exact,
                       size_t threads)
{
    ql_rng rng = {.seed = 71, .stream = m};
    *g = (group){.m = m};
    ql_adapter_shape shapes[2] = {{K, outputs[0], ranks[0], 0.5, false}, {K, outputs[2], ranks[2], 2, false}};
    ck_assert_int_eq(ql_adapters_create(&g->set, shapes, 2, true, NULL), QL_OK);
    float *start = malloc(g->set->count * sizeof *start);
    fill(start, g->set->count, 1, exact, &rng);
    ql_adapters_set(g->set, 0, g->set->count, start);
    fill(g->set->grad, g->set->count, 3, true, &rng); /* which the gradients are added to */
    free(start);
    fill(g->bias, 96, 3, exact, &rng);
    for (size_t i = 0; i < LAYERS; i++) {
        size_t n = outputs[i];
        float *w = malloc(n * K * sizeof *w);
        fill(w, n * K, 3, exact, &rng);
        g->dense[i] = malloc(n * K * sizeof(uint16_t));
        for (size_t j = 0; j < n * K; j++)
            g->dense[i][j] = ql_f32_to_f16(w[j]);
        free(w);
        ck_assert_int_eq(ql_weight_borrow(&g->base[i], g->dense[i], QL_F16, n, K, NULL), QL_OK);
        g->base[i]->kernel = i == 1 ? other : kernel;
        g->layer[i] = (ql_linear){g->base[i], i ? NULL : g->bias, i == 1 ? NULL : &g->set->layer[i / 2]};
        g->layers[i] = &g->layer[i];
        g->y[i] = filled(span(m, n), exact, &rng);
        g->dy[i] = filled(span(m, n), exact, &rng);
        g->h[i] = guarded_new(m * (ranks[i] + !ranks[i]) * sizeof(float), false);
    }
    g->x = filled(span(m, K), exact, &rng);
    g->dx = filled(span(m, K), exact, &rng);
    g->work = aligned_alloc(64, (ql_linears_work(g->layers, LAYERS, m, 0.25f) * sizeof(float) + 63) / 64 * 64 + 64);
    ck_assert_int_eq(ql_workers_create(&g->workers, threads, NULL), QL_OK);
    ck_assert_int_eq(ql_workers_reserve(g->workers, ql_linears_scratch(g->layers, LAYERS, m, threads), NULL), QL_OK);
}

static void group_free(group *g)
{
    for (size_t i = 0; i < LAYERS; i++) {
        ql_weight_destroy(g->base[i]);
        free(g->dense[i]);
        guarded_free(&g->y[i]);
        guarded_free(&g->dy[i]);
        guarded_free(&g->h[i]);
    }
    guarded_free(&g->x);
    guarded_free(&g->dx);
    ql_adapters_destroy(g->set);
    ql_workers_destroy(g->workers);
    free(g->work);
}

static void list(const group *g, const ql_dropout *dropout, ql_linear_use use[LAYERS])
{
    for (size_t i = 0; i < LAYERS; i++)
        use[i] = (ql_linear_use){.layer = &g->layer[i], .y = floats(g->y[i]), .dy = floats(g->dy[i]),
                                 .ldy = outputs[i] + PAD, .h = ranks[i] ? floats(g->h[i]) : NULL, .dropout = dropout};
}

static void run(group *g, const ql_dropout *dropout, bool add)
{
    ql_linear_use use[LAYERS];
    list(g, dropout, use);
    ql_linears_forward(use, LAYERS, g->m, floats(g->x), K + PAD, g->work, g->workers);
    ql_linears_backward(use, LAYERS, g->m, floats(g->x), K + PAD, floats(g->dx), K + PAD, add, g->work, g->workers);
}

/* ---- in double ---- */

static double weight_at(const group *g, size_t i, size_t row, size_t col)
{
    return (double)ql_f16_to_f32(g->dense[i][row * K + col]);
}

/* W + s B A, whose products are those of the layer. */
static double whole_at(const group *g, size_t i, size_t row, size_t col)
{
    const ql_adapter *a = g->layer[i].adapter;
    double sum = 0;
    for (size_t r = 0; a && r < a->r; r++)
        sum += (double)ql_f16_to_f32(a->b[row * a->r + r]) * (double)ql_f16_to_f32(a->a[r * K + col]);
    return weight_at(g, i, row, col) + (a ? (double)a->scaling * sum : 0);
}

static void check_forward(const group *g, const char *name)
{
    for (size_t i = 0; i < LAYERS; i++)
        for (size_t o = 0; o < outputs[i]; o++) {
            double w[K];
            for (size_t j = 0; j < K; j++)
                w[j] = whole_at(g, i, o, j);
            for (size_t t = 0; t < g->m; t++) {
                double y = g->layer[i].bias ? (double)g->bias[o] : 0, got = (double)floats(g->y[i])[t * (outputs[i] + PAD) + o];
                for (size_t j = 0; j < K; j++)
                    y += (double)floats(g->x)[t * (K + PAD) + j] * w[j];
                if (got != y)
                    ck_abort_msg("%s, m %zu: y of layer %zu [%zu][%zu] is %g, not %g", name, g->m, i, t, o, got, y);
            }
        }
}

static void check_dx(const group *g, const float *before, const char *name)
{
    for (size_t j = 0; j < K; j++) {
        double w[LAYERS][96];
        for (size_t i = 0; i < LAYERS; i++)
            for (size_t o = 0; o < outputs[i]; o++)
                w[i][o] = whole_at(g, i, o, j);
        for (size_t t = 0; t < g->m; t++) {
            double dx = before ? (double)before[t * (K + PAD) + j] : 0, got = (double)floats(g->dx)[t * (K + PAD) + j];
            for (size_t i = 0; i < LAYERS; i++)
                for (size_t o = 0; o < outputs[i]; o++)
                    dx += (double)floats(g->dy[i])[t * (outputs[i] + PAD) + o] * w[i][o];
            if (got != dx)
                ck_abort_msg("%s, m %zu: dx [%zu][%zu] is %g, not %g", name, g->m, t, j, got, dx);
        }
    }
}

/* Element (r, c) of what is added to the gradient of A, or of B turned: the sum over tokens of the layer's dh or h
 * beside x or dy. */
static double gradient_at(const group *g, size_t i, bool of_a, size_t r, size_t c)
{
    const ql_adapter *a = g->layer[i].adapter;
    double sum = 0;
    for (size_t t = 0; t < g->m; t++) {
        const float *x = floats(g->x) + t * (K + PAD), *dy = floats(g->dy[i]) + t * (outputs[i] + PAD);
        double low = 0;
        for (size_t l = 0; l < (of_a ? a->n : K); l++)
            low += of_a ? (double)dy[l] * (double)ql_f16_to_f32(a->b[l * a->r + r])
                        : (double)x[l] * (double)ql_f16_to_f32(a->a[r * K + l]);
        sum += (double)a->scaling * low * (double)(of_a ? x[c] : dy[c]);
    }
    return sum;
}

static void check_gradients(const group *g, const float *before, const char *name)
{
    for (size_t i = 0; i < LAYERS; i += 2) {
        const ql_adapter *a = g->layer[i].adapter;
        for (size_t e = 0; e < a->count; e += 3) {
            bool of_a = e < a->r * K;
            size_t at = e - a->r * K, r = of_a ? e / K : at % a->r, c = of_a ? e % K : at / a->r;
            double wanted = (double)before[a->offset + e] + gradient_at(g, i, of_a, r, c);
            double got = (double)g->set->grad[a->offset + e];
            if (got != wanted)
                ck_abort_msg("%s, m %zu: gradient %zu of layer %zu is %g, not %g", name, g->m, e, i, got, wanted);
        }
    }
}

static const ql_matmul_kernel *runnable_at(int index)
{
    const ql_matmul_kernel *kernel = kernel_at((size_t)index);
    uint16_t none = 0;
    ql_wview dense = {.format = {QL_CODE_F16, QL_SCALE_NONE, 0, false}, .n = 1, .k = 1, .codes = &none};
    if (!(kernel->cpu & ~ql_cpu_features()) && kernel->accepts(&dense))
        return kernel;
    printf("skipped: kernel %s: not on this processor, or not for dense weights\n", kernel->name);
    return NULL;
}

START_TEST(group_is_right)
{
    static const size_t tokens[] = {1, 4, 15, 16, 37, 130};
    const ql_matmul_kernel *kernel = runnable_at(_i);
    for (size_t i = 0; i < 12 && kernel; i++) {
        group g;
        const ql_matmul_kernel *other = i % 4 ? kernel : &ql_matmul_portable; /* as of a layer that was left in fp32 */
        group_make(&g, kernel, other, tokens[i / 2], true, 2);
        float *grad = malloc(g.set->count * sizeof *grad), *dx = malloc(span(g.m, K) * sizeof *dx);
        memcpy(grad, g.set->grad, g.set->count * sizeof *grad);
        memcpy(dx, floats(g.dx), span(g.m, K) * sizeof *dx);
        run(&g, NULL, i & 1);
        check_forward(&g, kernel->name);
        check_dx(&g, i & 1 ? dx : NULL, kernel->name);
        check_gradients(&g, grad, kernel->name);
        free(grad);
        free(dx);
        group_free(&g);
    }
}
END_TEST

static void check_same(const group *a, const group *b, const char *name)
{
    for (size_t i = 0; i < LAYERS; i++) {
        ck_assert_msg(!memcmp(a->y[i].data, b->y[i].data, span(a->m, outputs[i]) * sizeof(float)), "%s: y %zu", name, i);
        ck_assert_msg(!memcmp(a->h[i].data, b->h[i].data, a->m * ranks[i] * sizeof(float)), "%s: h %zu", name, i);
    }
    ck_assert_msg(!memcmp(a->dx.data, b->dx.data, span(a->m, K) * sizeof(float)), "%s: dx", name);
    ck_assert_msg(!memcmp(a->set->grad, b->set->grad, a->set->count * sizeof(float)), "%s: gradients", name);
}

START_TEST(threads_do_not_change_a_bit)
{
    static const size_t tokens[] = {3, 16, 130};
    const ql_dropout dropout = {.p = 0.25f, .seed = 5, .step = 1, .layer = 2};
    const ql_matmul_kernel *kernel = runnable_at(_i);
    for (size_t i = 0; i < 6 && kernel; i++) {
        group one, other;
        group_make(&one, kernel, kernel, tokens[i / 2], false, 1);
        run(&one, i & 1 ? &dropout : NULL, false);
        for (size_t threads = 2; threads <= 3; threads++) {
            group_make(&other, kernel, kernel, tokens[i / 2], false, threads);
            run(&other, i & 1 ? &dropout : NULL, false);
            check_same(&one, &other, kernel->name);
            group_free(&other);
        }
        group_free(&one);
    }
}
END_TEST

/* Each layer's y, h and gradients are those of the layer alone, to the bit, and dx is their sum. */
START_TEST(group_is_its_layers)
{
    const ql_dropout dropout = {.p = 0.25f, .seed = 5, .step = 1, .layer = 2};
    const ql_matmul_kernel *kernel = runnable_at(_i);
    for (size_t i = 0; i < 4 && kernel; i++) {
        group together, apart;
        size_t m = i < 2 ? 40 : 5;
        const ql_dropout *drop = i & 1 ? &dropout : NULL;
        group_make(&together, kernel, kernel, m, false, 2);
        group_make(&apart, kernel, kernel, m, false, 2);
        run(&together, drop, false);
        for (size_t l = 0; l < LAYERS; l++) {
            size_t ld = outputs[l] + PAD;
            float *h = ranks[l] ? floats(apart.h[l]) : NULL, *x = floats(apart.x);
            ql_linear_forward(&apart.layer[l], m, x, K + PAD, floats(apart.y[l]), ld, h, drop, apart.work, apart.workers);
            ql_linear_backward(&apart.layer[l], m, x, K + PAD, floats(apart.dy[l]), ld, h, floats(apart.dx), K + PAD,
                               l > 0, drop, apart.work, apart.workers);
        }
        for (size_t j = 0; j < span(m, K); j++) {
            ck_assert_float_eq_tol(floats(together.dx)[j], floats(apart.dx)[j], (kernel->bf16_inputs ? 0.5f : 1e-3f));
            floats(apart.dx)[j] = floats(together.dx)[j];
        }
        check_same(&together, &apart, kernel->name);
        group_free(&together);
        group_free(&apart);
    }
}
END_TEST

/* Rounds to what bf16 holds, and gives it as that. */
static uint16_t *rounded(float *x, size_t count)
{
    uint16_t *narrow = malloc(count * sizeof *narrow);
    for (size_t i = 0; i < count; i++) {
        narrow[i] = ql_f32_to_bf16(x[i]);
        x[i] = ql_bf16_to_f32(narrow[i]);
    }
    return narrow;
}

/* x in bf16, and dy of some layers, give the bits of the same numbers in fp32. */
START_TEST(bf16_is_its_fp32)
{
    const ql_matmul_kernel *kernel = runnable_at(_i);
    static const size_t tokens[] = {5, 16, 67};
    for (size_t i = 0; i < 3 && kernel; i++) {
        group wide, narrow;
        group_make(&wide, kernel, kernel, tokens[i], false, 2);
        group_make(&narrow, kernel, kernel, tokens[i], false, 2);
        if (ql_linears_take_bf16(narrow.layers, LAYERS, tokens[i])) {
            ql_linear_use use[LAYERS];
            uint16_t *dy[LAYERS], *x = rounded(floats(wide.x), span(wide.m, K));
            list(&narrow, NULL, use);
            for (size_t l = 0; l < LAYERS; l++) {
                dy[l] = rounded(floats(wide.dy[l]), span(wide.m, outputs[l]));
                memcpy(narrow.dy[l].data, wide.dy[l].data, span(wide.m, outputs[l]) * sizeof(float));
                if (l)
                    use[l].dy = NULL, use[l].narrow_dy = dy[l];
            }
            run(&wide, NULL, false);
            ql_linears_forward_bf16(use, LAYERS, narrow.m, x, K + PAD, narrow.work, narrow.workers);
            ql_linears_backward_bf16(use, LAYERS, narrow.m, x, K + PAD, floats(narrow.dx), K + PAD, false, narrow.work,
                                     narrow.workers);
            check_same(&wide, &narrow, kernel->name);
            free(x), free(dy[0]), free(dy[1]), free(dy[2]);
        } else {
            ck_assert(tokens[i] < 16 || !kernel->reads_narrow);
        }
        group_free(&wide);
        group_free(&narrow);
    }
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("linears");
    int kernels = (int)ql_matmul_kernel_count + 1;
#ifdef __x86_64__
    kernels++;
#endif
    tcase_set_timeout(tcase, 300);
    tcase_add_loop_test(tcase, group_is_right, 0, kernels);
    tcase_add_loop_test(tcase, threads_do_not_change_a_bit, 0, kernels);
    tcase_add_loop_test(tcase, group_is_its_layers, 0, kernels);
    tcase_add_loop_test(tcase, bf16_is_its_fp32, 0, kernels);
    Suite *suite = suite_create("linears");
    suite_add_tcase(suite, tcase);
    return test_run(suite);
}
