/* Attention of new tokens over a cache. A single token's keys go in parts, so that threads share a long cache
 * even of few heads; each part gives its own softmax's result, and those are then weighed against each other. */
#include "model/ops_decode.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/cpu.h"
#include "base/workers.h"
#include "model/ops_attention_tiles.h"
#include "model/ops_kernels.h"

enum { MAX_PARTS = 16, MIN_PART = 256 }; /* keys */

typedef struct decode_job {
    const ql_attention *config;
    const ql_attention_kernels *kernels;
    ql_workers *workers;
    ql_attention_part all; /* as a part that begins at position 0 and head 0; `rows` new tokens from `first` on */
    size_t parts, part;    /* one token: parts of `part` keys */
    float *out, *lse;      /* [parts][heads][head_dim], [parts][heads] */
} decode_job;

ql_scratch ql_decode_scratch(const ql_attention *config)
{
    return (ql_scratch){.shared = MAX_PARTS * config->heads * (config->head_dim + 1) * sizeof(float)};
}

static void token_part(void *ctx, size_t index, size_t worker)
{
    const decode_job *job = ctx;
    ql_attention_part p = job->all;
    size_t kv = index % job->config->kv_heads, part = index / job->config->kv_heads, head = kv * p.group;
    size_t row = part * job->config->heads + head, first = part * job->part, keys = job->all.first + 1;
    p.rows = keys - first < job->part ? keys - first : job->part;
    p.q += head * p.head_dim;
    p.k += first * p.ldkv + kv * p.head_dim;
    p.v += first * p.ldkv + kv * p.head_dim;
    p.out = job->out + row * p.head_dim;
    p.lse_out = job->lse + row;
    job->kernels->decode(&p, ql_worker_scratch(job->workers, worker));
}

/* The parts' results, each weighted by its share of the whole softmax's denominator. */
static void join_parts(const decode_job *job, size_t head, float *o)
{
    size_t hd = job->config->head_dim, heads = job->config->heads;
    float max = -INFINITY, sum = 0;
    for (size_t i = 0; i < job->parts; i++)
        max = job->lse[i * heads + head] > max ? job->lse[i * heads + head] : max;
    memset(o, 0, hd * sizeof *o);
    for (size_t i = 0; i < job->parts; i++) {
        float weight = expf(job->lse[i * heads + head] - max);
        const float *x = job->out + (i * heads + head) * hd;
        sum += weight;
        for (size_t d = 0; d < hd; d++)
            o[d] += weight * x[d];
    }
    for (size_t d = 0; d < hd; d++)
        o[d] /= sum;
}

static void one_token(decode_job *job)
{
    if (job->all.first >= job->all.window) { /* the keys before the window do not count */
        size_t skipped = job->all.first + 1 - job->all.window;
        job->all.first -= skipped;
        job->all.k += skipped * job->all.ldkv;
        job->all.v += skipped * job->all.ldkv;
    }
    size_t keys = job->all.first + 1, heads = job->config->heads, hd = job->config->head_dim;
    job->part = (keys + MAX_PARTS - 1) / MAX_PARTS;
    job->part = job->part > MIN_PART ? job->part : MIN_PART;
    job->parts = (keys + job->part - 1) / job->part;
    job->out = ql_shared_scratch(job->workers);
    job->lse = job->out + job->parts * heads * hd;
    ql_parallel(job->workers, job->config->kv_heads * job->parts, token_part, job);
    for (size_t head = 0; head < heads; head++)
        join_parts(job, head, job->all.out + head * hd);
}

static void token_panel(void *ctx, size_t index, size_t worker)
{
    const decode_job *job = ctx;
    ql_attention_part p = job->all;
    size_t panel = job->kernels->panel, panels = (job->all.rows + panel - 1) / panel;
    size_t head = index / panels, kv = head / p.group, row = index % panels * panel;
    p.first += row;
    p.rows = job->all.rows - row < panel ? job->all.rows - row : panel;
    p.q += row * p.ldq + head * p.head_dim;
    p.out += row * p.ldo + head * p.head_dim;
    p.k += kv * p.head_dim;
    p.v += kv * p.head_dim;
    job->kernels->forward(&p, ql_worker_scratch(job->workers, worker));
}

void ql_attention_decode(const ql_attention *config, size_t pos, size_t n, const float *q, size_t ldq, const float *k,
                         const float *v, size_t ldkv, float *o, size_t ldo, ql_workers *workers)
{
    decode_job job = {.config = config, .kernels = ql_ops_select(ql_cpu_features())->attention,
                      .workers = workers};
    assert(ql_scratch_fits(workers, ql_attention_scratch(config, pos + n, false)));
    if (n >= QL_TILES_BLOCK && ql_attention_rounds(config)) {
        ql_tiles_decode(config, pos, n, q, ldq, k, v, ldkv, o, ldo, workers);
        return;
    }
    job.all = (ql_attention_part){.head_dim = config->head_dim, .scale = config->scale, .first = pos, .rows = n,
                                  .group = config->heads / config->kv_heads,
                                  .window = config->window ? config->window : SIZE_MAX, .softcap = config->softcap, .q = q, .k = k, .v = v, .out = o,
                                  .ldq = ldq, .ldkv = ldkv, .ldo = ldo};
    size_t panel = job.kernels->panel;
    if (n == 1)
        one_token(&job);
    else
        ql_parallel(workers, (n + panel - 1) / panel * config->heads, token_panel, &job);
}
