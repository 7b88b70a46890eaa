/* The gradient products of adapters, every kernel of the list and the one over emulated tiles: small whole numbers make
 * every sum exact, others stand beside double; arrays end at pages that fault; the same bits on any number of threads.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/half.h"
#include "base/rng.h"
#include "lora/dropout.h"
#include "lora/outer.h"
#include "matmul_case.h"
#include "support.h"

static const ql_outer_kernel *const kernels[] = {
#ifdef __x86_64__
    &ql_outer_amx_emulated,
#endif
    NULL,
};
enum { MOST_KERNELS = 16 };

/* The list of the library, then those for tests; NULL where there is none or the processor lacks it. */
static const ql_outer_kernel *kernel_at(int index)
{
    int listed = 0;
    while (ql_outer_kernels[listed])
        listed++;
    const ql_outer_kernel *kernel = NULL;
    if (index < listed)
        kernel = ql_outer_kernels[index];
    else if (index - listed < (int)(sizeof kernels / sizeof *kernels))
        kernel = kernels[index - listed];
    if (!kernel || !(kernel->cpu & ~ql_cpu_features()))
        return kernel;
    printf("skipped: outer kernel %s: not on this processor\n", kernel->name);
    return NULL;
}

typedef struct outer_case {
    ql_outer outer;
    guarded s, x, out;
    size_t count; /* floats of out */
    float *before;
} outer_case;

static float *fill(guarded *g, size_t count, bool low, bool whole, ql_rng *rng)
{
    *g = guarded_new(count * sizeof(float), low);
    float *x = (float *)(void *)g->data;
    for (size_t i = 0; i < count; i++)
        x[i] = whole ? (float)ql_rng_below(rng, 9) - 4 : 2 * ql_uniform(ql_rng_next(rng)) - 1;
    return x;
}

/* `turned`: rows of the result are columns, as of dB. */
static outer_case make_case(size_t m, size_t r, size_t cols, bool turned, bool low, bool whole)
{
    ql_rng rng = {.seed = m, .stream = r << 20 | cols};
    outer_case c = {.count = r * cols};
    size_t ldx = cols + (turned ? 0 : 3);
    c.outer = (ql_outer){.m = m, .r = r, .cols = cols, .ldx = ldx};
    c.outer.s = fill(&c.s, m * r, low, whole, &rng);
    c.outer.x = fill(&c.x, (m - 1) * ldx + cols, low, whole, &rng);
    c.outer.out = fill(&c.out, c.count, low, whole, &rng);
    c.outer.stride_i = turned ? 1 : cols;
    c.outer.stride_j = turned ? r : 1;
    c.before = malloc(c.count * sizeof *c.before);
    memcpy(c.before, c.outer.out, c.count * sizeof *c.before);
    return c;
}

static void free_case(outer_case *c)
{
    guarded_free(&c->s), guarded_free(&c->x), guarded_free(&c->out);
    free(c->before);
}

static float as_read(float x, bool bf16)
{
    return bf16 ? ql_bf16_to_f32(ql_f32_to_bf16(x)) : x;
}

/* One element in double from inputs as the kernel reads them, and the sum of the magnitudes. */
static double element(const outer_case *c, bool bf16, size_t i, size_t j, double *size)
{
    const ql_outer *o = &c->outer;
    double sum = c->before[i * o->stride_i + j * o->stride_j];
    *size = fabs(sum);
    for (size_t t = 0; t < o->m; t++) {
        float x = o->x[t * o->ldx + j];
        if (o->dropout) {
            float four[4] = {0}; /* columns of a mask begin at multiples of 4 */
            four[j % 4] = x;
            ql_dropout_apply(o->dropout, t, j / 4 * 4, 4, four, four);
            x = four[j % 4];
        }
        double term = (double)as_read(o->s[t * o->r + i], bf16) * (double)as_read(x, bf16);
        sum += term;
        *size += fabs(term);
    }
    return sum;
}

static const size_t tokens[] = {1, 2, 31, 32, 33, 257}, ranks[] = {1, 3, 8, 16, 17, 32, 70},
                    widths[] = {1, 15, 48, 66, 257};
enum { TOKENS = 6, RANKS = 7, WIDTHS = 5 };

START_TEST(whole_numbers_are_exact)
{
    const ql_outer_kernel *kernel = kernel_at(_i);
    for (size_t i = 0; kernel && i < TOKENS * RANKS * WIDTHS; i++) {
        size_t m = tokens[i % TOKENS], r = ranks[i / TOKENS % RANKS], cols = widths[i / TOKENS / RANKS];
        outer_case c = make_case(m, r, cols, i % 2, i / 2 % 2, true);
        ql_outer_run(kernel, &c.outer, 1, NULL);
        for (size_t row = 0; row < r; row++)
            for (size_t j = 0; j < cols; j++) {
                double size, want = element(&c, false, row, j, &size);
                float got = c.outer.out[row * c.outer.stride_i + j * c.outer.stride_j];
                ck_assert_msg((double)got == want, "%s: m %zu r %zu cols %zu: [%zu][%zu] is %g, not %g", kernel->name,
                              m, r, cols, row, j, (double)got, want);
            }
        free_case(&c);
    }
}
END_TEST

