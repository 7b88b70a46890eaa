/* Products to run and to look at. */
#ifndef QL_TESTS_MATMUL_RUN_H
#define QL_TESTS_MATMUL_RUN_H

#include <check.h>
#include <stdlib.h>

#include "base/workers.h"
#include "matmul_case.h"
#include "quant/matmul.h"

/* One product: x and y end at guard pages, their rows further apart than they are long. */
typedef struct run {
    ql_product product;
    guarded x, y;
    float *before; /* y as it was */
} run;

static size_t span(size_t rows, size_t length, size_t ld)
{
    return (rows - 1) * ld + length;
}

static void run_make(run *r, const weight_case *c, bool transposed, size_t m, bool add, bool exact, bool low,
                     ql_rng *rng)
{
    *r = (run){.product = {.w = &c->view, .transposed = transposed, .m = m, .add = add}};
    ql_product *p = &r->product;
    size_t inputs = ql_product_inputs(p), outputs = ql_product_outputs(p);
    p->ldx = inputs + 3, p->ldy = outputs + 5;
    size_t xs = span(m, inputs, p->ldx), ys = span(m, outputs, p->ldy);
    r->x = guarded_new(xs * sizeof(float), low);
    r->y = guarded_new(ys * sizeof(float), low);
    p->x = (float *)(void *)r->x.data;
    p->y = (float *)(void *)r->y.data;
    r->before = malloc(ys * sizeof(float));
    for (size_t i = 0; i < xs; i++)
        ((float *)(void *)r->x.data)[i] = exact ? (float)ql_rng_below(rng, 9) - 4 : ql_uniform(ql_rng_next(rng)) - 0.5f;
    for (size_t i = 0; i < ys; i++)
        p->y[i] = r->before[i] = (float)ql_rng_below(rng, 9) - 4;
}

static void run_free(run *r)
{
    guarded_free(&r->x);
    guarded_free(&r->y);
    free(r->before);
}

static void multiply(const ql_matmul_kernel *kernel, const ql_product *p, size_t threads)
{
    ql_workers *workers;
    ck_assert_int_eq(ql_workers_create(&workers, threads, NULL), QL_OK);
    ck_assert_int_eq(ql_workers_reserve(workers, ql_product_scratch(kernel, p, threads), NULL), QL_OK);
    ql_product_run(kernel, p, workers);
    ql_workers_destroy(workers);
}

#endif
