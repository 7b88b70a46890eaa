/* Batches of chained products against the same products one after another, by every kernel of the list. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cpu.h"
#include "base/workers.h"
#include "chain_case.h"
#include "kern/kernels.h"
#include "matmul_case.h"
#include "quant/matmul.h"
#include "support.h"

enum { MORE = 3 };

/* The list, and after it what only tests run. */
static const ql_matmul_kernel *kernel_at(size_t index)
{
    if (index < ql_matmul_kernel_count)
        return ql_matmul_kernels[index];
    if (index == ql_matmul_kernel_count)
        return &chain_case_kernel;
#ifdef __x86_64__
    return index == ql_matmul_kernel_count + 1 ? &ql_matmul_amx_emulated : &ql_matmul_amx_int8_emulated;
#else
    return NULL;
#endif
}

static bool runnable(const ql_matmul_kernel *kernel)
{
    return kernel && (kernel->cpu & ~ql_cpu_features()) == 0;
}

/* ---- a batch: three chains; x is shared by the first products of all, and each has a thin second one ---- */

enum { CHAINS = 3, IN = 97, RANK = 5, THREADS = 3 };

typedef struct setup {
    const ql_matmul_kernel *kernel, *second; /* of the first and second product of a chain */
    bool transposed, add, exact, shared;
    size_t m, outputs[CHAINS];
} setup;

typedef struct work {
    setup s;
    weight_case w[CHAINS][2];
    guarded x[CHAINS][2], y[CHAINS];
    ql_product p[CHAINS][2];
    ql_chain chain[CHAINS];
    size_t seen[CHAINS]; /* elements that `then` was told of */
    float *before[CHAINS];
} work;

static void count_tile(const void *self, ql_tile t)
{
    size_t *seen = (size_t *)(uintptr_t)self;
#pragma omp atomic
    *seen += t.rows * t.cols;
}

static guarded random_x(size_t floats, bool exact, ql_rng *rng)
{
    guarded x = guarded_new(floats * sizeof(float), false);
    for (size_t i = 0; i < floats; i++)
        ((float *)(void *)x.data)[i] = exact ? (float)ql_rng_below(rng, 9) - 4 : ql_uniform(ql_rng_next(rng)) - 0.5f;
    return x;
}

static size_t floats_of_y(const work *w, size_t chain)
{
    return (w->s.m - 1) * w->p[chain][0].ldy + w->s.outputs[chain];
}

static void work_make(work *w, setup s, ql_rng *rng)
{
    static const ql_format formats[CHAINS] = {{QL_CODE_NF4, QL_SCALE_DQ, 64, false},
                                              {QL_CODE_NF4, QL_SCALE_DQ, 64, false},
                                              {QL_CODE_INT8, QL_SCALE_F16, 64, false}};
    *w = (work){.s = s};
    for (size_t i = 0; i < CHAINS; i++) {
        for (size_t j = 0; j < 2; j++) {
            ql_format format = j ? (ql_format){QL_CODE_F16, QL_SCALE_NONE, 0, false} : formats[i];
            size_t inputs = j ? RANK : IN, outputs = s.outputs[i];
            weight_case_make(&w->w[i][j], format, s.transposed ? inputs : outputs, s.transposed ? outputs : inputs,
                             s.exact, false, rng);
            ql_product *p = &w->p[i][j];
            *p = (ql_product){.w = &w->w[i][j].view, .transposed = s.transposed, .m = s.m, .ldx = inputs + 2,
                              .kernel = j ? s.second : s.kernel};
            if (!p->kernel->accepts(p->w))
                p->kernel = &ql_matmul_portable;
            if (j || i == 0 || !s.shared)
                w->x[i][j] = random_x((s.m - 1) * p->ldx + inputs, s.exact, rng);
            p->x = (const float *)(const void *)(j || !s.shared ? w->x[i][j].data : w->x[0][0].data);
        }
        ql_product *p = w->p[i];
        p->ldy = s.outputs[i] + 3, p->add = s.add, p->next = p + 1;
        w->y[i] = random_x(floats_of_y(w, i), true, rng);
        p->y = (float *)(void *)w->y[i].data;
        w->before[i] = malloc(floats_of_y(w, i) * sizeof(float));
        memcpy(w->before[i], p->y, floats_of_y(w, i) * sizeof(float));
        w->chain[i] = (ql_chain){p, {count_tile, &w->seen[i]}};
    }
}

static void restore(work *w)
{
    for (size_t i = 0; i < CHAINS; i++)
        memcpy(w->p[i][0].y, w->before[i], floats_of_y(w, i) * sizeof(float));
}

static void work_free(work *w)
{
    for (size_t i = 0; i < CHAINS; i++) {
        free(w->before[i]);
        guarded_free(&w->y[i]);
        for (size_t j = 0; j < 2; j++) {
            guarded_free(&w->x[i][j]);
            weight_case_free(&w->w[i][j]);
        }
    }
}

static void run_chains(work *w, size_t first, size_t count, size_t threads)
{
    ql_workers *workers;
    ck_assert_int_eq(ql_workers_create(&workers, threads, NULL), QL_OK);
    ql_scratch need = ql_batch_scratch(w->chain + first, count, &(ql_packs){0}, threads);
    ck_assert_int_eq(ql_workers_reserve(workers, need, NULL), QL_OK);
    ql_packs packs = {0};
    ql_batch_run(w->chain + first, count, &packs, workers);
    ck_assert_uint_le(packs.bytes, need.shared);
    ql_workers_destroy(workers);
}

