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
    const uint16_t *narrow; /* x in bf16, in place of x, then without a dropout; else NULL */
    size_t ldx;
    const ql_dropout *dropout; /* NULL: none */
    float *out;
    size_t stride_i, stride_j; /* one of them is 1 */
} ql_outer;

/* A rectangle of a result: columns [col, col + cols), rows [rank, rank + ranks). */
typedef struct ql_outer_strip {
    size_t col, cols, rank, ranks;
} ql_outer_strip;

typedef struct ql_outer_kernel {
    const char *name;
    uint32_t cpu;       /* QL_CPU_ bits */
    bool bf16_inputs;   /* rounds s and x to bf16; sums stay fp32 */
    size_t cols, least; /* columns of a strip: at most, and of one that no more threads are to share */
    size_t ranks;       /* of a strip, at most */
    void (*strip)(const ql_outer *outer, ql_outer_strip strip);
} ql_outer_kernel;

/* Slowest first, ended by NULL. */
extern const ql_outer_kernel *const ql_outer_kernels[];

/* The last of the list that `features` allow, and `bf16` if it rounds. */
const ql_outer_kernel *ql_outer_select(uint32_t features, bool bf16);

/* Several at once, so that threads share the strips of narrow ones. */
void ql_outer_run(const ql_outer_kernel *kernel, const ql_outer *outer, size_t count, ql_workers *workers);

/* The same by the kernel of this processor; `bf16`: s and x may be rounded. */
void ql_outer_add(const ql_outer *outer, size_t count, bool bf16, ql_workers *workers);

#ifdef __x86_64__
extern const ql_outer_kernel ql_outer_avx2, ql_outer_avx512, ql_outer_avx512_bf16, ql_outer_amx;
extern const ql_outer_kernel ql_outer_amx_emulated; /* over tiles in plain C, for tests */
#endif

/* ---- for kernels in fp32 ---- */

/* acc[rows][QL_OUTER_COLS] += sum over t < m of s[t*lds + i] * x[t*ldx + j], rows <= QL_OUTER_ROWS. */
enum { QL_OUTER_COLS = 48, QL_OUTER_ROWS = 8, QL_OUTER_RANKS = 64 };
typedef void ql_outer_rows(size_t m, size_t rows, const float *s, size_t lds, const float *x, size_t ldx, float *acc);

/* A strip of QL_OUTER_COLS x QL_OUTER_RANKS by such a function. */
void ql_outer_by_rows(const ql_outer *outer, ql_outer_strip strip, ql_outer_rows *rows);

#endif
