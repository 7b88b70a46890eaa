/* The scalar reference: every format, plain loops, each weight decoded by ql_wview_at(). */
#include "kern/kernels.h"

enum { ROWS = 64, COLS = 64, CHUNK = 64 };

static ql_plan plan(const ql_product *p, size_t threads)
{
    (void)p, (void)threads;
    return (ql_plan){.rows = ROWS, .cols = COLS};
}

/* y += one chunk of the sum of every token, output `col` of y = x W^T. */
static void dot_chunk(const ql_product *p, ql_tile t, size_t col, size_t from, size_t count)
{
    float line[CHUNK];
    for (size_t i = 0; i < count; i++)
        line[i] = ql_wview_at(p->w, col, from + i);
    for (size_t row = t.row; row < t.row + t.rows; row++) {
        const float *x = p->x + row * p->ldx + from;
        float sum = 0;
        for (size_t i = 0; i < count; i++)
            sum += x[i] * line[i];
        p->y[row * p->ldy + col] += sum;
    }
}

/* y += x[.][n] * W[n][columns of the tile], one row n of W. */
static void axpy_row(const ql_product *p, ql_tile t, size_t n)
{
    float line[COLS];
    for (size_t i = 0; i < t.cols; i++)
        line[i] = ql_wview_at(p->w, n, t.col + i);
    for (size_t row = t.row; row < t.row + t.rows; row++) {
        float x = p->x[row * p->ldx + n], *y = p->y + row * p->ldy + t.col;
        for (size_t i = 0; i < t.cols; i++)
            y[i] += x * line[i];
    }
}

static void tile(const ql_product *p, ql_tile t, void *scratch)
{
    (void)scratch;
    for (size_t row = t.row; row < t.row + t.rows && !p->add; row++)
        for (size_t col = t.col; col < t.col + t.cols; col++)
            p->y[row * p->ldy + col] = 0;
    if (p->transposed) {
        for (size_t n = 0; n < p->w->n; n++)
            axpy_row(p, t, n);
        return;
    }
    for (size_t col = t.col; col < t.col + t.cols; col++)
        for (size_t from = 0; from < p->w->k; from += CHUNK)
            dot_chunk(p, t, col, from, p->w->k - from < CHUNK ? p->w->k - from : CHUNK);
}

static const ql_way way = {.fits = ql_takes_everything, .packed = ql_packs_nothing, .plan = plan, .tile = tile};

const ql_matmul_kernel ql_matmul_scalar = {
    .name = "scalar", .accepts = ql_accepts_everything, .ways = &way, .way_count = 1};
