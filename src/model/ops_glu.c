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
    ql_either act;
    size_t ldact;
    const ql_glu_out *out;
} glu_job;

static ql_glu_row row_of(const ql_glu_in *in, size_t t)
{
    size_t gate = t * in->ldgate, up = t * in->ldup;
    if (in->waiting.gate)
        return (ql_glu_row){.narrow_gate = in->waiting.gate + gate, .narrow_up = in->waiting.up + up};
    return (ql_glu_row){.gate = in->gate + gate, .up = in->up + up};
}

static void forward_tokens(void *ctx, size_t index, size_t worker)
{
    const glu_job *job = ctx;
    const ql_glu_waiting *to = job->waiting;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++) {
        ql_glu_row row = row_of(job->in, t);
        ql_glu_waiting waiting = {0};
        if (to)
            waiting = (ql_glu_waiting){to->gate + t * job->in->ldgate, to->up + t * job->in->ldup};
        job->kernels->glu[job->glu](job->d, &row, ql_either_at(job->act, t * job->ldact), to ? &waiting : NULL);
    }
}

void ql_glu_forward(ql_glu glu, size_t m, size_t d, const ql_glu_in *in, ql_either act, size_t ldact,
                    const ql_glu_waiting *waiting, ql_workers *workers)
{
    glu_job job = {.kernels = ql_ops_select(ql_cpu_features())->rows, .glu = glu, .m = m, .d = d, .in = in,
                   .waiting = waiting, .act = act, .ldact = ldact};
    ql_parallel(workers, (m + TOKENS - 1) / TOKENS, forward_tokens, &job);
}

static void backward_tokens(void *ctx, size_t index, size_t worker)
{
    const glu_job *job = ctx;
    const ql_glu_out *out = job->out;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++) {
        ql_glu_row row = row_of(job->in, t);
        ql_glu_out at = {.dgate = ql_either_at(out->dgate, t * out->ld), .dup = ql_either_at(out->dup, t * out->ld)};
        if (out->act.wide || out->act.narrow)
            at.act = ql_either_at(out->act, t * job->d);
        job->kernels->glu_backward[job->glu](job->d, &row, job->dact + t * job->ldact, &at);
    }
}

void ql_glu_backward(ql_glu glu, size_t m, size_t d, const ql_glu_in *in, const float *dact, size_t lddact,
                     const ql_glu_out *out, ql_workers *workers)
{
    glu_job job = {.kernels = ql_ops_select(ql_cpu_features())->rows,
                   .glu = glu,
                   .m = m,
                   .d = d,
                   .in = in,
                   .dact = dact,
                   .ldact = lddact,
                   .out = out};
    ql_parallel(workers, (m + TOKENS - 1) / TOKENS, backward_tokens, &job);
}
