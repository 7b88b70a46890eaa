#include "model/ops_attention_tiles.h"

#include <assert.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "base/workers.h"

enum { MIN_PART = 4 /* blocks */, TASKS = 16 /* of the backward pass, if there are heads enough */ };

typedef struct tiles_job {
    ql_tiles tiles;
    const ql_tiles_kernels *kernels;
    ql_workers *workers;
    size_t first; /* forward: the first block that a query sees */
} tiles_job;

static size_t blocks_of(size_t tokens)
{
    return (tokens + QL_TILES_BLOCK - 1) / QL_TILES_BLOCK;
}

static ql_tiles shape_of(const ql_attention *config, size_t tokens)
{
    ql_tiles t = {.heads = config->heads,
                  .kv_heads = config->kv_heads,
                  .group = config->heads / config->kv_heads,
                  .head_dim = config->head_dim,
                  .pad = blocks_of(config->head_dim) * QL_TILES_BLOCK,
                  .queries = tokens,
                  .tokens = tokens,
                  .blocks = blocks_of(tokens),
                  .scale = config->scale,
                  .fold = ql_tiles_fold(config->scale, config->softcap),
                  .cap = config->softcap * 0x1.715476p+0f};
    t.parts = t.blocks / MIN_PART < QL_TILES_PARTS ? t.blocks / MIN_PART : QL_TILES_PARTS;
    t.parts = t.parts > 1 ? t.parts : 1;
    t.splits = (TASKS + t.kv_heads * QL_TILES_PARTS - 1) / (t.kv_heads * QL_TILES_PARTS);
    t.splits = t.splits < t.group ? t.splits : t.group;
    return t;
}

/* Blocks of a head's shares of dq, at most. Parts of equal work of one sequence begin at 0, 0.13, 0.29 and 0.5 of it.
 */
static size_t most_shares(const ql_tiles *t)
{
    return t->blocks + (t->parts - 1) * t->blocks * 3 / 4;
}

static void carve_keys(ql_arena *arena, ql_tiles *t)
{
    size_t words = t->kv_heads * t->blocks * t->pad * QL_TILES_BLOCK;
    t->from = ql_take(arena, (t->blocks + 1) * QL_TILES_BLOCK, int32_t);
    t->k_rows = ql_take(arena, words, uint16_t);
    t->v_turned_pairs = ql_take(arena, words, uint16_t);
}

static void carve(ql_arena *arena, ql_tiles *t)
{
    size_t block = t->pad * QL_TILES_BLOCK, keys = t->kv_heads * t->blocks * block,
           queries = t->heads * t->blocks * block;
    t->from = ql_take(arena, (t->blocks + 1) * QL_TILES_BLOCK, int32_t);
    t->last = ql_take(arena, t->blocks, size_t);
    t->exponent = ql_take(arena, t->heads * t->blocks * QL_TILES_BLOCK, float);
    t->delta = ql_take(arena, t->heads * t->blocks * QL_TILES_BLOCK, float);
    t->k_rows = ql_take(arena, keys, uint16_t);
    t->k_turned_pairs = ql_take(arena, keys, uint16_t);
    t->v_rows = ql_take(arena, keys, uint16_t);
    t->q_turned = ql_take(arena, queries, uint16_t);
    t->q_pairs = ql_take(arena, queries, uint16_t);
    t->dout_turned = ql_take(arena, queries, uint16_t);
    t->dout_pairs = ql_take(arena, queries, uint16_t);
    t->dk_sums = ql_take(arena, t->splits * keys, float);
    t->dv_sums = ql_take(arena, t->splits * keys, float);
    t->dq_shares = ql_take(arena, most_shares(t) * t->heads * block, float);
}

static void carve_for(ql_arena *arena, ql_tiles *t, bool backward)
{
    if (backward)
        carve(arena, t);
    else
        carve_keys(arena, t);
}

ql_scratch ql_tiles_scratch(const ql_attention *config, size_t m, bool backward)
{
    ql_arena arena = {0};
    ql_tiles t = shape_of(config, m);
    carve_for(&arena, &t, backward);
    return (ql_scratch){.shared = arena.used, .worker = ql_tiles_select(ql_cpu_features())->scratch};
}

