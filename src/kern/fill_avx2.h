/* Panels of W in fp32, 16 outputs wide, decoded with AVX2. Weights whose groups cross row ends are
 * not for these. */
#ifndef QL_SRC_KERN_FILL_AVX2_H
#define QL_SRC_KERN_FILL_AVX2_H

#include "kern/wview.h"

/* panel[i][16] = W[col..][from + i]: outputs are rows of W, turned on the way. from: multiple of 64. */
void ql_fill_forward_avx2(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel);

/* panel[i][16] = W[from + i][col..]: rows of W as they lie. col: multiple of 64. Four panels, `apart` numbers from one to
 * the next, hold columns up to col + 64, of which cols exist. */
void ql_fill_backward_avx2(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel,
                           size_t apart);

#endif
