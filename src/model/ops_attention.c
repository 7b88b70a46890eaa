#include <assert.h>

#include "base/cpu.h"
#include "base/workers.h"
#include "model/ops.h"
#include "model/ops_kernels.h"

enum { TOKENS = 16 }; /* a piece of work where there are no panels */

typedef struct attention_job {
    const ql_attention *config;
    const ql_attention_kernels *kernels;
    ql_workers *workers;
    ql_attention_panel all; /* as a panel that begins at token 0 and head 0 */
    float *delta;
    size_t m, panels; /* tokens and panels of all sequences */
} attention_job;

static size_t panels_of(const attention_job *job, size_t tokens)
{
    return (tokens + job->kernels->panel - 1) / job->kernels->panel;
}

static attention_job begin(const ql_attention *config, ql_workers *workers)
{
    attention_job job = {.config = config, .kernels = ql_ops_select(ql_cpu_features())->attention,
                         .workers = workers, .m = config->start[config->sequences]};
    assert(config->heads % config->kv_heads == 0 && config->head_dim <= 256);
    assert(ql_scratch_fits(workers, ql_attention_scratch(config, job.m)));
    for (size_t s = 0; s < config->sequences; s++)
        job.panels += panels_of(&job, config->start[s + 1] - config->start[s]);
    job.all = (ql_attention_panel){.head_dim = config->head_dim, .scale = config->scale, .ldlse = job.m,
                                   .group = config->heads / config->kv_heads};
    return job;
}

/* Finds the sequence of panel `index` of job->panels; sets the panel's place in it and returns its first token. */
static size_t locate(const attention_job *job, size_t index, ql_attention_panel *p)
{
    const size_t *start = job->config->start;
    size_t s = 0;
    for (size_t here; index >= (here = panels_of(job, start[s + 1] - start[s])); s++)
        index -= here;
    p->length = start[s + 1] - start[s];
    p->first = index * job->kernels->panel;
    p->rows = p->length - p->first < job->kernels->panel ? p->length - p->first : job->kernels->panel;
    return start[s];
}

static void forward_panel(void *ctx, size_t index, size_t worker)
{
    const attention_job *job = ctx;
    ql_attention_panel p = job->all;
    size_t head = index / job->panels, kv = head / p.group;
    /* The last panels of a sequence see most keys: they go first, so that threads end together. */
    size_t start = locate(job, job->panels - 1 - index % job->panels, &p), token = start + p.first;
    p.q += token * p.ldq + head * p.head_dim;
    p.k += start * p.ldkv + kv * p.head_dim;
    p.v += start * p.ldkv + kv * p.head_dim;
    p.out += token * p.ldo + head * p.head_dim;
    if (p.lse_out)
        p.lse_out += head * job->m + token;
    job->kernels->forward(&p, ql_worker_scratch(job->workers, worker));
}

void ql_attention_forward(const ql_attention *config, const float *q, size_t ldq, const float *k, const float *v,
                          size_t ldkv, float *o, size_t ldo, float *lse, ql_workers *workers)
{
    attention_job job = begin(config, workers);
    job.all.q = q;
    job.all.k = k;
    job.all.v = v;
    job.all.out = o;
    job.all.lse_out = lse;
    job.all.ldq = ldq;
    job.all.ldkv = ldkv;
    job.all.ldo = ldo;
    ql_parallel(workers, job.panels * config->heads, forward_panel, &job);
}

/* delta = sum over a head of o * do: what the softmax's gradient subtracts from each dP of the row. */
static void delta_tokens(void *ctx, size_t index, size_t worker)
{
    const attention_job *job = ctx;
    const ql_attention_panel *p = &job->all;
    const ql_row_kernels *rows = ql_ops_select(ql_cpu_features())->rows;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++)
        for (size_t h = 0; h < job->config->heads; h++)
            job->delta[h * job->m + t] =
                rows->dot(p->head_dim, p->o + t * p->ldo + h * p->head_dim, p->dout + t * p->lddo + h * p->head_dim);
}

static void dkv_panel(void *ctx, size_t index, size_t worker)
{
    const attention_job *job = ctx;
    ql_attention_panel p = job->all;
    size_t kv = index / job->panels, head = kv * p.group;
    size_t start = locate(job, index % job->panels, &p), token = start + p.first;
    p.q += start * p.ldq + head * p.head_dim;
    p.dout += start * p.lddo + head * p.head_dim;
    p.lse += head * job->m + start;
    p.delta += head * job->m + start;
    p.k += token * p.ldkv + kv * p.head_dim;
    p.v += token * p.ldkv + kv * p.head_dim;
    p.dk += token * p.lddkv + kv * p.head_dim;
    p.dv += token * p.lddkv + kv * p.head_dim;
    job->kernels->dkv(&p, ql_worker_scratch(job->workers, worker));
}

