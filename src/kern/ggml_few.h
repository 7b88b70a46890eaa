/* y = x W^T for a few tokens and ggml's blocks: every value is decoded once, in registers, and used for all tokens
 * there. Plain C, compiled for each instruction set. */
#ifndef QL_SRC_KERN_GGML_FEW_H
#define QL_SRC_KERN_GGML_FEW_H

#include "kern/matmul.h"

enum { QL_GGML_FEW = 8 }; /* the most tokens */

static inline bool ql_ggml_few_fits(const ql_product *p)
{
    return !p->transposed && p->m <= QL_GGML_FEW && ql_code_is_ggml(p->w->format.code);
}

static inline ql_plan ql_ggml_few_plan(const ql_product *p, size_t threads)
{
    size_t share = p->w->n / (4 * threads);
    return (ql_plan){.rows = p->m, .cols = share < 16 ? 16 : share > 256 ? 256 : share};
}

static inline size_t ql_ggml_few_packed(const ql_product *p)
{
    (void)p;
    return 0;
}

void ql_ggml_few_avx2(const ql_product *p, ql_tile t, void *scratch);
void ql_ggml_few_neon(const ql_product *p, ql_tile t, void *scratch);
void ql_ggml_few_avx512(const ql_product *p, ql_tile t, void *scratch);

#endif
