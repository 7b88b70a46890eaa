/* The gradient products of an adapter: sums over the tokens of outer products. */
#ifndef QL_SRC_LORA_OUTER_H
#define QL_SRC_LORA_OUTER_H

#include <stddef.h>
#include <stdint.h>

#include "qlora/lora.h"

/* out[i*stride_i + j*stride_j] += sum over t < m of s[t*r + i] * x[t*ldx + j], for i < r, j < cols. With a
 * dropout, x is dropout(x). The order of the sums is fixed: it depends on neither threads nor cols. */
typedef struct ql_outer {
    size_t m, r, cols;
    const float *s; /* [m][r] */
    const float *x; /* [m][cols], rows ldx apart */
    size_t ldx;
    const ql_dropout *dropout; /* NULL: none */
    float *out;
    size_t stride_i, stride_j;
} ql_outer;

/* Several at once, so that threads share the strips of narrow ones. */
void ql_outer_add(const ql_outer *outer, size_t count, ql_workers *workers);

/* Kernels: acc[rows][QL_OUTER_COLS] += sum over t < m of s[t*lds + i] * x[t*ldx + j], rows <= QL_OUTER_ROWS. */
enum { QL_OUTER_COLS = 48, QL_OUTER_ROWS = 8 };
typedef void ql_outer_kernel(size_t m, size_t rows, const float *s, size_t lds, const float *x, size_t ldx,
                             float *acc);
ql_outer_kernel ql_outer_scalar;
#ifdef __x86_64__
ql_outer_kernel ql_outer_avx2, ql_outer_avx512;
#endif

/* The fastest that `features` allow. */
ql_outer_kernel *ql_outer_select(uint32_t features);

#endif
