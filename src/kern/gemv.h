/* y = x W^T for a few tokens, a row of W at a time: what the instruction sets' kernels have in common. Every code is
 * read once, decoded in registers and used for all tokens there. Weights whose groups cross row ends are not for
 * this. */
#ifndef QL_SRC_KERN_GEMV_H
#define QL_SRC_KERN_GEMV_H

#include "kern/decode.h"
#include "kern/matmul.h"

/* The most tokens; scales that are decoded together, of as many rows as they serve, and what a vector may write or
 * read past them. */
enum { QL_GEMV_TOKENS = 8, QL_GEMV_SCALES = 1024, QL_GEMV_SLACK = 16 };

static inline bool ql_gemv_fits(const ql_product *p)
{
    size_t groups = ql_row_groups(p->w);
    return !p->transposed && p->m <= QL_GEMV_TOKENS && (ql_is_dense(p->w) || (groups && groups <= QL_GEMV_SCALES));
}

/* k rounded up to what two 4-bit blocks hold: the length of a packed token. */
static inline size_t ql_gemv_padded(const ql_wview *w)
{
    return (w->k + 2 * QL_BLOCK - 1) / (2 * QL_BLOCK) * (2 * QL_BLOCK);
}

/* Bytes of packed x for the most tokens that would come this way, were p of no more than p->m tokens. */
static inline size_t ql_gemv_packed(const ql_product *p)
{
    size_t tokens = p->m < QL_GEMV_TOKENS ? p->m : QL_GEMV_TOKENS;
    return p->transposed ? 0 : tokens * ql_gemv_padded(p->w) * sizeof(float);
}

static inline ql_plan ql_gemv_plan(const ql_product *p, size_t threads)
{
    size_t share = p->w->n / (4 * threads);
    return (ql_plan){.rows = p->m, .cols = share < 16 ? 16 : share > 256 ? 256 : share, .packs = p->m,
                     .packed = ql_gemv_packed(p)};
}

void ql_gemv_avx2_pack(const ql_product *p, ql_plan plan, size_t token);
void ql_gemv_avx2_tile(const ql_product *p, ql_tile t, void *scratch);

void ql_gemv_neon_pack(const ql_product *p, ql_plan plan, size_t token);
void ql_gemv_neon_tile(const ql_product *p, ql_tile t, void *scratch);

void ql_gemv_avx512_pack(const ql_product *p, ql_plan plan, size_t token);
void ql_gemv_avx512_tile(const ql_product *p, ql_tile t, void *scratch);

/* x and W are rounded to bytes; coded weights and one or two tokens only. */
size_t ql_gemv_int8_packed(const ql_product *p);
ql_plan ql_gemv_int8_plan(const ql_product *p, size_t threads);
void ql_gemv_int8_pack(const ql_product *p, ql_plan plan, size_t token);
void ql_gemv_int8_tile(const ql_product *p, ql_tile t, void *scratch);
void ql_gemv_int8_vbmi_tile(const ql_product *p, ql_tile t); /* the same where there is VBMI */

/* x and W are rounded to 15 or 16 bits of fixed point, which loses less than bf16; coded weights and a few tokens only. */
enum { QL_GEMV_INT16_TOKENS = 4 };
void ql_gemv_int16_pack(const ql_product *p, ql_plan plan, size_t token);
void ql_gemv_int16_tile(const ql_product *p, ql_tile t, void *scratch);
void ql_gemv_digits_pack(const ql_product *p); /* both, of one token and 4-bit codes */
void ql_gemv_digits_tile(const ql_product *p, ql_tile t);

/* x and W are rounded to bf16; 4-bit codes and one or two tokens only. */
void ql_gemv_avx512_bf16_pack(const ql_product *p, ql_plan plan, size_t token);
void ql_gemv_avx512_bf16_tile(const ql_product *p, ql_tile t, void *scratch);

#endif
