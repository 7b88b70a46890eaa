#include <assert.h>

#include "base/cpu.h"
#include "base/workers.h"
#include "model/ops.h"
#include "model/ops_kernels.h"

enum { TOKENS = 16 }; /* a piece of work */

typedef struct norm_job {
    const ql_row_kernels *kernels;
    const ql_rmsnorm *norm;
    size_t m;
    const float *x, *dy, *rstd_in;
    float *y, *rstd, *dx;
    size_t ldx, ldy, lddy, lddx;
    bool add;
} norm_job;

static void forward_tokens(void *ctx, size_t index, size_t worker)
{
    const norm_job *job = ctx;
    const ql_rmsnorm *norm = job->norm;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++)
        for (size_t h = 0; h < norm->heads; h++) {
            float rstd = job->kernels->rmsnorm(norm->d, job->x + t * job->ldx + h * norm->d, NULL, norm->w, norm->eps,
                                               (ql_either){.wide = job->y + t * job->ldy + h * norm->d});
            if (job->rstd)
                job->rstd[t * norm->heads + h] = rstd;
        }
}

void ql_rmsnorm_forward(const ql_rmsnorm *norm, size_t m, const float *x, size_t ldx, float *y, size_t ldy,
                        float *rstd, ql_workers *workers)
{
    norm_job job = {.kernels = ql_ops_select(ql_cpu_features())->rows, .norm = norm, .m = m, .x = x, .ldx = ldx,
                    .y = y, .ldy = ldy, .rstd = rstd};
    ql_parallel(workers, (m + TOKENS - 1) / TOKENS, forward_tokens, &job);
}

static void backward_tokens(void *ctx, size_t index, size_t worker)
{
    const norm_job *job = ctx;
    const ql_rmsnorm *norm = job->norm;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++)
        for (size_t h = 0; h < norm->heads; h++)
            job->kernels->rmsnorm_backward(norm->d, job->x + t * job->ldx + h * norm->d, norm->w,
                                           job->rstd_in[t * norm->heads + h], job->dy + t * job->lddy + h * norm->d,
                                           job->dx + t * job->lddx + h * norm->d, job->add);
}

void ql_rmsnorm_backward(const ql_rmsnorm *norm, size_t m, const float *x, size_t ldx, const float *rstd,
                         const float *dy, size_t lddy, float *dx, size_t lddx, bool add, ql_workers *workers)
{
    norm_job job = {.kernels = ql_ops_select(ql_cpu_features())->rows, .norm = norm, .m = m, .x = x, .ldx = ldx,
                    .rstd_in = rstd, .dy = dy, .lddy = lddy, .dx = dx, .lddx = lddx, .add = add};
    ql_parallel(workers, (m + TOKENS - 1) / TOKENS, backward_tokens, &job);
}

/* ---- of a block: rows of d ---- */

typedef struct block_job {
    const ql_row_kernels *kernels;
    const ql_rmsnorm *norm;
    size_t m;
    ql_residual residual;
    const uint16_t *narrow;
    const float *dy, *rstd_in;
    ql_either y;
    float *rstd, *dx;
} block_job;

static void run(ql_task *tokens, block_job *job, ql_workers *workers)
{
    assert(job->norm->heads == 1);
    job->kernels = ql_ops_select(ql_cpu_features())->rows;
    ql_parallel(workers, (job->m + TOKENS - 1) / TOKENS, tokens, job);
}

static void residual_tokens(void *ctx, size_t index, size_t worker)
{
    const block_job *job = ctx;
    const ql_row_kernels *kernels = job->kernels;
    const ql_rmsnorm *norm = job->norm;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++) {
        size_t at = t * norm->d;
        float *x = job->residual.x + at;
        if (job->residual.add)
            kernels->add(norm->d, job->residual.add + at, x);
        if (job->residual.narrow)
            kernels->narrow(norm->d, x, job->residual.narrow + at);
        float rstd = kernels->rmsnorm(norm->d, x, NULL, norm->w, norm->eps, ql_either_at(job->y, at));
        if (job->rstd)
            job->rstd[t] = rstd;
    }
}

void ql_residual_rmsnorm(const ql_rmsnorm *norm, size_t m, const ql_residual *residual, ql_either y, float *rstd,
                         ql_workers *workers)
{
    run(residual_tokens, &(block_job){.norm = norm, .m = m, .residual = *residual, .y = y, .rstd = rstd}, workers);
}

static void again_tokens(void *ctx, size_t index, size_t worker)
{
    const block_job *job = ctx;
    const ql_rmsnorm *norm = job->norm;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++) {
        size_t at = t * norm->d;
        job->rstd[t] =
            job->kernels->rmsnorm(norm->d, NULL, job->narrow + at, norm->w, norm->eps, ql_either_at(job->y, at));
    }
}

void ql_rmsnorm_again(const ql_rmsnorm *norm, size_t m, const uint16_t *x, ql_either y, float *rstd,
                      ql_workers *workers)
{
    run(again_tokens, &(block_job){.norm = norm, .m = m, .narrow = x, .y = y, .rstd = rstd}, workers);
}

static void backward_narrow_tokens(void *ctx, size_t index, size_t worker)
{
    const block_job *job = ctx;
    const ql_rmsnorm *norm = job->norm;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++) {
        size_t at = t * norm->d;
        job->kernels->rmsnorm_backward_narrow(norm->d, job->narrow + at, norm->w, job->rstd_in[t], job->dy + at,
                                              job->dx + at);
    }
}

void ql_rmsnorm_backward_narrow(const ql_rmsnorm *norm, size_t m, const uint16_t *x, const float *rstd, const float *dy,
                                float *dx, ql_workers *workers)
{
    run(backward_narrow_tokens, &(block_job){.norm = norm, .m = m, .narrow = x, .rstd_in = rstd, .dy = dy, .dx = dx},
        workers);
}
