/* The norm of the gradient, summed in one order: PARTS fixed slices of LANES running sums each. */
#include <math.h>

#include "base/error.h"
#include "base/workers.h"
#include "qlora/optim.h"

enum { PARTS = 256, LANES = 16 };

typedef struct norm_work {
    const float *grad;
    size_t count, slice; /* elements a part */
    double part[PARTS];
} norm_work;

static void task(void *ctx, size_t index, size_t worker)
{
    norm_work *w = ctx;
    (void)worker;
    size_t at = index * w->slice, end = w->count - at < w->slice ? w->count : at + w->slice;
    double lane[LANES] = {0}, sum = 0;
    for (; at + LANES <= end; at += LANES) {
#pragma omp simd
        for (int i = 0; i < LANES; i++) {
            double g = w->grad[at + i];
            lane[i] += g * g;
        }
    }
    for (size_t i = 0; at + i < end; i++)
        lane[i] += (double)w->grad[at + i] * w->grad[at + i];
    for (int i = 0; i < LANES; i++)
        sum += lane[i];
    w->part[index] = sum;
}

ql_status ql_grad_norm(double *norm, const ql_adapters *set, ql_workers *workers, ql_error *err)
{
    norm_work work = {.grad = set->grad, .count = set->count, .slice = (set->count + PARTS - 1) / PARTS};
    if (set->count)
        ql_parallel(workers, (set->count + work.slice - 1) / work.slice, task, &work);
    double sum = 0;
    for (int i = 0; i < PARTS; i++)
        sum += work.part[i];
    *norm = sqrt(sum);
    if (!isfinite(*norm))
        return ql_fail(err, QL_ERR_VALUE, "the gradient's norm is %g: the step is not applied", *norm);
    return QL_OK;
}

double ql_clip_factor(double norm, double max_norm)
{
    if (max_norm <= 0)
        return 1;
    double factor = max_norm / (norm + 1e-6);
    return factor < 1 ? factor : 1;
}
