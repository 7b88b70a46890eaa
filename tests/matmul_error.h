/* What rounding x and W puts into a sum of products, where a kernel does not round them to bf16. */
#ifndef QL_TESTS_MATMUL_ERROR_H
#define QL_TESTS_MATMUL_ERROR_H

#include "matmul_case.h"

/* Whether the product goes the way of fixed point. */
bool case_in_fixed_point(const ql_matmul_kernel *kernel, const ql_product *p);

/* Terms of x that share a factor where it is rounded to bytes. */
size_t case_byte_run(const ql_matmul_kernel *kernel, const ql_product *p);

/* The most that the products of the sum y[i][j] are off by, in fp32 1 % more: with x and W in bytes, x with a factor for
 * every `run` terms, and in the fixed point of a few tokens (kern/gemv.h). p multiplies by c, forward. */
double case_byte_error(const ql_product *p, const weight_case *c, size_t i, size_t j, size_t run);
double case_fixed_error(const ql_product *p, const weight_case *c, size_t i, size_t j);

#endif
