/* qlora-bench: what is measured, and how. */
#ifndef QL_BENCH_BENCH_H
#define QL_BENCH_BENCH_H

#include <stdio.h>

#include "quant/matmul.h"
#include "quant/weight.h"
#include "roof.h"
#include "stats.h"

enum { MOST = 64, MOST_RUNS = 101 };

typedef struct shape {
    size_t n, k;
} shape;

/* Where other libraries are; NULL: by their usual names, or as linked. */
typedef struct libraries {
    const char *openblas, *blas_core, *onednn, *onnxruntime;
} libraries;

typedef struct options {
    bool forward, transposed, cold, baseline;
    const char *formats[MOST], *tiers[MOST];
    shape shapes[MOST];
    size_t m[MOST], threads[MOST];
    size_t format_count, tier_count, shape_count, m_count, thread_count;
    uint32_t group;
    bool double_quant;
    size_t runs, tries;
    double seconds;     /* least time of one run */
    double row_seconds; /* fewer runs, but three, and no second try where they would take longer; 0: never */
    libraries libraries;
    FILE *json;
} options;

typedef struct timing {
    spread seconds;     /* of one product */
    size_t runs, tries; /* tries: how often it was measured because the roof moved */
    double roof;        /* median share of the roofs measured before and after each run */
    double roof_figure; /* median, operations or bytes a second */
    double roof_width;  /* of the middle half of the roofs, as a part of the median */
    const char *roof_name;
} timing;

/* One weight in `copies` places, more than a cache holds when cold, its values in fp32, and x. */
typedef struct bench_case {
    ql_weight *weights[MOST];
    size_t copies;
    bool cold;
    float *dense;
    shape shape;
    bool transposed;
    size_t m, threads;
    float *x, *y;
    char *stream; /* bytes to read for the bandwidth roof */
    size_t stream_bytes;
    ql_workers *workers;
} bench_case;

static inline size_t case_inputs_of(const bench_case *c)
{
    return c->transposed ? c->shape.n : c->shape.k;
}

static inline size_t case_outputs_of(const bench_case *c)
{
    return c->transposed ? c->shape.k : c->shape.n;
}

static inline double case_operations(const bench_case *c)
{
    return 2.0 * (double)c->m * (double)c->shape.n * (double)c->shape.k;
}

/* Bytes that no cache holds; the smallest when the system does not say. */
size_t past_cache(void);

bool case_weights(bench_case *c, const options *o, const char *format, shape s, ql_error *err);
bool case_inputs(bench_case *c, bool transposed, size_t m, size_t threads, ql_error *err);
void case_free_inputs(bench_case *c);
void case_free_weights(bench_case *c);

/* Compares a sample of the outputs of the last product, y[m][outputs], with sums in double over `dense`, allowing for
 * what `rounded` says (QL_ROUND_ bits); prints the first that is wrong. */
bool case_right(const bench_case *c, const char *name, const float *dense, unsigned rounded);

/* One of our kernels, or what another library does. */
typedef struct contender {
    const ql_matmul_kernel *kernel; /* NULL: the other */
    const struct baseline *baseline;
} contender;

/* False when the result is wrong, memory is short, or the library cannot. A row whose roof moves by more than
 * ROOF_MOVES is measured up to `tries` times, and the steadiest of them counts. */
bool case_time(timing *out, bench_case *c, contender who, const options *o);

#endif
