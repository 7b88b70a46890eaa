/* Decoding pieces of a weight to fp32, in plain C. */
#ifndef QL_SRC_KERN_DECODE_H
#define QL_SRC_KERN_DECODE_H

#include "kern/wview.h"

/* dst[i] = W[row][col + i], i < count. */
void ql_decode_row(const ql_wview *w, size_t row, size_t col, size_t count, float *dst);

/* Groups a row when every row starts a group of its own, otherwise 0 (flat, cut by row ends; dense). */
static inline size_t ql_row_groups(const ql_wview *w)
{
    if (w->format.scale == QL_SCALE_NONE)
        return 0;
    if (!w->format.flat)
        return w->groups;
    return w->k % w->format.group == 0 ? w->k / w->format.group : 0;
}

static inline bool ql_is_dense(const ql_wview *w)
{
    return w->format.code == QL_CODE_F32 || w->format.code == QL_CODE_F16 || w->format.code == QL_CODE_BF16;
}

/* dst[i] = scale of group g + i of the row-major array, i < count. */
void ql_decode_scales(const ql_wview *w, size_t g, size_t count, float *dst);

#endif
