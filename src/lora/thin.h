/* The products of an adapter, thin on one side: a rank of 8 to 64 beside thousands of features.
 *
 * Project goes down to the rank (x A^T, dy B), expand up again (h B^T, dh A). Both read one side of the adapter from
 * an fp32 panel P in column blocks of 16, [columns / 16][rows][16], zeros in the lanes past the last column; it is
 * made from FP16 at each call, a hundredth of the work. The third kind, the gradients, is in outer.h. */
#ifndef QL_SRC_LORA_THIN_H
#define QL_SRC_LORA_THIN_H

#include <stddef.h>
#include <stdint.h>

enum { QL_THIN_LANES = 16 };

static inline size_t ql_thin_blocks(size_t columns)
{
    return (columns + QL_THIN_LANES - 1) / QL_THIN_LANES;
}

/* Floats of the panel of P[rows][columns]. */
static inline size_t ql_thin_panel(size_t rows, size_t columns)
{
    return ql_thin_blocks(columns) * rows * QL_THIN_LANES;
}

/* One instruction set's inner loops. A number's bits depend on neither its neighbours nor the tokens beside it. */
typedef struct ql_thin_kernels {
    const char *name;
    uint32_t cpu; /* QL_CPU_ bits */
    /* h[m][r] = factor * x[m][k] P, the panel being that of P[k][r]; rows of h are r long. */
    void (*project)(size_t m, size_t k, size_t r, const float *x, size_t ldx, const float *panel, float factor,
                    float *h);
    /* y[m][cols] += h[m][r] P, the panel being that of P[r][cols]. */
    void (*expand)(size_t m, size_t r, size_t cols, const float *h, const float *panel, float *y, size_t ldy);
    /* panel[i][16] = src[i][0 .. cols) in fp32, then zeros; rows ld apart. */
    void (*widen)(size_t rows, size_t cols, const uint16_t *src, size_t ld, float *panel);
    /* panel[j][16] = column j of src[rows][cols] in fp32 and zeros; rows <= 16. */
    void (*turn)(size_t rows, size_t cols, const uint16_t *src, size_t ld, float *panel);
} ql_thin_kernels;

/* Slowest first, ended by NULL. */
extern const ql_thin_kernels *const ql_thin_tiers[];

/* The last of the list that `features` allow. */
const ql_thin_kernels *ql_thin_select(uint32_t features);

#ifdef __x86_64__
extern const ql_thin_kernels ql_thin_avx2, ql_thin_avx512;
#endif

#endif
