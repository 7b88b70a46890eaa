/* The blocked product that the vector kernels share. x is packed once into micro-tiles; a panel of W
 * (`width` outputs x `depth` terms) is decoded to fp32 into the first-level cache and multiplied with
 * every micro-tile of the rectangle while it is there. An instruction set brings the two inner parts. */
#ifndef QL_SRC_KERN_BLOCKED_H
#define QL_SRC_KERN_BLOCKED_H

#include "kern/matmul.h"

/* Where the sums of a micro-tile go: y[tokens][cols], rows ld apart, added to what is there if `add` says so. */
typedef struct ql_sums {
    float *y;
    size_t ld, cols;
    bool add;
    const float *before; /* the same sums over the terms of earlier panels, [tokens][width]; NULL: there are none */
} ql_sums;

typedef struct ql_blocked {
    size_t tokens;   /* most tokens of a micro-tile */
    size_t width;    /* outputs of a panel, a multiple of 16 */
    size_t depth;    /* terms of the sums in a panel, a multiple of 64 */
    size_t together; /* outputs that one fill decodes when transposed, panel after panel; 0: width */
    bool pairs;      /* x and the panel hold two neighbouring terms in bf16 where there is one in fp32 */
    /* panel[i][width] = W for terms [from, from + depth) of outputs [col, col + cols); what is past cols is never
     * stored. The next panel begins where one of this->depth terms would end. With pairs an odd last term is joined
     * by zero. */
    void (*fill)(const ql_product *p, size_t col, size_t cols, size_t from, size_t depth, float *panel);
    /* out[line][tokens] = x[tokens][depth] turned, a line a term or, with pairs, two, an odd last one with zero.
     * NULL: in plain C, not for pairs. */
    void (*pack)(const float *x, size_t ldx, size_t depth, size_t tokens, float *out);
    /* a[depth][rows] * panel[depth][width]; with pairs, depth counts pairs. */
    void (*multiply)(size_t rows, size_t depth, const float *a, const float *panel, ql_sums to);
} ql_blocked;

ql_plan ql_blocked_plan(const ql_blocked *b, const ql_product *p, size_t threads);
/* The same with other rows: packed x is shared where they are equal. */
ql_plan ql_blocked_rows(const ql_blocked *b, const ql_product *p, ql_plan plan, size_t rows);
void ql_blocked_pack(const ql_blocked *b, const ql_product *p, ql_plan plan, size_t index);
void ql_blocked_tile(const ql_blocked *b, const ql_product *p, ql_tile t, float *panel);

/* Any format, in plain C: the slow way to fill panels that are `apart`. */
void ql_blocked_fill(const ql_product *p, size_t width, size_t col, size_t cols, size_t from, size_t depth,
                     float *panel, size_t apart);

#endif
