/* Panels of W in fp32, 32 outputs wide, decoded with AVX-512. Weights whose groups cross row ends are
 * not for these. */
#ifndef QL_SRC_KERN_FILL_AVX512_H
#define QL_SRC_KERN_FILL_AVX512_H

#include "kern/wview.h"

/* panel[i][32] = W[col..][from + i]: outputs are rows of W, turned on the way. from: multiple of 64. */
void ql_fill_forward_avx512(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel);

/* panel[i][32] = W[from + i][col..]: rows of W as they lie. col: multiple of 32; of 64, when cols, at most 64, are more
 * than 32: these make a second panel, `apart` numbers after the first. */
void ql_fill_backward_avx512(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel,
                             size_t apart);

/* The scales of 16 rows: out[g][16] for groups [first, first + count) of each, at most QL_MOST_GROUPS. */
void ql_scales_avx512(const ql_wview *w, const size_t rows[16], size_t first, size_t count, float *out);

#endif