static tiles_job begin(const ql_attention *config, size_t tokens, bool backward, ql_workers *workers)
{
    tiles_job job = {
        .tiles = shape_of(config, tokens), .kernels = ql_tiles_select(ql_cpu_features()), .workers = workers};
    ql_arena arena = {.base = ql_shared_scratch(workers)};
    assert(config->heads % config->kv_heads == 0 && config->head_dim <= 256 && tokens <= INT32_MAX / 2);
    assert(ql_scratch_fits(workers, ql_tiles_scratch(config, tokens, backward)));
    carve_for(&arena, &job.tiles, backward);
    return job;
}

/* Sequences of tokens [start[s], start[s + 1]); tokens that only fill up the last block see what its last one sees. */
static void find_first_seen(ql_tiles *t, const size_t *start, size_t window)
{
    size_t s = 0, i = 0;
    for (; i < t->tokens; i++) {
        while (start[s + 1] <= i)
            s++;
        t->from[i] = (int32_t)(window && i - start[s] >= window ? i - window + 1 : start[s]);
    }
    for (; i < (t->blocks + 1) * QL_TILES_BLOCK; i++)
        t->from[i] = t->from[i - 1];
}

static void pack_keys(void *ctx, size_t block, size_t worker)
{
    const tiles_job *job = ctx;
    (void)worker;
    for (size_t kv = 0; kv < job->tiles.kv_heads; kv++)
        job->kernels->pack_kv(&job->tiles, kv, job->first + block);
}

static void forward_block(void *ctx, size_t index, size_t worker)
{
    const tiles_job *job = ctx;
    const ql_tiles *t = &job->tiles;
    size_t blocks = blocks_of(t->queries);
    /* The last blocks see most keys: they go first, so that threads end together. */
    job->kernels->forward(t, index % t->heads, blocks - 1 - index / t->heads, ql_worker_scratch(job->workers, worker));
}

static void run_forward(tiles_job *job)
{
    job->first = (size_t)job->tiles.from[job->tiles.first] / QL_TILES_BLOCK;
    ql_parallel(job->workers, job->tiles.blocks - job->first, pack_keys, job);
    ql_parallel(job->workers, blocks_of(job->tiles.queries) * job->tiles.heads, forward_block, job);
}

static void set_forward(ql_tiles *t, const float *q, size_t ldq, const float *k, const float *v, size_t ldkv, float *o,
                        size_t ldo)
{
    t->q = q;
    t->k = k;
    t->v = v;
    t->out = o;
    t->ldq = ldq;
    t->ldkv = ldkv;
    t->ldo = ldo;
}

void ql_tiles_forward(const ql_attention *config, const float *q, size_t ldq, const float *k, const float *v,
                      size_t ldkv, float *o, size_t ldo, float *lse, ql_workers *workers)
{
    tiles_job job = begin(config, config->start[config->sequences], false, workers);
    set_forward(&job.tiles, q, ldq, k, v, ldkv, o, ldo);
    job.tiles.lse_out = lse;
    find_first_seen(&job.tiles, config->start, config->window);
    run_forward(&job);
}

void ql_tiles_decode(const ql_attention *config, size_t pos, size_t n, const float *q, size_t ldq, const float *k,
                     const float *v, size_t ldkv, float *o, size_t ldo, ql_workers *workers)
{
    tiles_job job = begin(config, pos + n, false, workers);
    set_forward(&job.tiles, q, ldq, k, v, ldkv, o, ldo);
    job.tiles.queries = n;
    job.tiles.first = pos;
    find_first_seen(&job.tiles, (const size_t[]){0, pos + n}, config->window);
    run_forward(&job);
}

/* ---- backward ---- */

/* Blocks of queries from `key` on that see one of its keys. */
static size_t work_of(const ql_tiles *t, size_t key)
{
    return t->last[key] - key + 1;
}

/* Parts of about the same work, fewer where their shares of dq would not fit. */
static void divide(ql_tiles *t)
{
    size_t most = most_shares(t), all = 0, shares;
    for (size_t key = 0; key < t->blocks; key++)
        all += work_of(t, key);
    do {
        size_t key = 0, done = 0;
        shares = 0;
        for (size_t i = 0; i < t->parts; i++) {
            ql_tiles_part *p = &t->part[i];
            p->first = key;
            while (key < t->blocks &&
                   (i + 1 == t->parts || (2 * done + work_of(t, key)) * t->parts <= 2 * (i + 1) * all))
                done += work_of(t, key++);
            p->end = key;
            p->queries = p->end > p->first ? t->last[p->end - 1] + 1 - p->first : 0;
            p->share = shares;
            shares += p->queries;
        }
    } while (shares > most && t->parts-- > 1);
}

