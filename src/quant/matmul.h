/* A product by a given kernel of the list: the way of ql_matmul(), of the tests and of the benchmarks. */
#ifndef QL_SRC_QUANT_MATMUL_H
#define QL_SRC_QUANT_MATMUL_H

#include "kern/matmul.h"

/* Scratch that ql_product_run() needs. Reads only w, transposed and m of p, and whether x is narrow. */
ql_scratch ql_product_scratch(const ql_matmul_kernel *kernel, const ql_product *p, size_t threads);

void ql_product_run(const ql_matmul_kernel *kernel, const ql_product *p, ql_workers *workers);

/* What else is done to the result: run(self, rectangle) is called once for every rectangle as soon as it is computed,
 * by the thread in whose cache it is. From 16 tokens on rectangles begin at columns that are multiples of 16. */
typedef struct ql_then {
    void (*run)(const void *self, ql_tile tile);
    const void *self;
} ql_then;

/* ql_matmul() or, transposed, ql_matmul_t(), and then `then`. */
void ql_matmul_then(const ql_weight *w, bool transposed, size_t m, const float *x, size_t ldx, float *y, size_t ldy,
                    bool add, ql_then then, ql_workers *workers);

#endif
