/* Panels of W in fp32, 16 outputs wide, decoded with NEON. For coded weights whose groups do not cross row ends. */
#ifndef QL_SRC_KERN_FILL_NEON_H
#define QL_SRC_KERN_FILL_NEON_H

#include "kern/wview.h"

/* panel[i][16] = W[col..][from + i]: outputs are rows of W, turned on the way. from: multiple of 64. */
void ql_fill_forward_neon(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel);

/* panel[i][16] = W[from + i][col..]: rows of W as they lie. col: multiple of 16. */
void ql_fill_backward_neon(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel);

#endif