/* Product after product, each by a call of its own. */
static void run_apart(work *w)
{
    ql_workers *workers;
    ck_assert_int_eq(ql_workers_create(&workers, 1, NULL), QL_OK);
    for (size_t i = 0; i < CHAINS; i++)
        for (size_t j = 0; j < 2; j++) {
            ql_product p = w->p[i][j];
            p.y = w->p[i][0].y, p.ldy = w->p[i][0].ldy, p.add = j || w->s.add;
            ck_assert_int_eq(ql_workers_reserve(workers, ql_product_scratch(p.kernel, &p, 1), NULL), QL_OK);
            ql_product_run(p.kernel, &p, workers);
        }
    ql_workers_destroy(workers);
}

static float *copy_of_y(const work *w, size_t chain)
{
    float *copy = malloc(floats_of_y(w, chain) * sizeof(float));
    memcpy(copy, w->p[chain][0].y, floats_of_y(w, chain) * sizeof(float));
    return copy;
}

static void check_same(const work *w, size_t chain, const float *wanted, const char *what)
{
    ck_assert_msg(memcmp(wanted, w->p[chain][0].y, floats_of_y(w, chain) * sizeof(float)) == 0,
                  "%s and %s: %s, chain %zu, m %zu%s", w->s.kernel->name, w->s.second->name, what, chain, w->s.m,
                  w->s.transposed ? " transposed" : "");
}

static void check_batch(setup s, ql_rng *rng)
{
    work w;
    work_make(&w, s, rng);
    float *wanted[CHAINS];
    if (s.exact)
        run_apart(&w);
    else
        for (size_t i = 0; i < CHAINS; i++)
            run_chains(&w, i, 1, 1);
    for (size_t i = 0; i < CHAINS; i++)
        wanted[i] = copy_of_y(&w, i);
    for (size_t threads = 1; threads <= THREADS; threads++) {
        restore(&w);
        memset(w.seen, 0, sizeof w.seen);
        run_chains(&w, 0, CHAINS, threads);
        for (size_t i = 0; i < CHAINS; i++) {
            check_same(&w, i, wanted[i], s.exact ? "not as one after another" : "not as alone");
            ck_assert_uint_eq(w.seen[i], s.m * s.outputs[i]);
        }
    }
    for (size_t i = 0; i < CHAINS; i++)
        free(wanted[i]);
    work_free(&w);
}

static setup setup_of(const ql_matmul_kernel *kernel, const ql_matmul_kernel *second, size_t m, unsigned bits)
{
    return (setup){kernel, second, bits & 1, bits & 2, bits & 4, bits & 8 || !(bits & 1), m, {290, 70, 65}};
}

START_TEST(batch_is_its_products)
{
    const ql_matmul_kernel *kernel = kernel_at((size_t)_i);
    static const size_t tokens[] = {1, 3, 16, 17, 133};
    ql_rng rng = {.seed = 31, .stream = (uint64_t)_i};
    if (!runnable(kernel)) {
        printf("skipped: kernel %s needs another processor\n", kernel ? kernel->name : "of tiles");
        return;
    }
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        for (unsigned bits = 0; bits < 16; bits++) {
            setup s = setup_of(kernel, kernel, tokens[i], bits);
            s.exact = s.exact && !kernel->int8_inputs; /* which rounds by what is beside it in x */
            check_batch(s, &rng);
        }
}
END_TEST

/* Layers that were left dense, or stored in fp32, are multiplied by other kernels. */
START_TEST(chains_of_several_kernels)
{
    ql_rng rng = {.seed = 32};
    for (size_t i = 0; i < ql_matmul_kernel_count; i++)
        for (unsigned bits = 0; bits < 8; bits++) {
            const ql_matmul_kernel *kernel = kernel_at(i), *second = kernel_at((i + 1) % ql_matmul_kernel_count);
            setup s = setup_of(kernel, second, 21 - bits, bits);
            s.exact = s.exact && !kernel->int8_inputs && !second->int8_inputs;
            if (runnable(kernel) && runnable(second))
                check_batch(s, &rng);
        }
}
END_TEST

/* One x for three weights, of two formats, and again for a second batch. */
START_TEST(x_is_packed_once)
{
    ql_rng rng = {.seed = 33};
    work w;
    work_make(&w, setup_of(&chain_case_kernel, &chain_case_kernel, 40, 4), &rng);
    ql_workers *workers;
    ck_assert_int_eq(ql_workers_create(&workers, 2, NULL), QL_OK);
    ql_packs planned = {0}, packs = {0};
    ql_batch_scratch(w.chain, 1, &planned, 2);
    size_t first = planned.bytes;
    ck_assert_int_eq(ql_workers_reserve(workers, ql_batch_scratch(w.chain, CHAINS, &planned, 2), NULL), QL_OK);
    chain_case_packed = 0;
    ql_batch_run(w.chain, 1, &packs, workers);
    ck_assert_uint_eq(packs.bytes, first);
    ck_assert_int_eq(chain_case_packed, 2 * 40);
    ql_batch_run(w.chain, CHAINS, &packs, workers);
    ck_assert_uint_eq(packs.bytes, planned.bytes);
    ck_assert_int_eq(chain_case_packed, 4 * 40);
    ql_workers_destroy(workers);
    work_free(&w);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("batch");
    tcase_set_timeout(tcase, 300);
    tcase_add_loop_test(tcase, batch_is_its_products, 0, (int)ql_matmul_kernel_count + MORE);
    tcase_add_test(tcase, chains_of_several_kernels);
    tcase_add_test(tcase, x_is_packed_once);
    Suite *suite = suite_create("batch");
    suite_add_tcase(suite, tcase);
    return test_run(suite);
}
