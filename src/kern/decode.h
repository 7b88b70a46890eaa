/* Decoding pieces of a weight to fp32, in plain C. */
#ifndef QL_SRC_KERN_DECODE_H
#define QL_SRC_KERN_DECODE_H

#include "kern/wview.h"

/* dst[i] = W[row][col + i], i < count. */
void ql_decode_row(const ql_wview *w, size_t row, size_t col, size_t count, float *dst);

/* Groups a row when every row starts a group of its own, otherwise 0 (flat, cut by row ends; dense; ggml's blocks). */
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

/* Scales of `lanes` rows (at most 16), collected for a vector to decode: row r has groups
 * [starts[r], starts[r] + count), count at most QL_MOST_GROUPS. */
enum { QL_MOST_LANES = 16, QL_MOST_GROUPS = 8 };
typedef struct ql_dq_lanes {
    uint16_t steps[QL_MOST_LANES], offsets[QL_MOST_LANES];
    uint8_t codes[QL_MOST_GROUPS][QL_MOST_LANES];
} ql_dq_lanes;

/* False when the scales are of another kind, or a row's groups have more than one step. */
static inline bool ql_dq_collect(const ql_wview *w, const size_t *starts, size_t lanes, size_t count, ql_dq_lanes *out)
{
    if (w->format.scale != QL_SCALE_DQ)
        return false;
    for (size_t r = 0; r < lanes; r++) {
        const uint8_t *codes = (const uint8_t *)w->scales + starts[r];
        size_t block = starts[r] / QL_DQ_GROUPS;
        if ((starts[r] + count - 1) / QL_DQ_GROUPS != block)
            return false;
        out->steps[r] = w->steps[block];
        out->offsets[r] = w->offsets[block];
        for (size_t g = 0; g < count; g++)
            out->codes[g][r] = codes[g];
    }
    return true;
}

/* The same of one group, g, of rows [row, row + count); the lanes after them have the last one's. False when the scales
 * are of another kind. */
static inline bool ql_dq_collect_down(const ql_wview *w, size_t row, size_t count, size_t g, size_t lanes,
                                      ql_dq_lanes *out)
{
    if (w->format.scale != QL_SCALE_DQ)
        return false;
    size_t groups = ql_row_groups(w), at = row * groups + g;
    for (size_t r = 0; r < lanes; r++) {
        out->codes[0][r] = ((const uint8_t *)w->scales)[at];
        out->steps[r] = w->steps[at / QL_DQ_GROUPS];
        out->offsets[r] = w->offsets[at / QL_DQ_GROUPS];
        at += r + 1 < count ? groups : 0;
    }
    return true;
}

#endif
