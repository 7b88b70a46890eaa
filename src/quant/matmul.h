/* Products by given kernels, one or a batch: the way of ql_matmul(), of layers, of the tests and of the benchmarks. */
#ifndef QL_SRC_QUANT_MATMUL_H
#define QL_SRC_QUANT_MATMUL_H

#include "kern/matmul.h"

/* Scratch that ql_product_run() needs. Reads only w, transposed and m of p, and whether x is narrow. */
ql_scratch ql_product_scratch(const ql_matmul_kernel *kernel, const ql_product *p, size_t threads);

/* One product; what is chained to it does not count. */
void ql_product_run(const ql_matmul_kernel *kernel, const ql_product *p, ql_workers *workers);

/* ---- batches ---- */

/* x W^T or, transposed, x W, of m tokens, by the weight's kernel; where it goes is not set. */
ql_product ql_product_of(const ql_weight *w, bool transposed, size_t m, const float *x, size_t ldx);

/* What else is done to the result: run(self, rectangle) is called once for every rectangle as soon as it is computed,
 * by the thread in whose cache it is. From 16 tokens on rectangles begin at columns that are multiples of 16. */
typedef struct ql_then {
    void (*run)(const void *self, ql_tile tile);
    const void *self;
} ql_then;

/* ql_matmul() or, transposed, ql_matmul_t(), and then `then`. */
void ql_matmul_then(const ql_weight *w, bool transposed, size_t m, const float *x, size_t ldx, float *y, size_t ldy,
                    bool add, ql_then then, ql_workers *workers);

/* y (+)= a product and all that is chained to it, each with its kernel; and then. */
typedef struct ql_chain {
    const ql_product *product;
    ql_then then; /* run is NULL: nothing */
} ql_chain;

enum { QL_BATCH_PRODUCTS = 8 /* of all chains of a batch */, QL_PACKS = 12 };

/* An x as a way packed it, or, with no way, in fp32 where it was given in bf16: in the shared scratch. */
typedef struct ql_packed {
    const ql_way *way;
    ql_product product; /* whose x it is; `packed` is where it lies */
    ql_plan plan;
} ql_packed;

/* The packed x's of batches that run one after another, so that an x is packed once for all of them. Zeroed it is
 * empty. It ends when numbers of an x change or something else uses the shared scratch. */
typedef struct ql_packs {
    size_t count, bytes;
    size_t rows; /* of the rectangles of blocked ways, which pack by rectangles */
    ql_packed list[QL_PACKS];
} ql_packs;

/* All chains at once, each with a y of its own, of the same m: their rectangles are the tasks of one parallel region,
 * after one in which x's are packed. A y's bits depend neither on the other chains nor on the number of threads. Where
 * the products of a chain come different ways there is a region for each. */
void ql_batch_run(const ql_chain *chains, size_t count, ql_packs *packs, ql_workers *workers);

/* The same, of chains whose results are narrow and read by `later`, the next batch, x's of which are packed too: in one
 * region where all ways pack by tokens. Then ql_batch_run() the later ones. */
void ql_batch_run_before(const ql_chain *chains, size_t count, const ql_chain *later, size_t later_count,
                         ql_packs *packs, ql_workers *workers);

/* The scratch of that, what was packed before it included. Reads of a product what ql_product_scratch() reads, its
 * kernel, and by x and ldx which of them are the same: any pointers will do. A batch of fewer tokens may need more than
 * one of more, but only up to QL_BATCH_TURNS: beyond it kernels have but one way, and need less for less. */
enum { QL_BATCH_TURNS = 16 };
ql_scratch ql_batch_scratch(const ql_chain *chains, size_t count, ql_packs *packs, size_t threads);

#endif
