/* A kernel that adds up chains and packs alike, over the scalar one. It calls itself one of bf16, and rounds nothing. */
#ifndef QL_TESTS_CHAIN_CASE_H
#define QL_TESTS_CHAIN_CASE_H

#include <stdatomic.h>

#include "kern/matmul.h"

extern const ql_matmul_kernel chain_case_kernel;
/* The same, rounding x to bf16, and forward y; the last reads, and gives, them as bf16. */
extern const ql_matmul_kernel chain_rounds_kernel, chain_rounds_both_kernel, chain_reads_kernel;
extern atomic_int chain_case_packed; /* tokens that it packed */

#endif
