#include "base/cpu.h"
#include "base/workers.h"
#include "model/ops.h"
#include "model/ops_kernels.h"

enum { TOKENS = 8 }; /* a piece of work */

typedef struct glu_job {
    const ql_row_kernels *kernels;
    ql_glu glu;
    size_t m, d;
    const ql_glu_in *in;
    const ql_glu_waiting *waiting; /* NULL: nothing waits */
    const float *dact;
    float *act, *dgate, *dup;
    size_t ldact, lddgate, lddup;
} glu_job;

static void forward_tokens(void *ctx, size_t index, size_t worker)
{
    const glu_job *job = ctx;
    const ql_glu_in *in = job->in;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++) {
        size_t gate = t * in->ldgate, up = t * in->ldup;
        float *act = job->act + t * job->ldact;
        if (in->waiting.gate)
            job->kernels->glu_again[job->glu](job->d, in->waiting.gate + gate, in->waiting.up + up, act);
        else if (job->waiting)
            job->kernels->glu[job->glu](job->d, in->gate + gate, in->up + up, act, job->waiting->gate + gate,
                                        job->waiting->up + up);
        else
            job->kernels->glu[job->glu](job->d, in->gate + gate, in->up + up, act, NULL, NULL);
    }
}

void ql_glu_forward(ql_glu glu, size_t m, size_t d, const ql_glu_in *in, float *act, size_t ldact,
                    const ql_glu_waiting *waiting, ql_workers *workers)
{
    glu_job job = {.kernels = ql_ops_select(ql_cpu_features())->rows, .glu = glu, .m = m, .d = d, .in = in,
                   .waiting = waiting, .act = act, .ldact = ldact};
    ql_parallel(workers, (m + TOKENS - 1) / TOKENS, forward_tokens, &job);
}

static void backward_tokens(void *ctx, size_t index, size_t worker)
{
    const glu_job *job = ctx;
    const ql_glu_in *in = job->in;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++) {
        size_t gate = t * in->ldgate, up = t * in->ldup;
        ql_glu_row at = {0};
        if (in->waiting.gate)
            at.narrow_gate = in->waiting.gate + gate, at.narrow_up = in->waiting.up + up;
        else
            at.gate = in->gate + gate, at.up = in->up + up;
        job->kernels->glu_backward[job->glu](job->d, &at, job->dact + t * job->ldact, job->dgate + t * job->lddgate,
                                             job->dup + t * job->lddup);
    }
}

void ql_glu_backward(ql_glu glu, size_t m, size_t d, const ql_glu_in *in, const float *dact, size_t lddact, float *dgate,
                     size_t lddgate, float *dup, size_t lddup, ql_workers *workers)
{
    glu_job job = {.kernels = ql_ops_select(ql_cpu_features())->rows, .glu = glu, .m = m, .d = d, .in = in,
                   .dact = dact, .ldact = lddact, .dgate = dgate, .lddgate = lddgate, .dup = dup, .lddup = lddup};
    ql_parallel(workers, (m + TOKENS - 1) / TOKENS, backward_tokens, &job);
}
