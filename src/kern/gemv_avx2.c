#include "kern/gemv.h"

#include "kern/rows_avx2.h"

/* A row of W is one stream of 64-column blocks, prefetched AHEAD bytes before they are needed. */
enum { AT_ONCE = 4, AHEAD = 16384 };

/* Puts x in the order in which a block's values come out, and zeros where W is padded. */
void ql_gemv_avx2_pack(const ql_product *p, ql_plan plan, size_t token)
{
    size_t padded = ql_gemv_padded(p->w);
    (void)plan;
    for (size_t at = 0; at < padded; at += QL_BLOCK)
        pack_block(p->w, p->x + token * p->ldx, at, (float *)p->packed + token * padded + at);
}

/* One row against some tokens; `bits` of a code and the code itself are constants where it is inlined. */
static inline __attribute__((always_inline)) void one_row(const ql_product *p, size_t row, size_t token, size_t tokens,
                                                          ql_code code, size_t bits, const float *scales,
                                                          const float *packed)
{
    const ql_wview *w = p->w;
    const char *line = (const char *)w->codes + row * w->row_bytes;
    const unsigned shift = bits <= 8 ? (unsigned)__builtin_ctz(w->format.group) : 0;
    planes table = {0};
    if (bits == 4)
        table = load_planes(w->table);
    size_t ldx = ql_gemv_padded(w);
    const float *x = packed + token * ldx;
    char tail[QL_BLOCK * sizeof(float)] = {0};
    __m256 sums[AT_ONCE] = {0};
    for (size_t at = 0; at < w->k; at += QL_BLOCK) {
        const char *codes = line + at * bits / 8;
        float two[2] = {0};
        if (bits <= 8)
            two[0] = scales[at >> shift], two[1] = w->k - at > 32 ? scales[(at + 32) >> shift] : 0;
        else if (w->k - at < QL_BLOCK) /* a dense row is not padded: reading on could leave the matrix */
            codes = memcpy(tail, codes, (w->k - at) * bits / 8);
        for (size_t ahead = 0; ahead < QL_BLOCK * bits / 8; ahead += 64)
            _mm_prefetch(line + at * bits / 8 + AHEAD + ahead, _MM_HINT_T0);
        block_times(sums, tokens, code, bits, table, codes, x + at, ldx, two);
    }
#pragma GCC unroll 4
    for (size_t t = 0; t < tokens; t++) {
        float *y = p->y + (token + t) * p->ldy + row, sum = sum_lanes(sums[t]);
        *y = p->add ? *y + sum : sum;
    }
}

#include "kern/gemv_rows.h"

void ql_gemv_avx2_tile(const ql_product *p, ql_tile t, void *scratch)
{
    (void)scratch;
    all_tokens(p, t, p->packed);
}
