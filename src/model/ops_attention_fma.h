/* The block products of attention by multiply-adds, ROWS rows at a time. */
#ifndef QL_SRC_MODEL_OPS_ATTENTION_FMA_H
#define QL_SRC_MODEL_OPS_ATTENTION_FMA_H

#include <stdbool.h>

#include "model/ops_vec.h"

enum { PANEL = 2 * VN, ROWS = VN == 16 ? 8 : 4 };

/* c[rows][PANEL] (+)= a * b[depth][PANEL]: a's element (r, t) is at a[r * row_step + t * depth_step]. */
static inline __attribute__((always_inline)) void tile(size_t rows, size_t depth, const float *a, size_t row_step,
                                                       size_t depth_step, const float *b, size_t ldb, float *c,
                                                       size_t ldc, bool add)
{
    vf sum[ROWS][2];
    for (size_t r = 0; r < rows; r++) {
        sum[r][0] = sum[r][1] = vset(0);
        if (add) {
            sum[r][0] = vload(c + r * ldc);
            sum[r][1] = vload(c + r * ldc + VN);
        }
    }
    for (size_t t = 0; t < depth; t++) {
        vf low = vload(b + t * ldb), high = vload(b + t * ldb + VN);
        for (size_t r = 0; r < rows; r++) {
            vf x = vset(a[r * row_step + t * depth_step]);
            sum[r][0] = vfma(x, low, sum[r][0]);
            sum[r][1] = vfma(x, high, sum[r][1]);
        }
    }
    for (size_t r = 0; r < rows; r++) {
        vstore(c + r * ldc, sum[r][0]);
        vstore(c + r * ldc + VN, sum[r][1]);
    }
}

static inline __attribute__((always_inline)) void product(size_t rows, size_t depth, const float *a, size_t row_step,
                                                          size_t depth_step, const float *b, size_t ldb, float *c,
                                                          size_t ldc, bool add)
{
    size_t r = 0;
    for (; r + ROWS <= rows; r += ROWS)
        tile(ROWS, depth, a + r * row_step, row_step, depth_step, b, ldb, c + r * ldc, ldc, add);
    if (ROWS > 4 && rows - r >= 4) {
        tile(4, depth, a + r * row_step, row_step, depth_step, b, ldb, c + r * ldc, ldc, add);
        r += 4;
    }
    for (; r < rows; r++)
        tile(1, depth, a + r * row_step, row_step, depth_step, b, ldb, c + r * ldc, ldc, add);
}

/* s[rows][PANEL] = rows of the stream times a transposed panel. */
static void scores(size_t rows, size_t head_dim, const float *stream, size_t ld, const float *panel, float *s)
{
    product(rows, head_dim, stream, ld, 1, panel, PANEL, s, PANEL, false);
}

/* sum[head_dim][PANEL] += stream^T s[rows][PANEL]. */
static void accumulate(size_t rows, size_t head_dim, const float *stream, size_t ld, const float *s, float *sum)
{
    product(head_dim, rows, stream, 1, ld, s, PANEL, sum, PANEL, true);
}

/* sum[rows][width] (+)= s[rows][PANEL] times the panel's rows [PANEL][width]; width is a multiple of PANEL. */
static void accumulate_stream(size_t rows, size_t width, const float *s, const float *panel_rows, float *sum, bool add)
{
    for (size_t d = 0; d < width; d += PANEL)
        product(rows, PANEL, s, PANEL, 1, panel_rows + d, width, sum + d, width, add);
}

#endif
