/* y = x W^T for some tokens, up to sixteen: codes of 16 or 32 rows of W are turned, so that lanes are outputs; decoded
 * in registers, once, they meet the broadcast x of all tokens. For coded weights whose groups do not cross row ends. */
#ifndef QL_SRC_KERN_FEW_H
#define QL_SRC_KERN_FEW_H

#include "kern/decode.h"
#include "kern/matmul.h"

/* Tokens, and the outputs of a strip. */
enum { QL_FEW_LEAST = 3, QL_FEW_MOST = 16, QL_FEW_WIDTH = 32 };

static inline bool ql_few_fits(const ql_product *p)
{
    return !p->transposed && p->m >= QL_FEW_LEAST && p->m <= QL_FEW_MOST && ql_row_groups(p->w);
}

/* Tokens are computed in even numbers. */
static inline size_t ql_few_tokens(size_t m)
{
    return (m + 1) / 2 * 2;
}

static inline size_t ql_few_padded(const ql_wview *w)
{
    return (w->k + 2 * QL_BLOCK - 1) / (2 * QL_BLOCK) * (2 * QL_BLOCK);
}

/* Bytes of packed x, [padded k][tokens], for the most tokens that would come this way, were p of no more than p->m. */
static inline size_t ql_few_packed(const ql_product *p)
{
    size_t tokens = p->m < QL_FEW_MOST ? p->m : QL_FEW_MOST;
    return p->transposed || !ql_row_groups(p->w) ? 0 : ql_few_tokens(tokens) * ql_few_padded(p->w) * sizeof(float);
}

static inline ql_plan ql_few_plan(const ql_product *p, size_t threads)
{
    size_t share = p->w->n / (4 * threads) / QL_FEW_WIDTH * QL_FEW_WIDTH;
    return (ql_plan){.rows = p->m, .cols = share < QL_FEW_WIDTH ? QL_FEW_WIDTH : share > 256 ? 256 : share,
                     .packed = ql_few_packed(p), .packs = ql_few_padded(p->w) / (2 * QL_BLOCK)};
}

/* Up to eight tokens; rows are not turned. */
bool ql_few_avx2_fits(const ql_product *p);
ql_plan ql_few_avx2_plan(const ql_product *p, size_t threads);
void ql_few_avx2_pack(const ql_product *p, ql_plan plan, size_t token);
void ql_few_avx2_tile(const ql_product *p, ql_tile t, void *scratch);

/* bf16: x and W are rounded to bf16; 4-bit codes only. */
void ql_few_avx512_bf16_pack(const ql_product *p, ql_plan plan, size_t index);
void ql_few_avx512_bf16_tile(const ql_product *p, ql_tile t, void *scratch);

/* x and W are rounded to fixed point of 12 to 14 bits and a sign; up to sixteen tokens. */
void ql_few_int16_pack(const ql_product *p, ql_plan plan, size_t index);
void ql_few_int16_tile(const ql_product *p, ql_tile t, void *scratch);

/* x and W are rounded to bytes; any number of tokens. */
size_t ql_few_int8_packed(const ql_product *p);
ql_plan ql_few_int8_plan(const ql_product *p, size_t threads);
void ql_few_int8_pack(const ql_product *p, ql_plan plan, size_t index);
void ql_few_int8_tile(const ql_product *p, ql_tile t, void *scratch);

void ql_few_avx512_pack(const ql_product *p, ql_plan plan, size_t index);
void ql_few_avx512_tile(const ql_product *p, ql_tile t, void *scratch);

#endif
