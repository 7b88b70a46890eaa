/* Timing: every run of a product stands beside a run of its roof, so that a busy or throttled machine
 * slows both. */
#define _GNU_SOURCE
#include <cblas.h>
#include <stdlib.h>
#include <time.h>

#include "base/cpu.h"
#include "base/workers.h"
#include "bench.h"

enum { MOST_RUNS = 101, DECODE_TOKENS = 8 };

/* With one thread its processor time, which other programs do not lengthen; else the time of day. */
static double now(size_t threads)
{
    struct timespec t;
    clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static spread summarize(double *values, size_t count)
{
    qsort(values, count, sizeof *values, ascending);
    return (spread){values[count / 2], values[count / 4], values[count - 1 - count / 4]};
}

typedef struct roof_job {
    const roof *roof;
    size_t rounds, bytes;
    const char *stream;
    double operations[1024];
} roof_job;

static void roof_piece(void *ctx, size_t index, size_t worker)
{
    roof_job *job = ctx;
    (void)worker;
    if (!job->stream) {
        job->operations[index] = job->roof->work(job->rounds);
        return;
    }
    uint64_t sum = job->roof->read(job->stream + index * job->bytes, job->bytes);
    __asm__ volatile("" : : "r"(sum));
}

/* Operations a second of all threads together. */
static double compute_roof(const bench_case *c, const roof *r)
{
    roof_job job = {.roof = r, .rounds = 100000};
    double start = now(c->threads), sum = 0;
    ql_parallel(c->workers, c->threads, roof_piece, &job);
    double seconds = now(c->threads) - start;
    for (size_t i = 0; i < c->threads; i++)
        sum += job.operations[i];
    return sum / seconds;
}

/* Bytes a second from copy `copy` of the stream, read `times` over, the copies in turn. */
static double read_roof(const bench_case *c, const roof *r, size_t copy, size_t times)
{
    enum { PIECES = 16 };
    roof_job job = {.roof = r, .bytes = c->stream_bytes / PIECES / 1024 * 1024};
    double start = now(c->threads);
    for (size_t i = 0; i < times; i++) {
        job.stream = c->stream + (copy + i) % c->copies * c->stream_bytes;
        ql_parallel(c->workers, PIECES, roof_piece, &job);
    }
    return (double)(job.bytes * PIECES * times) / (now(c->threads) - start);
}

static void dense_product(const bench_case *c)
{
    blasint n = (blasint)c->shape.n, k = (blasint)c->shape.k, m = (blasint)c->m;
    if (c->transposed)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, k, n, 1.0f, c->x, n, c->dense, k, 0.0f, c->y, k);
    else
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1.0f, c->x, k, c->dense, k, 0.0f, c->y, n);
}

static void product(const bench_case *c, const ql_matmul_kernel *kernel, size_t copy)
{
    if (!kernel) {
        dense_product(c);
        return;
    }
    const ql_weight *w = c->weights[copy % c->copies];
    size_t inputs = c->transposed ? c->shape.n : c->shape.k, outputs = c->transposed ? c->shape.k : c->shape.n;
    ql_product p = {.w = &w->view, .transposed = c->transposed, .m = c->m, .x = c->x, .ldx = inputs, .y = c->y,
                    .ldy = outputs};
    ql_product_run(kernel, &p, c->workers);
}

static double time_products(const bench_case *c, const ql_matmul_kernel *kernel, size_t copy, size_t times)
{
    double start = now(c->threads);
    for (size_t i = 0; i < times; i++)
        product(c, kernel, copy + i);
    return (now(c->threads) - start) / (double)times;
}

static bool reserve(const bench_case *c, const ql_matmul_kernel *kernel)
{
    ql_product p = {.w = &c->weights[0]->view, .transposed = c->transposed, .m = c->m};
    return ql_workers_reserve(c->workers, ql_product_scratch(kernel, &p, c->threads), NULL) == QL_OK;
}

bool case_time(timing *out, bench_case *c, const ql_matmul_kernel *kernel, const options *o)
{
    openblas_set_num_threads((int)c->threads);
    if (kernel && !reserve(c, kernel))
        return false;
    double once = time_products(c, kernel, 0, 1);
    if (kernel && !case_right(c, kernel))
        return false;
    once = time_products(c, kernel, 0, 1);
    size_t times = (size_t)(o->seconds / (once > 1e-7 ? once : 1e-7)) + 1;
    bool by_bytes = c->m <= DECODE_TOKENS && kernel;
    const roof *r = by_bytes ? roof_reader(ql_cpu_features()) : roof_for(kernel ? kernel->cpu : ql_cpu_features() & 3);
    double work = by_bytes ? (double)ql_weight_bytes(c->weights[0])
                           : 2.0 * (double)c->m * (double)c->shape.n * (double)c->shape.k;
    double seconds[MOST_RUNS], shares[MOST_RUNS], figures[MOST_RUNS];
    for (size_t i = 0; i < o->runs; i++) {
        figures[i] = by_bytes ? read_roof(c, r, i * times, times) : compute_roof(c, r);
        seconds[i] = time_products(c, kernel, i * times, times);
        shares[i] = work / seconds[i] / figures[i];
    }
    *out = (timing){.seconds = summarize(seconds, o->runs), .roof = summarize(shares, o->runs).median,
                    .roof_figure = summarize(figures, o->runs).median, .roof_name = by_bytes ? "read" : r->name};
    return true;
}
