/* Other libraries that multiply the same weights, found at run time. None is needed. */
#ifndef QL_BENCH_BASELINE_H
#define QL_BENCH_BASELINE_H

#include "bench.h"

typedef struct baseline {
    const char *name, *weights; /* as in "onednn", "bf16" */
    double bits;                /* of a weight as it is held */
    unsigned rounded;           /* QL_ROUND_ bits: what it rounds before it multiplies */
    uint32_t roof;              /* the QL_CPU_ bits of instructions that it may use */
    bool forward_only;
    /* Loads it. NULL when it is not there or lacks this product, else what it says that it is. */
    const char *(*find)(const libraries *where);
    /* Makes the product of c: weights in the library's own order, threads, x as it wants it. `held` starts as the
     * values of c->dense and becomes what is really held. NULL when the library cannot. */
    void *(*prepare)(const bench_case *c, float *held);
    void (*multiply)(void *self);
    void (*fetch)(void *self, float *y); /* the result in fp32, [m][outputs] */
    void (*release)(void *self);
} baseline;

extern const baseline baseline_sgemm, baseline_haswell, baseline_sbgemm, baseline_onednn, baseline_onednn_s4,
    baseline_onnxruntime, baseline_onnxruntime_bytes;

/* Loads what there is and prints a line for each. `found` takes those that can be used, NULL at the end. */
void baselines_find(const libraries *where, const baseline *found[MOST]);

/* Opens the first of a list of names that ends with NULL, or `given` alone when it is not NULL. */
void *library_open(const char *given, const char *const *names);

/* Takes functions by name. False when one is missing. */
typedef struct library_function {
    const char *name;
    void *place; /* a pointer to a function */
} library_function;
bool library_functions(void *library, const library_function *list, size_t count);

/* Symmetric 4 bits, groups along rows: codes [n][k] from 0 to 15 that stand for (code - 8) * scale, two a byte, the first
 * one low; scales [n][k / group]. w becomes those values. */
void int4_groups(float *w, size_t n, size_t k, size_t group, uint8_t *codes, float *scales);

#endif
