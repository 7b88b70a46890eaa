/* y = x W^T for a few tokens, with AVX2: every code is read once, decoded in registers and used for all
 * tokens there. Weights whose groups cross row ends are not for this. */
#ifndef QL_SRC_KERN_GEMV_AVX2_H
#define QL_SRC_KERN_GEMV_AVX2_H

#include "kern/matmul.h"

/* Whether a product is for this way. */
bool ql_gemv_avx2_fits(const ql_product *p);

/* Bytes of packed x for the most tokens that would come this way, were p of no more than p->m tokens. */
size_t ql_gemv_avx2_packed(const ql_product *p);

ql_plan ql_gemv_avx2_plan(const ql_product *p, size_t threads);
void ql_gemv_avx2_pack(const ql_product *p, size_t token, float *packed);
void ql_gemv_avx2_tile(const ql_product *p, ql_tile t, const float *packed);

#endif
