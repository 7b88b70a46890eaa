/* A product by a given kernel of the list: the way of ql_matmul(), of the tests and of the benchmarks. */
#ifndef QL_SRC_QUANT_MATMUL_H
#define QL_SRC_QUANT_MATMUL_H

#include "kern/matmul.h"

/* Scratch that ql_product_run() needs. Reads only w, transposed and m of p. */
ql_scratch ql_product_scratch(const ql_matmul_kernel *kernel, const ql_product *p, size_t threads);

void ql_product_run(const ql_matmul_kernel *kernel, const ql_product *p, ql_workers *workers);

#endif
