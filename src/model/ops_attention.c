#include <assert.h>
#include <string.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "base/workers.h"
#include "model/ops.h"
#include "model/ops_attention_tiles.h"
#include "model/ops_decode.h"
#include "model/ops_kernels.h"

enum { TOKENS = 16 }; /* a piece of work where there are no panels */

typedef struct attention_job {
    const ql_attention *config;
    const ql_attention_kernels *kernels;
    const ql_row_kernels *rows;
    ql_workers *workers;
    ql_attention_part all; /* as a part that begins at token 0 and head 0 */
    size_t m, panels;      /* tokens and panels of all sequences */
} attention_job;

bool ql_attention_rounds(const ql_attention *config)
{
    return config->bf16 && ql_tiles_select(ql_cpu_features());
}

static size_t panels_of(const attention_job *job, size_t tokens)
{
    return (tokens + job->kernels->panel - 1) / job->kernels->panel;
}

static attention_job begin(const ql_attention *config, ql_workers *workers)
{
    const ql_ops_tier *tier = ql_ops_select(ql_cpu_features());
    attention_job job = {.config = config, .kernels = tier->attention, .rows = tier->rows, .workers = workers,
                         .m = config->start[config->sequences]};
    assert(config->heads % config->kv_heads == 0 && config->head_dim <= 256);
    for (size_t s = 0; s < config->sequences; s++)
        job.panels += panels_of(&job, config->start[s + 1] - config->start[s]);
    job.all = (ql_attention_part){.head_dim = config->head_dim, .scale = config->scale,
                                  .group = config->heads / config->kv_heads,
                                  .window = config->window ? config->window : SIZE_MAX, .softcap = config->softcap};
    return job;
}

/* Finds the sequence of panel `index` of job->panels; sets the panel's place in it and returns its first token. */
static size_t locate(const attention_job *job, size_t index, ql_attention_part *p)
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
    ql_attention_part p = job->all;
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
    if (ql_attention_rounds(config)) {
        ql_tiles_forward(config, q, ldq, k, v, ldkv, o, ldo, lse, workers);
        return;
    }
    attention_job job = begin(config, workers);
    assert(ql_scratch_fits(workers, ql_attention_scratch(config, job.m, false)));
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

/* ---- backward: keys in parts; each gives dk and dv of its keys and a share of dq, which are added up after ---- */

enum { MAX_PARTS = 4, MIN_PART = 256 }; /* of a sequence; few, because each has a dq of its own */

typedef struct backward_job {
    attention_job base;
    const ql_attention_grads *g;
    float *delta;    /* [heads][m] */
    float *dq;       /* [heads][shares] rows of pad floats */
    float *dk, *dv;  /* [heads][m][head_dim] */
    size_t shares;   /* rows of dq of all parts */
} backward_job;

static size_t part_of(size_t length)
{
    size_t part = (length + MAX_PARTS - 1) / MAX_PARTS;
    part = (part + QL_ATTENTION_STREAM - 1) / QL_ATTENTION_STREAM * QL_ATTENTION_STREAM;
    return part > MIN_PART ? part : MIN_PART;
}

/* Rows of dq up to token `start`, at most: a sequence's parts have 1, 3/4, 1/2 and 1/4 of its queries. */
static size_t shares_before(size_t start)
{
    return start * 5 / 2;
}

/* The share of dq in the first row of part `part` of a sequence, for query head `head`. */
static float *share(const backward_job *job, size_t sequence, size_t head, size_t part)
{
    const size_t *start = job->base.config->start;
    size_t length = start[sequence + 1] - start[sequence], row = shares_before(start[sequence]);
    for (size_t i = 0; i < part; i++)
        row += length - i * part_of(length);
    return job->dq + (head * job->shares + row) * ql_attention_pad(job->base.config->head_dim);
}

static backward_job carve(ql_arena *arena, const ql_attention *config, size_t m)
{
    backward_job job = {.shares = shares_before(m)};
    job.delta = ql_take(arena, config->heads * m, float);
    job.dq = ql_take(arena, config->heads * job.shares * ql_attention_pad(config->head_dim), float);
    job.dk = ql_take(arena, config->heads * m * config->head_dim, float);
    job.dv = ql_take(arena, config->heads * m * config->head_dim, float);
    return job;
}

/* delta = sum over a head of o * do: what the softmax's gradient subtracts from each dP of the row. */
static void delta_tokens(void *ctx, size_t index, size_t worker)
{
    const backward_job *job = ctx;
    const ql_attention_grads *g = job->g;
    size_t hd = job->base.all.head_dim, m = job->base.m;
    (void)worker;
    size_t end = (index + 1) * TOKENS < m ? (index + 1) * TOKENS : m;
    for (size_t t = index * TOKENS; t < end; t++)
        for (size_t h = 0; h < job->base.config->heads; h++)
            job->delta[h * m + t] = job->base.rows->dot(hd, g->o + t * g->ldo + h * hd, g->dout + t * g->lddo + h * hd);
}