/* Two products at once, the second under dropout, on 1 to 3 threads. */
START_TEST(sums_stand_beside_double)
{
    enum { M = 300, R = 20 };
    const ql_outer_kernel *kernel = kernel_at(_i);
    if (!kernel)
        return;
    const ql_dropout dropout = {0.2f, 9, 3, 1};
    float *first[2] = {0};
    for (size_t threads = 1; threads <= 3; threads++) {
        ql_workers *workers;
        ck_assert_int_eq(ql_workers_create(&workers, threads, NULL), QL_OK);
        outer_case c[2] = {make_case(M, R, 333, true, false, false), make_case(M, R, 90, false, false, false)};
        c[1].outer.dropout = &dropout;
        ql_outer_run(kernel, (ql_outer[]){c[0].outer, c[1].outer}, 2, workers);
        for (size_t k = 0; k < 2; k++) {
            const ql_outer *o = &c[k].outer;
            for (size_t i = 0; i < o->r * o->cols && threads == 1; i++) {
                size_t row = i / o->cols, col = i % o->cols;
                double size, want = element(&c[k], kernel->bf16_inputs, row, col, &size);
                double off = o->out[row * o->stride_i + col * o->stride_j] - want;
                ck_assert_msg(fabs(off) <= size * (M + 2) * 0x1p-24, "%s: product %zu: [%zu][%zu] is %g off %g",
                              kernel->name, k, row, col, off, want);
            }
            if (threads == 1) {
                first[k] = malloc(c[k].count * sizeof(float));
                memcpy(first[k], o->out, c[k].count * sizeof(float));
            }
            ck_assert_mem_eq(first[k], o->out, c[k].count * sizeof(float));
            free_case(&c[k]);
        }
        ql_workers_destroy(workers);
    }
    free(first[0]), free(first[1]);
}
END_TEST

/* x in bf16 gives the bits of the same x in fp32. */
START_TEST(narrow_x_is_x)
{
    const ql_outer_kernel *kernel = kernel_at(_i);
    for (size_t i = 0; kernel && i < TOKENS * RANKS * WIDTHS; i++) {
        size_t m = tokens[i % TOKENS], r = ranks[i / TOKENS % RANKS], cols = widths[i / TOKENS / RANKS];
        bool turned = i % 2, low = i / 2 % 2;
        outer_case wide = make_case(m, r, cols, turned, low, false), c = make_case(m, r, cols, turned, low, false);
        size_t count = (m - 1) * c.outer.ldx + cols;
        guarded narrow = guarded_new(count * sizeof(uint16_t), low);
        uint16_t *bits = (uint16_t *)(void *)narrow.data;
        for (size_t j = 0; j < count; j++) {
            bits[j] = ql_f32_to_bf16(c.outer.x[j]);
            ((float *)(void *)wide.x.data)[j] = ql_bf16_to_f32(bits[j]);
        }
        c.outer.x = NULL;
        c.outer.narrow = bits;
        ql_outer_run(kernel, &wide.outer, 1, NULL);
        ql_outer_run(kernel, &c.outer, 1, NULL);
        ck_assert_mem_eq(wide.outer.out, c.outer.out, c.count * sizeof(float));
        free_case(&wide), free_case(&c);
        guarded_free(&narrow);
    }
}
END_TEST

START_TEST(nothing_rounds_unasked)
{
    for (uint32_t features = 0; features < 64; features++) {
        ck_assert(!ql_outer_select(features, false)->bf16_inputs);
        ck_assert_uint_eq(ql_outer_select(features, true)->cpu & ~features, 0);
    }
#ifdef __x86_64__
    uint32_t most = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_BF16 | QL_CPU_AMX_BF16;
    ck_assert_str_eq(ql_outer_select(most, true)->name, "amx");
    ck_assert_str_eq(ql_outer_select(most, false)->name, "avx512");
#endif
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("outer");
    TCase *tc = tcase_create("outer");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, whole_numbers_are_exact, 0, MOST_KERNELS);
    tcase_add_loop_test(tc, sums_stand_beside_double, 0, MOST_KERNELS);
    tcase_add_loop_test(tc, narrow_x_is_x, 0, MOST_KERNELS);
    tcase_add_test(tc, nothing_rounds_unasked);
    return test_run(suite);
}
