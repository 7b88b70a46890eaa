#include "base/cpu.h"
#include "base/workers.h"
#include "model/ops.h"
#include "model/ops_kernels.h"

enum { TOKENS = 8 }; /* a piece of work */

typedef struct glu_job {
    const ql_row_kernels *kernels;
    ql_glu glu;
    size_t m, d;
    const ql_glu_waiting *waiting;
    const float *gate, *up, *dact;
    float *act, *dgate, *dup;
    size_t ldgate, ldup, ldact, lddgate, lddup;
} glu_job;

static void forward_tokens(void *ctx, size_t index, size_t worker)
{
    const glu_job *job = ctx;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    const ql_glu_waiting *waiting = job->waiting;
    for (size_t t = index * TOKENS; t < end; t++) {
        float *gate = (float *)job->gate + t * job->ldgate, *up = (float *)job->up + t * job->ldup;
        if (waiting && waiting->back) {
            job->kernels->widen(job->d, waiting->gate + t * job->ldgate, gate);
            job->kernels->widen(job->d, waiting->up + t * job->ldup, up);
        }
        job->kernels->glu[job->glu](job->d, gate, up, job->act + t * job->ldact);
        if (waiting && !waiting->back) { /* while they are in the cache */
            job->kernels->narrow(job->d, gate, waiting->gate + t * job->ldgate);
            job->kernels->narrow(job->d, up, waiting->up + t * job->ldup);
        }
    }
}

void ql_glu_forward(ql_glu glu, size_t m, size_t d, float *gate, size_t ldgate, float *up, size_t ldup, float *act,
                    size_t ldact, const ql_glu_waiting *waiting, ql_workers *workers)
{
    glu_job job = {.kernels = ql_ops_select(ql_cpu_features())->rows, .glu = glu, .m = m, .d = d, .waiting = waiting,
                   .gate = gate, .ldgate = ldgate, .up = up, .ldup = ldup, .act = act, .ldact = ldact};
    ql_parallel(workers, (m + TOKENS - 1) / TOKENS, forward_tokens, &job);
}

static void backward_tokens(void *ctx, size_t index, size_t worker)
{
    const glu_job *job = ctx;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++)
        job->kernels->glu_backward[job->glu](job->d, job->gate + t * job->ldgate, job->up + t * job->ldup,
                                             job->dact + t * job->ldact, job->dgate + t * job->lddgate,
                                             job->dup + t * job->lddup);
}

void ql_glu_backward(ql_glu glu, size_t m, size_t d, const float *gate, size_t ldgate, const float *up, size_t ldup,
                     const float *dact, size_t lddact, float *dgate, size_t lddgate, float *dup, size_t lddup,
                     ql_workers *workers)
{
    glu_job job = {.kernels = ql_ops_select(ql_cpu_features())->rows, .glu = glu, .m = m, .d = d, .gate = gate,
                   .ldgate = ldgate, .up = up, .ldup = ldup, .dact = dact, .ldact = lddact,
                   .dgate = dgate, .lddgate = lddgate, .dup = dup, .lddup = lddup};
    ql_parallel(workers, (m + TOKENS - 1) / TOKENS, backward_tokens, &job);
}
