/* What the tests of attention share: a problem with its arrays, and who sees whom. */
#ifndef QL_TESTS_ATTENTION_SUPPORT_H
#define QL_TESTS_ATTENTION_SUPPORT_H

#include "model/ops_attention_tiles.h"
#include "ops_support.h"

typedef struct shape {
    size_t heads, kv_heads, head_dim, sequences, lengths[3], window;
    float softcap;
} shape;

/* The kinds of tiles of ops_attention_tiles.h; with QL_AMX_EMULATED there is that one alone. */
#ifdef QL_AMX_EMULATED
enum { KINDS = 1 };
static const char *const kind_names[] = {"emulated"};
static const ql_tiles_kernels *const kinds[] = {&ql_tiles_emulated};
#elif !defined __x86_64__
enum { KINDS = 0 };
static const char *const kind_names[] = {"none"};
static const ql_tiles_kernels *const kinds[] = {NULL};
#else
enum { KINDS = 2 };
static const char *const kind_names[] = {"dots", "amx"};
static const ql_tiles_kernels *const kinds[] = {&ql_tiles_dots, &ql_tiles_amx};
#endif

/* As use_tier() does. */
static inline bool use_kind(int i)
{
    setenv("QLORA_ISA", strcmp(kind_names[i], "dots") == 0 ? "avx512-bf16" : "amx", 1);
    if (ql_tiles_select(ql_cpu_features()) == kinds[i])
        return true;
    printf("skipped: tiles by %s are not to be had here, or this process runs another kind already\n", kind_names[i]);
    return false;
}

enum { GAP = 3 };

/* All arrays of one case; most rows have a gap of NaN after them. */
typedef struct problem {
    ql_attention config;
    size_t start[4], m, ldq, ldkv;
    float *q, *k, *v, *o, *dout, *lse, *dq, *dk, *dv;
} problem;

static inline void setup(problem *p, const shape *s, bool bf16)
{
    *p = (problem){.config = {s->heads, s->kv_heads, s->head_dim, 1 / sqrtf((float)s->head_dim), s->sequences, 0,
                              s->window, s->softcap, bf16}};
    for (size_t i = 0; i < s->sequences; i++)
        p->start[i + 1] = p->start[i] + s->lengths[i];
    p->config.start = p->start;
    p->m = p->start[s->sequences];
    size_t cols = s->heads * s->head_dim, kv_cols = s->kv_heads * s->head_dim;
    p->ldq = cols + (cols % 256 ? GAP : 0); /* rows a multiple of 1 KB apart are read in another way */
    p->ldkv = kv_cols + (kv_cols % 256 ? GAP : 0);
    p->q = random_matrix(p->m, cols, p->ldq);
    p->k = random_matrix(p->m, kv_cols, p->ldkv);
    p->v = random_matrix(p->m, kv_cols, p->ldkv);
    p->dout = random_matrix(p->m, cols, p->ldq);
    for (size_t t = 0; t < p->m; t++) /* so that some scores are large */
        for (size_t i = 0; i < cols; i++)
            p->q[t * p->ldq + i] *= 3;
    p->o = empty_matrix(p->m, cols, p->ldq);
    p->dq = empty_matrix(p->m, cols, p->ldq);
    p->dk = empty_matrix(p->m, kv_cols, p->ldkv);
    p->dv = empty_matrix(p->m, kv_cols, p->ldkv);
    p->lse = guarded(s->heads * p->m);
}

static inline void run(problem *p, ql_workers *workers)
{
    ql_attention_forward(&p->config, p->q, p->ldq, p->k, p->v, p->ldkv, p->o, p->ldq, p->lse, workers);
    ql_attention_grads g = {p->q,  p->k,   p->v,    p->o,   p->dout, p->lse, p->dq,  p->dk,
                            p->dv, p->ldq, p->ldkv, p->ldq, p->ldq,  p->ldq, p->ldkv};
    ql_attention_backward(&p->config, &g, workers);
}

static inline size_t sequence_of(const problem *p, size_t token)
{
    size_t s = 0;
    while (p->start[s + 1] <= token)
        s++;
    return s;
}

/* The first token of its sequence that `token` sees. */
static inline size_t first_seen(const problem *p, size_t token)
{
    size_t first = p->start[sequence_of(p, token)], window = p->config.window;
    return window && token - first >= window ? token - window + 1 : first;
}

static inline double capped(const problem *p, double score)
{
    return p->config.softcap > 0 ? p->config.softcap * tanh(score / p->config.softcap) : score;
}

#endif
