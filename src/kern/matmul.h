/* The kernels that multiply by a weight in a block format: one list, slowest first.
 *
 * A kernel computes rectangles of the result; src/quant/matmul.c cuts the result into rectangles and
 * gives them to threads. Selection, tests and benchmarks walk the same list. */
#ifndef QL_SRC_KERN_MATMUL_H
#define QL_SRC_KERN_MATMUL_H

#include "kern/wview.h"

/* y[m][n] = x[m][k] W^T; transposed: y[m][k] = x[m][n] W. With `add`, y +=. */
typedef struct ql_product {
    const ql_wview *w;
    bool transposed;
    size_t m;
    const float *x;
    const uint16_t *narrow; /* x in bf16, in place of x, for kernels that read it so; else NULL */
    size_t ldx;
    float *y;
    uint16_t *narrow_y; /* y in bf16, in place of y, from kernels that read a narrow x; without add; else NULL */
    size_t ldy;
    bool add;
    void *packed; /* x in the order of the way that multiplies: src/quant/matmul.c sees to it */
    /* One more product whose sum goes to the same y, of the same m, outputs and direction; NULL: none. Its y and add do
     * not count. */
    const struct ql_product *next;
    const struct ql_matmul_kernel *kernel; /* who multiplies, where there may be several */
} ql_product;

static inline size_t ql_product_outputs(const ql_product *p)
{
    return p->transposed ? p->w->k : p->w->n;
}

/* Length of the sums. */
static inline size_t ql_product_inputs(const ql_product *p)
{
    return p->transposed ? p->w->n : p->w->k;
}

/* A rectangle of the result: tokens [row, row + rows), outputs [col, col + cols). */
typedef struct ql_tile {
    size_t row, rows, col, cols;
} ql_tile;

/* How one kernel wants the result cut: rectangles of `rows` x `cols`. Rectangles on the right and
 * bottom edges are smaller. `packed` bytes hold x in the kernel's own order, made in `packs` pieces;
 * `scratch` bytes serve one rectangle at a time. */
typedef struct ql_plan {
    size_t rows, cols;
    size_t packed, packs; /* packed and scratch are enough for fewer tokens too */
    size_t scratch;
} ql_plan;

/* A kernel may have several ways to multiply, by the number of tokens and the kind of weight. */
typedef struct ql_way {
    bool (*fits)(const ql_product *p);
    /* Bytes of packed x for the most tokens that would come this way, were p of no more than p->m tokens. */
    size_t (*packed)(const ql_product *p);
    ql_plan (*plan)(const ql_product *p, size_t threads); /* reads only w, transposed, m and next of p */
    /* Makes piece `index` of the packed x. NULL when plan().packs is always 0. */
    void (*pack)(const ql_product *p, ql_plan plan, size_t index);
    /* Computes one rectangle. An output's value depends neither on the rectangle nor on its neighbours; a
     * way that cannot promise that plans the same rectangles for any number of threads. */
    void (*tile)(const ql_product *p, ql_tile t, void *scratch);
    const struct ql_blocked *blocked; /* the way of blocked.h, in place of the functions above; else NULL */
    /* `tile` adds up p and what is chained to it, all of which comes this way, and rows, cols and scratch of `plan` are
     * for the whole chain (packed and packs for p alone). Otherwise each product of a chain has its own call. */
    bool chains;
    /* The packed x depends on x, m, inputs and direction alone: weights of any format, plan or chain may share it. */
    bool packs_alike;
    /* Not 0: piece i of the packed x is of that many tokens, of the block i % (blocks of as many tokens in m), and a
     * rectangle that begins with a block reads what is packed of its own tokens only. */
    size_t pack_tokens;
    unsigned rounds; /* QL_ROUND_ bits: what this way rounds to, where its kernel has int8_inputs */
} ql_way;

/* For ways that pack nothing, and for the one that takes everything. */
static inline size_t ql_packs_nothing(const ql_product *p)
{
    (void)p;
    return 0;
}

static inline bool ql_takes_everything(const ql_product *p)
{
    (void)p;
    return true;
}

static inline bool ql_accepts_everything(const ql_wview *w)
{
    (void)w;
    return true;
}

/* What a product may round before it multiplies: bits. */
enum { QL_ROUND_BF16 = 1, QL_ROUND_INT8 = 2 };

typedef struct ql_matmul_kernel {
    const char *name;
    uint32_t cpu; /* QL_CPU_ bits, all of which it needs */
    bool (*accepts)(const ql_wview *w);
    const ql_way *ways; /* the first that fits is taken; the last one takes everything */
    size_t way_count;
    bool (*reads_narrow)(const ql_product *p); /* whether this product may have a narrow x, and y; NULL: never */
    bool bf16_inputs;   /* rounds x and W to bf16, or to fixed point that loses no more; sums stay fp32 */
    bool int8_inputs;   /* has ways that round x to bytes with a factor for every 64 or more, and weights to bytes */
    bool (*pays)(void); /* whether this processor is fast at it, by a short timing; NULL: it is */
    bool blas; /* calls OpenBLAS, which the caller holds to one thread */
} ql_matmul_kernel;

static inline const ql_way *ql_way_of(const ql_matmul_kernel *kernel, const ql_product *p)
{
    const ql_way *way = kernel->ways;
    while (!way->fits(p))
        way++;
    return way;
}

/* What a product is rounded to by this kernel: QL_ROUND_ bits. */
static inline unsigned ql_kernel_rounds(const ql_matmul_kernel *kernel, const ql_product *p)
{
    return kernel->int8_inputs ? ql_way_of(kernel, p)->rounds : kernel->bf16_inputs ? QL_ROUND_BF16 : 0;
}

ql_plan ql_way_plan(const ql_way *way, const ql_product *p, size_t threads);
void ql_way_pack(const ql_way *way, const ql_product *p, ql_plan plan, size_t index);
void ql_way_tile(const ql_way *way, const ql_product *p, ql_tile t, void *scratch);

/* The plan of a product, with enough packed x for fewer tokens too, whatever way those go. */
ql_plan ql_kernel_plan(const ql_matmul_kernel *kernel, const ql_product *p, size_t threads);

extern const ql_matmul_kernel *const ql_matmul_kernels[];
extern const size_t ql_matmul_kernel_count;

/* The last of the list that accepts w, needs no more than `features`, pays, and rounds nothing
 * in a way that is not allowed. Never NULL: the scalar reference takes everything. */
const ql_matmul_kernel *ql_matmul_select(const ql_wview *w, uint32_t features, unsigned allowed);

#endif
