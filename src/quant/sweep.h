/* Two products with the same weight and something between them, over the rows of W a few hundred at a time, so that
 * what is between never leaves the cache: y = x W^T, then g made of y where it lies, then dx = g W. */
#ifndef QL_SRC_QUANT_SWEEP_H
#define QL_SRC_QUANT_SWEEP_H

#include "kern/matmul.h"
#include "qlora/quant.h"

/* The rows of W are dealt out in at most so many parts, whatever the number of threads: each has a share of dx of its
 * own, which the caller adds up, and is worked on by one thread from its first row to its last. */
enum { QL_SWEEP_PARTS = 16 };

typedef struct ql_sweep {
    const ql_weight *w;
    size_t m;
    const float *x; /* [m][k] */
    size_t ldx;
    /* Makes g of y[count], the outputs of one token with the rows of W from `first` on. */
    void (*between)(const void *self, size_t part, size_t token, size_t first, size_t count, float *y);
    const void *self;
    float *dx; /* [ql_sweep_parts(w)][m][k]; NULL: no second product */
} ql_sweep;

size_t ql_sweep_parts(const ql_weight *w);
size_t ql_sweep_block(const ql_weight *w); /* rows of W at a time: 256, but all where scales cannot be cut there */

ql_scratch ql_sweep_scratch(const ql_weight *w, size_t m);
void ql_sweep_run(const ql_sweep *sweep, ql_workers *workers);

#endif