static void find_last_seeing(ql_tiles *t)
{
    for (size_t key = 0, query = 0; key < t->blocks; key++) {
        while (query + 1 < t->blocks && (size_t)t->from[(query + 1) * QL_TILES_BLOCK] / QL_TILES_BLOCK <= key)
            query++;
        t->last[key] = query;
    }
}

static void pack_block(void *ctx, size_t block, size_t worker)
{
    const tiles_job *job = ctx;
    (void)worker;
    for (size_t kv = 0; kv < job->tiles.kv_heads; kv++)
        job->kernels->pack_kv_back(&job->tiles, kv, block);
    for (size_t head = 0; head < job->tiles.heads; head++)
        job->kernels->pack_head_back(&job->tiles, head, block);
}

/* The first head of a group's split; that of the next one is the end. */
static size_t head_of(const ql_tiles *t, size_t kv, size_t split)
{
    return kv * t->group + split * t->group / t->splits;
}

/* A group's parts one after another: what they read they share. */
static void backward_part(void *ctx, size_t index, size_t worker)
{
    const tiles_job *job = ctx;
    const ql_tiles *t = &job->tiles;
    size_t kv = index / t->parts / t->splits, split = index / t->parts % t->splits, first = head_of(t, kv, split);
    for (size_t head = first; head < head_of(t, kv, split + 1); head++)
        job->kernels->backward(t, head, split, &t->part[index % t->parts], head > first,
                               ql_worker_scratch(job->workers, worker));
}

static void finish_block(void *ctx, size_t block, size_t worker)
{
    const tiles_job *job = ctx;
    (void)worker;
    for (size_t kv = 0; kv < job->tiles.kv_heads; kv++)
        job->kernels->finish_kv(&job->tiles, kv, block);
    for (size_t head = 0; head < job->tiles.heads && !job->tiles.by_head; head++)
        job->kernels->finish_head(&job->tiles, head, block);
}

/* All of a split's heads, packed where the worker packed the one before: that is still in its cache. */
static void backward_split(void *ctx, size_t index, size_t worker)
{
    const tiles_job *job = ctx;
    ql_tiles t = job->tiles;
    size_t kv = index % t.kv_heads, split = t.splits - 1 - index / t.kv_heads; /* the last ones have most heads */
    size_t first = head_of(&t, kv, split);
    t.kv_shift = kv - worker;
    for (size_t block = 0; block < t.blocks; block++)
        job->kernels->pack_kv_back(&t, kv, block);
    for (size_t head = first; head < head_of(&t, kv, split + 1); head++) {
        t.head_shift = head - worker;
        for (size_t block = 0; block < t.blocks; block++)
            job->kernels->pack_head_back(&t, head, block);
        for (size_t i = 0; i < t.parts; i++)
            job->kernels->backward(&t, head, split, &t.part[i], head > first, ql_worker_scratch(job->workers, worker));
        for (size_t block = 0; block < t.blocks; block++)
            job->kernels->finish_head(&t, head, block);
    }
}

void ql_tiles_backward(const ql_attention *config, const ql_attention_grads *g, ql_workers *workers)
{
    tiles_job job = begin(config, config->start[config->sequences], true, workers);
    ql_tiles *t = &job.tiles;
    assert(g->dq != g->dout || g->lddq == g->lddo);
    set_forward(t, g->q, g->ldq, g->k, g->v, g->ldkv, NULL, g->ldo);
    t->o = g->o;
    t->dout = g->dout;
    t->lse = g->lse;
    t->dq = g->dq;
    t->dk = g->dk;
    t->dv = g->dv;
    t->lddo = g->lddo;
    t->lddq = g->lddq;
    t->lddkv = g->lddkv;
    find_first_seen(t, config->start, config->window);
    find_last_seeing(t);
    divide(t);
    t->by_head = ql_workers_count(workers) <= t->kv_heads;
    if (t->by_head) {
        ql_parallel(workers, t->kv_heads * t->splits, backward_split, &job);
    } else { /* too few heads: all is packed before parts of them begin. The sums are the same. */
        ql_parallel(workers, t->blocks, pack_block, &job);
        ql_parallel(workers, t->kv_heads * t->splits * t->parts, backward_part, &job);
    }
    ql_parallel(workers, t->blocks, finish_block, &job);
}
