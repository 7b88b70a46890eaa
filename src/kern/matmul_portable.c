/* Any processor: panels of W decoded to fp32 in plain C, multiplied by OpenBLAS. */
#include <cblas.h>

#include "kern/decode.h"
#include "kern/kernels.h"

/* A panel holds COLS outputs and DEPTH terms of their sums: 128 KB, for a second-level cache. */
enum { ROWS = 512, COLS = 128, DEPTH = 256 };

static ql_plan plan(const ql_product *p, size_t threads)
{
    (void)p, (void)threads;
    return (ql_plan){.rows = ROWS, .cols = COLS, .scratch = sizeof(float) * COLS * DEPTH};
}

static void tile(const ql_product *p, ql_tile t, void *scratch)
{
    float *panel = scratch, *y = p->y + t.row * p->ldy + t.col;
    size_t inputs = ql_product_inputs(p), ld = p->transposed ? COLS : DEPTH;
    for (size_t from = 0; from < inputs; from += DEPTH) {
        size_t depth = inputs - from < DEPTH ? inputs - from : DEPTH;
        if (p->transposed) {
            for (size_t i = 0; i < depth; i++)
                ql_decode_row(p->w, from + i, t.col, t.cols, panel + i * ld);
        } else {
            for (size_t i = 0; i < t.cols; i++)
                ql_decode_row(p->w, t.col + i, from, depth, panel + i * ld);
        }
        cblas_sgemm(CblasRowMajor, CblasNoTrans, p->transposed ? CblasNoTrans : CblasTrans, (blasint)t.rows,
                    (blasint)t.cols, (blasint)depth, 1.0f, p->x + t.row * p->ldx + from, (blasint)p->ldx, panel,
                    (blasint)ld, from || p->add ? 1.0f : 0.0f, y, (blasint)p->ldy);
    }
}

static const ql_way way = {.fits = ql_takes_everything, .packed = ql_packs_nothing, .plan = plan, .tile = tile};

const ql_matmul_kernel ql_matmul_portable = {
    .name = "portable", .accepts = ql_accepts_everything, .ways = &way, .way_count = 1, .blas = true};