static void dq_panel(void *ctx, size_t index, size_t worker)
{
    const attention_job *job = ctx;
    ql_attention_panel p = job->all;
    size_t head = index / job->panels, kv = head / p.group;
    size_t start = locate(job, job->panels - 1 - index % job->panels, &p), token = start + p.first;
    p.q += token * p.ldq + head * p.head_dim;
    p.dout += token * p.lddo + head * p.head_dim;
    p.lse += head * job->m + token;
    p.delta += head * job->m + token;
    p.k += start * p.ldkv + kv * p.head_dim;
    p.v += start * p.ldkv + kv * p.head_dim;
    p.dq += token * p.lddq + head * p.head_dim;
    job->kernels->dq(&p, ql_worker_scratch(job->workers, worker));
}

void ql_attention_backward(const ql_attention *config, const ql_attention_grads *g, ql_workers *workers)
{
    attention_job job = begin(config, workers);
    ql_attention_panel *all = &job.all;
    job.delta = ql_shared_scratch(workers);
    all->q = g->q;
    all->k = g->k;
    all->v = g->v;
    all->o = g->o;
    all->dout = g->dout;
    all->lse = g->lse;
    all->delta = job.delta;
    all->dq = g->dq;
    all->dk = g->dk;
    all->dv = g->dv;
    all->ldq = g->ldq;
    all->ldkv = g->ldkv;
    all->ldo = g->ldo;
    all->lddo = g->lddo;
    all->lddq = g->lddq;
    all->lddkv = g->lddkv;
    ql_parallel(workers, (job.m + TOKENS - 1) / TOKENS, delta_tokens, &job);
    /* dk and dv read all of q and dout; dq, which may lie over one of them, only its own rows. */
    ql_parallel(workers, job.panels * config->kv_heads, dkv_panel, &job);
    ql_parallel(workers, job.panels * config->heads, dq_panel, &job);
}

static void decode_token(void *ctx, size_t index, size_t worker)
{
    const attention_job *job = ctx;
    ql_attention_panel p = job->all;
    size_t kv = index;
    p.q += kv * p.group * p.head_dim;
    p.out += kv * p.group * p.head_dim;
    p.k += kv * p.head_dim;
    p.v += kv * p.head_dim;
    job->kernels->decode(&p, ql_worker_scratch(job->workers, worker));
}

static void decode_panel(void *ctx, size_t index, size_t worker)
{
    const attention_job *job = ctx;
    ql_attention_panel p = job->all;
    size_t head = index / job->panels, kv = head / p.group;
    size_t row = (job->panels - 1 - index % job->panels) * job->kernels->panel;
    p.first += row;
    p.rows = job->m - row < job->kernels->panel ? job->m - row : job->kernels->panel;
    p.q += row * p.ldq + head * p.head_dim;
    p.out += row * p.ldo + head * p.head_dim;
    p.k += kv * p.head_dim;
    p.v += kv * p.head_dim;
    job->kernels->forward(&p, ql_worker_scratch(job->workers, worker));
}

void ql_attention_decode(const ql_attention *config, size_t pos, size_t n, const float *q, size_t ldq, const float *k,
                         const float *v, size_t ldkv, float *o, size_t ldo, ql_workers *workers)
{
    ql_attention one = *config;
    one.sequences = 1;
    one.start = (const size_t[]){0, n};
    attention_job job = begin(&one, workers);
    job.all.first = pos;
    job.all.q = q;
    job.all.k = k;
    job.all.v = v;
    job.all.out = o;
    job.all.ldq = ldq;
    job.all.ldkv = ldkv;
    job.all.ldo = ldo;
    if (n == 1)
        ql_parallel(workers, config->kv_heads, decode_token, &job);
    else
        ql_parallel(workers, job.panels * config->heads, decode_panel, &job);
}

ql_scratch ql_attention_scratch(const ql_attention *config, size_t m)
{
    size_t floats = ql_attention_panel_floats(config->head_dim, config->heads / config->kv_heads);
    return (ql_scratch){.shared = config->heads * m * sizeof(float), .worker = floats * sizeof(float)};
}
