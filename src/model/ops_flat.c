/* Passes over flat arrays. */
#include "base/cpu.h"
#include "base/workers.h"
#include "model/ops.h"
#include "model/ops_kernels.h"

enum { PIECE = 1 << 14 }; /* elements */

typedef struct add_job {
    const ql_row_kernels *kernels;
    size_t count;
    const float *x;
    float *y;
} add_job;

static void add_piece(void *ctx, size_t index, size_t worker)
{
    const add_job *job = ctx;
    size_t at = index * PIECE;
    (void)worker;
    job->kernels->add(job->count - at < PIECE ? job->count - at : PIECE, job->x + at, job->y + at);
}

void ql_add(size_t count, const float *x, float *y, ql_workers *workers)
{
    add_job job = {ql_ops_select(ql_cpu_features())->rows, count, x, y};
    ql_parallel(workers, (count + PIECE - 1) / PIECE, add_piece, &job);
}

typedef struct waiting_job {
    const ql_row_kernels *kernels;
    const ql_waiting *arrays;
    bool widen;
} waiting_job;

static size_t pieces(const ql_waiting *array)
{
    return (array->count + PIECE - 1) / PIECE;
}

static void convert(void *ctx, size_t index, size_t worker)
{
    const waiting_job *job = ctx;
    const ql_waiting *a = job->arrays;
    (void)worker;
    for (; index >= pieces(a); a++)
        index -= pieces(a);
    size_t at = index * PIECE, count = a->count - at < PIECE ? a->count - at : PIECE;
    if (job->widen)
        job->kernels->widen(count, a->narrow + at, a->wide + at);
    else
        job->kernels->narrow(count, a->wide + at, a->narrow + at);
}

static void convert_all(const ql_waiting *arrays, size_t count, bool widen, ql_workers *workers)
{
    waiting_job job = {ql_ops_select(ql_cpu_features())->rows, arrays, widen};
    size_t tasks = 0;
    for (size_t i = 0; i < count; i++)
        tasks += pieces(&arrays[i]);
    ql_parallel(workers, tasks, convert, &job);
}

void ql_waiting_narrow(const ql_waiting *arrays, size_t count, ql_workers *workers)
{
    convert_all(arrays, count, false, workers);
}

void ql_waiting_widen(const ql_waiting *arrays, size_t count, ql_workers *workers)
{
    convert_all(arrays, count, true, workers);
}
