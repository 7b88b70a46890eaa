/* qlora-bench: what is measured, and how. */
#ifndef QL_BENCH_BENCH_H
#define QL_BENCH_BENCH_H

#include <stdio.h>

#include "quant/matmul.h"
#include "quant/weight.h"
#include "roof.h"

enum { MOST = 64 };

typedef struct shape {
    size_t n, k;
} shape;

typedef struct options {
    bool forward, transposed, cold, baseline;
    const char *formats[MOST], *tiers[MOST];
    shape shapes[MOST];
    size_t m[MOST], threads[MOST];
    size_t format_count, tier_count, shape_count, m_count, thread_count;
    uint32_t group;
    bool double_quant;
    size_t runs;
    double seconds; /* least time of one run */
    FILE *json;
} options;

/* Median and quartiles over the runs. */
typedef struct spread {
    double median, low, high;
} spread;

typedef struct timing {
    spread seconds;     /* of one product */
    double roof;        /* median share of the roof measured beside each run */
    double roof_figure; /* median, operations or bytes a second */
    const char *roof_name;
} timing;

/* One weight in `copies` places, more than a cache holds when cold, its values in fp32, and x. */
typedef struct bench_case {
    ql_weight *weights[MOST];
    size_t copies;
    float *dense;
    shape shape;
    bool transposed;
    size_t m, threads;
    float *x, *y;
    char *stream; /* bytes to read for the bandwidth roof */
    size_t stream_bytes;
    ql_workers *workers;
} bench_case;

bool case_weights(bench_case *c, const options *o, const char *format, shape s, ql_error *err);
bool case_inputs(bench_case *c, bool transposed, size_t m, size_t threads, ql_error *err);
void case_free_inputs(bench_case *c);
void case_free_weights(bench_case *c);

/* Compares a sample of the outputs of the last product with sums in double; prints the first that is wrong. */
bool case_right(const bench_case *c, const ql_matmul_kernel *kernel);

/* kernel NULL: OpenBLAS sgemm on the dense values. False when the result is wrong or memory is short. */
bool case_time(timing *out, bench_case *c, const ql_matmul_kernel *kernel, const options *o);

#endif