static void backward_part(void *ctx, size_t index, size_t worker)
{
    const backward_job *job = ctx;
    const ql_attention *config = job->base.config;
    ql_attention_part p = job->base.all;
    size_t head = index % config->heads, sequence = index / config->heads % config->sequences;
    /* Early keys are seen by most queries: they go first, so that threads end together. */
    size_t part = index / config->heads / config->sequences, kv = head / p.group, hd = p.head_dim;
    size_t start = config->start[sequence];
    p.length = config->start[sequence + 1] - start;
    p.first = part * part_of(p.length);
    if (p.first >= p.length)
        return;
    p.rows = p.length - p.first < part_of(p.length) ? p.length - p.first : part_of(p.length);
    p.q += start * p.ldq + head * hd;
    p.dout += start * p.lddo + head * hd;
    p.lse += head * job->base.m + start;
    p.delta += head * job->base.m + start;
    p.k += (start + p.first) * p.ldkv + kv * hd;
    p.v += (start + p.first) * p.ldkv + kv * hd;
    p.dk += (head * job->base.m + start + p.first) * hd;
    p.dv += (head * job->base.m + start + p.first) * hd;
    p.dq = share(job, sequence, head, part);
    job->base.kernels->backward(&p, ql_worker_scratch(job->base.workers, worker));
}

static void sum_dq(const backward_job *job, size_t sequence, size_t token)
{
    const ql_attention *config = job->base.config;
    size_t hd = config->head_dim, pad = ql_attention_pad(hd), start = config->start[sequence];
    size_t step = part_of(config->start[sequence + 1] - start), query = token - start;
    for (size_t h = 0; h < config->heads; h++) {
        float *dq = job->g->dq + token * job->g->lddq + h * hd;
        memcpy(dq, share(job, sequence, h, 0) + query * pad, hd * sizeof *dq);
        for (size_t part = 1; part * step <= query; part++)
            job->base.rows->add(hd, share(job, sequence, h, part) + (query - part * step) * pad, dq);
    }
}

static void sum_heads(const backward_job *job, const float *parts, size_t token, float *sum)
{
    size_t hd = job->base.config->head_dim, group = job->base.all.group;
    for (size_t h = 0; h < job->base.config->heads; h++) {
        const float *x = parts + (h * job->base.m + token) * hd;
        if (h % group == 0)
            memcpy(sum + h / group * hd, x, hd * sizeof *x);
        else
            job->base.rows->add(hd, x, sum + h / group * hd);
    }
}

static void sum_tokens(void *ctx, size_t index, size_t worker)
{
    const backward_job *job = ctx;
    const size_t *start = job->base.config->start;
    size_t end = (index + 1) * TOKENS < job->base.m ? (index + 1) * TOKENS : job->base.m, sequence = 0;
    (void)worker;
    for (size_t t = index * TOKENS; t < end; t++) {
        while (start[sequence + 1] <= t)
            sequence++;
        sum_dq(job, sequence, t);
        sum_heads(job, job->dk, t, job->g->dk + t * job->g->lddkv);
        sum_heads(job, job->dv, t, job->g->dv + t * job->g->lddkv);
    }
}

void ql_attention_backward(const ql_attention *config, const ql_attention_grads *g, ql_workers *workers)
{
    if (ql_attention_rounds(config)) {
        ql_tiles_backward(config, g, workers);
        return;
    }
    ql_arena arena = {.base = ql_shared_scratch(workers)};
    backward_job job = carve(&arena, config, config->start[config->sequences]);
    job.base = begin(config, workers);
    assert(ql_scratch_fits(workers, ql_attention_scratch(config, job.base.m, true)));
    job.g = g;
    ql_attention_part *all = &job.base.all;
    all->q = g->q;
    all->k = g->k;
    all->v = g->v;
    all->dout = g->dout;
    all->lse = g->lse;
    all->delta = job.delta;
    all->dk = job.dk;
    all->dv = job.dv;
    all->ldq = g->ldq;
    all->ldkv = g->ldkv;
    all->lddo = g->lddo;
    all->lddkv = config->head_dim;
    size_t pieces = (job.base.m + TOKENS - 1) / TOKENS;
    ql_parallel(workers, pieces, delta_tokens, &job);
    ql_parallel(workers, MAX_PARTS * config->sequences * config->heads, backward_part, &job);
    ql_parallel(workers, pieces, sum_tokens, &job);
}

ql_scratch ql_attention_scratch(const ql_attention *config, size_t m, bool backward)
{
    ql_arena arena = {0};
    if (backward)
        carve(&arena, config, m);
    size_t floats = ql_attention_floats(config->head_dim, config->heads / config->kv_heads);
    ql_scratch need = {.shared = arena.used, .worker = floats * sizeof(float)};
    if (ql_tiles_select(ql_cpu_features())) /* whatever is allowed now: that may change between two calls */
        need = ql_scratch_max(need, ql_tiles_scratch(config, m, backward));
    return ql_scratch_max(need, ql_decode_scratch(config));
}
