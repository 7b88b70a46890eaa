/* Weights of every format with random codes, and products of them with guard pages around every array. */
#ifndef QL_TESTS_MATMUL_CASE_H
#define QL_TESTS_MATMUL_CASE_H

#include "base/rng.h"
#include "kern/matmul.h"

/* Memory that ends (or starts, with `low`) at a page that faults. */
typedef struct guarded {
    char *map, *data;
    size_t bytes;
} guarded;
guarded guarded_new(size_t bytes, bool low);
void guarded_free(guarded *g);

enum { CASE_ARRAYS = 6 };

/* A weight whose values are known without decoding it. With `exact` all are small integers times
 * powers of two, so that fp32 sums do not round. */
typedef struct weight_case {
    ql_wview view;
    float table[16], map[256];
    double *values; /* [n][k] */
    guarded arrays[CASE_ARRAYS];
    int used;
} weight_case;
/* k is rounded up to whole blocks of formats that have nothing else. */
void weight_case_make(weight_case *c, ql_format format, size_t n, size_t k, bool exact, bool low, ql_rng *rng);
void weight_case_free(weight_case *c);

/* Formats by index: every code with every kind of scale it may have; false past the last. */
bool case_format(size_t index, ql_format *format);

#endif
