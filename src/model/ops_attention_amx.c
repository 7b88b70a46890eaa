/* The kernels of ops_attention_tiles.h; QL_TIER names the tiles this file is compiled for. */
#include <math.h>
#include <stdbool.h>

#include "model/ops_attention_pack.h"
#include "model/ops_tier.h"
#include "model/ops_vec.h"

enum { CHUNK = 8 /* blocks of keys that forward takes at once */, KEYS = 2, QUERIES = 4 /* blocks of a step backward */ };

static const float NOTHING = -1e30f; /* the maximum of no scores; infinity less infinity would be NaN */

/* Block `block` of a head's packed array. */
static inline uint16_t *at(uint16_t *packed, const ql_tiles *t, size_t head, size_t block)
{
    return packed + (head * t->blocks + block) * t->pad * BLOCK;
}

static inline source rows_of(const ql_tiles *t, const float *x, size_t ld, size_t head, size_t row, size_t rows, float factor)
{
    return (source){x + row * ld + head * t->head_dim, ld, remains(rows, row), t->head_dim, factor};
}

/* ---- forward: 32 queries of a head ---- */

typedef struct forward_state {
    _Alignas(64) uint16_t q[BLOCK * WIDEST];
    float s[2][CHUNK * BLOCK][SIDE];     /* [half of the queries][key][query] */
    uint16_t weight[2][CHUNK][TILE];     /* exp of them in pairs of keys, from the right */
    float out[WIDEST / BLOCK][4][AREA];  /* transposed: [16 dimensions, below 16 more][half of the queries] */
    float max[2][SIDE], sum[2][SIDE];    /* the maximum rounded up: changing it costs no rounding */
} forward_state;

static void pack_keys(const ql_tiles *t, size_t block)
{
    for (size_t kv = 0; kv < t->kv_heads; kv++) {
        source k = rows_of(t, t->k, t->ldkv, kv, block * BLOCK, t->tokens, 1);
        source v = rows_of(t, t->v, t->ldkv, kv, block * BLOCK, t->tokens, 1);
        pack_rows(&k, t->pad, at(t->k_rows, t, kv, block));
        pack_turned_pairs(&v, t->pad, at(t->v_turned_pairs, t, kv, block));
    }
}

/* Minus infinity where queries from position `query` on do not see a key of the block at `key`. */
static void hide(const ql_tiles *t, float s[BLOCK][SIDE], size_t key, size_t query)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i own = _mm512_add_epi32(lane, _mm512_set1_epi32((int)query)), from = _mm512_loadu_si512(t->from + query);
    for (size_t r = 0; r < BLOCK; r++) {
        __m512i position = _mm512_set1_epi32((int)(key + r));
        __mmask16 seen = _mm512_cmple_epi32_mask(position, own) & _mm512_cmpge_epi32_mask(position, from);
        _mm512_store_ps(s[r], _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), seen, s[r]));
    }
}

/* Scores of `cells` blocks of keys from block `first` on. */
static void scores(const ql_tiles *t, forward_state *f, size_t kv, size_t first, size_t cells, size_t query)
{
    size_t steps = t->pad / BLOCK;
    side b = {f->q, f->q + steps * TILE, TILE};
    for (size_t i = 0; i < cells; i++) {
        const uint16_t *k = at(t->k_rows, t, kv, first + i);
        multiply((side){k, k + steps * TILE, TILE}, b, steps, false, f->s[0][i * BLOCK], CHUNK * BLOCK * SIDE, AREA);
    }
    for (size_t half = 0; half < 2; half++) {
        for (size_t r = 0; t->cap > 0 && r < cells * BLOCK; r++)
            vstore(f->s[half][r], vset(t->cap) * vtanh(vload(f->s[half][r])));
        for (size_t i = 0; i < cells; i++) {
            size_t key = (first + i) * BLOCK;
            if (key + BLOCK > query + 1 || key < (size_t)t->from[query + BLOCK - 1])
                hide(t, f->s[half] + i * BLOCK, key, query + half * SIDE);
        }
    }
}

/* The weights of `rows` keys; what was summed under the maximum before is scaled down to the new one. */
static void softmax(forward_state *f, size_t half, size_t rows, size_t out_tiles, bool first)
{
    vf before = vload(f->max[half]), top[4] = {before, before, before, before}, sum[2] = {vload(f->sum[half]), vset(0)};
    for (size_t r = 0; r < rows; r += 4)
        for (size_t i = 0; i < 4; i++)
            top[i] = vmax(vload(f->s[half][r + i]), top[i]);
    vf max = _mm512_roundscale_ps(vmax(vmax(top[0], top[1]), vmax(top[2], top[3])), _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    if (!first && _mm512_cmp_ps_mask(max, before, _CMP_NEQ_UQ)) {
        vf shrink = vscale2(vset(1), vmax(before - max, vset(-200)));
        sum[0] = sum[0] * shrink;
        for (size_t i = 0; i < out_tiles; i++)
            for (size_t r = 0; r < 2 * AREA; r += SIDE) {
                float *line = f->out[i][r / AREA * 2 + half] + r % AREA;
                vstore(line, vload(line) * shrink);
            }
    }
    for (size_t r = 0; r < rows; r += 2) {
        vf above = exp2_cheap(vload(f->s[half][r]) - max), below = exp2_cheap(vload(f->s[half][r + 1]) - max);
        sum[0] = sum[0] + above;
        sum[1] = sum[1] + below;
        _mm512_store_si512(f->weight[half][0] + r / 2 * BLOCK, interleaved(above, below));
    }
    vstore(f->max[half], max);
    vstore(f->sum[half], sum[0] + sum[1]);
}

static void values(const ql_tiles *t, forward_state *f, size_t kv, size_t first, size_t cells, bool add)
{
    side b = {f->weight[0][0], f->weight[1][0], TILE};
    for (size_t i = 0; i < t->pad / BLOCK; i++) {
        const uint16_t *v = at(t->v_turned_pairs, t, kv, first) + i * 2 * TILE;
        multiply((side){v, v + TILE, t->pad * BLOCK}, b, cells, add, f->out[i][0], AREA, 2 * AREA);
    }
}

/* A tile of [16 dimensions][16 rows of x], turned, to the rows that are there; what comes `next` floats further will be
 * written soon. */
static inline void put_turned(__m512i line[SIDE], float *x, size_t ld, size_t rows, size_t cols, size_t next)
{
    turn16(line);
#pragma GCC unroll 16
    for (size_t i = 0; i < SIDE; i++) {
        __builtin_prefetch(x + i * ld + next, 1);
        _mm512_mask_storeu_ps(x + i * ld, i < rows ? some_lanes(cols) : 0, (__m512)line[i]);
    }
}

static void put_out(const ql_tiles *t, const forward_state *f, size_t head, size_t row)
{
    const float ln2 = 0x1.62e43p-1f;
    for (size_t half = 0; half < 2; half++) {
        size_t query = row + half * SIDE, rows = remains(t->queries, query);
        vf share = vset(1) / vload(f->sum[half]);
        for (size_t col = 0; col < t->head_dim; col += SIDE) {
            const float *tile = f->out[col / BLOCK][col % BLOCK / SIDE * 2 + half];
            __m512i line[SIDE];
#pragma GCC unroll 16
            for (size_t i = 0; i < SIDE; i++)
                line[i] = (__m512i)(vload(tile + i * SIDE) * share);
            put_turned(line, t->out + query * t->ldo + head * t->head_dim + col, t->ldo, rows, t->head_dim - col,
                       t->head_dim);
        }
        for (size_t i = 0; t->lse_out && i < SIDE && i < rows; i++)
            t->lse_out[head * t->queries + query + i] = (f->max[half][i] + log2f(f->sum[half][i])) * ln2;
    }
}

static void forward(const ql_tiles *t, size_t head, size_t block, void *scratch)
{
    forward_state *f = scratch;
    size_t row = block * BLOCK, query = t->first + row, kv = head / t->group;
    source q = rows_of(t, t->q, t->ldq, head, row, t->queries, t->fold);
    pack_turned(&q, t->pad, plain_order, f->q);
    size_t first = (size_t)t->from[query] / BLOCK, seen = query + BLOCK < t->tokens ? query + BLOCK : t->tokens;
    size_t end = (seen + BLOCK - 1) / BLOCK;
    for (size_t half = 0; half < 2; half++) {
        vstore(f->max[half], vset(NOTHING));
        vstore(f->sum[half], vset(0));
    }
    tiles_begin();
    for (size_t key = first; key < end; key += CHUNK) {
        size_t cells = end - key < CHUNK ? end - key : CHUNK;
        scores(t, f, kv, key, cells, query);
        for (size_t half = 0; half < 2; half++)
            softmax(f, half, cells * BLOCK, t->pad / BLOCK, key == first);
        values(t, f, kv, key, cells, key > first);
    }
    tiles_end();
    put_out(t, f, head, row);
}

/* ---- backward ---- */

/* delta and exponents of a block of queries, in lane_order. */
static void pack_queries(const ql_tiles *t, size_t head, size_t block)
{
    size_t row = block * BLOCK, lanes = (head * t->blocks + block) * BLOCK;
    source o = rows_of(t, t->o, t->ldo, head, row, t->tokens, 1), d = rows_of(t, t->dout, t->lddo, head, row, t->tokens, 1);
    for (size_t half = 0; half < BLOCK; half += SIDE) {
        __m512i line[SIDE];
#pragma GCC unroll 16
        for (size_t i = 0; i < SIDE; i++) {
            vf sum = vset(0);
            for (size_t col = 0; col < t->head_dim; col += SIDE) { /* dout as the tiles see it, so that its rounding cancels */
                __m256i rounded = (__m256i)_mm512_cvtneps_pbh(get(&d, lane_order[half + i], col));
                vf x = (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16);
                sum = vfma(get(&o, lane_order[half + i], col), x, sum);
            }
            line[i] = (__m512i)sum;
        }
        turn16(line);
        vf sum = vset(0);
#pragma GCC unroll 16
        for (size_t i = 0; i < SIDE; i++)
            sum = sum + (vf)line[i];
        vstore(t->delta + lanes + half, sum);
    }
    for (size_t i = 0; i < BLOCK; i++) { /* what is not there weighs nothing */
        size_t token = row + lane_order[i];
        t->exponent[lanes + i] = token < t->tokens ? t->lse[head * t->tokens + token] * 0x1.715476p+0f : INFINITY;
    }
}

static void pack(const ql_tiles *t, size_t block)
{
    for (size_t kv = 0; kv < t->kv_heads; kv++) {
        source k = rows_of(t, t->k, t->ldkv, kv, block * BLOCK, t->tokens, 1);
        source v = rows_of(t, t->v, t->ldkv, kv, block * BLOCK, t->tokens, 1);
        pack_rows(&k, t->pad, at(t->k_rows, t, kv, block));
        pack_turned_pairs(&k, t->pad, at(t->k_turned_pairs, t, kv, block));
        pack_rows(&v, t->pad, at(t->v_rows, t, kv, block));
    }
    for (size_t head = 0; head < t->heads; head++) {
        source q = rows_of(t, t->q, t->ldq, head, block * BLOCK, t->tokens, t->fold);
        source d = rows_of(t, t->dout, t->lddo, head, block * BLOCK, t->tokens, 1);
        pack_turned(&q, t->pad, lane_order, at(t->q_turned, t, head, block));
        pack_pairs(&q, t->pad, lane_order, at(t->q_pairs, t, head, block));
        pack_turned(&d, t->pad, lane_order, at(t->dout_turned, t, head, block));
        pack_pairs(&d, t->pad, lane_order, at(t->dout_pairs, t, head, block));
        pack_queries(t, head, block);
    }
}

typedef struct backward_state {
    _Alignas(64) float s[2][2][SIDE][SIDE], ds[2][2][SIDE][SIDE]; /* [half of the keys][half of the queries] */
    uint16_t weight[KEYS][2][QUERIES][TILE];  /* [keys][half of them][queries]: from the left, over queries */
    uint16_t grad[KEYS][2][QUERIES][TILE];    /* of the scores, so */
    uint16_t grad_pairs[KEYS][QUERIES][2][TILE]; /* and from the right, over keys; [half of the queries] */
} backward_state;

/* A task's block of keys and of queries. */
typedef struct cell {
    size_t head, kv, key, query;   /* blocks */
    uint16_t *weight, *grad;       /* the upper half's; the lower one's is QUERIES * TILE further */
    uint16_t *grad_pairs;
} cell;

/* s and ds, the weights' gradient, become the weights and the scores' gradient. */
static inline __attribute__((always_inline)) void softmax_gradient(const ql_tiles *t, backward_state *b, const cell *c,
                                                                   bool border, bool capped)
{
    const float *exponents = t->exponent + (c->head * t->blocks + c->query) * BLOCK;
    const float *deltas = t->delta + (c->head * t->blocks + c->query) * BLOCK;
    vf exponent[2] = {vload(exponents), vload(exponents + SIDE)}, delta[2] = {vload(deltas), vload(deltas + SIDE)};
    __m512i own[2], from[2];
    for (size_t half = 0; border && half < 2; half++) {
        const int32_t *plain = t->from + c->query * BLOCK;
        __m512i order = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(lane_order + half * SIDE)));
        own[half] = _mm512_add_epi32(order, _mm512_set1_epi32((int)(c->query * BLOCK)));
        from[half] = _mm512_permutex2var_epi32(_mm512_loadu_si512(plain), order, _mm512_loadu_si512(plain + SIDE));
    }
    for (size_t r = 0; r < BLOCK; r += 2) {
        __m512i grads[2];
#pragma GCC unroll 2
        for (size_t i = 0; i < 2; i++) {
            size_t key = r + i;
            vf e[2], g[2];
#pragma GCC unroll 2
            for (size_t half = 0; half < 2; half++) {
                vf s = vload(b->s[key / SIDE][half][key % SIDE]), slope = vset(1);
                if (capped) {
                    vf bent = vtanh(s);
                    s = vset(t->cap) * bent;
                    slope = vset(1) - bent * bent;
                }
                if (border) {
                    __m512i position = _mm512_set1_epi32((int)(c->key * BLOCK + key));
                    __mmask16 seen = _mm512_cmple_epi32_mask(position, own[half]) &
                                     _mm512_cmpge_epi32_mask(position, from[half]);
                    s = _mm512_mask_mov_ps(vset(-INFINITY), seen, s);
                }
                e[half] = exp2_cheap(s - exponent[half]);
                g[half] = e[half] * (vload(b->ds[key / SIDE][half][key % SIDE]) - delta[half]);
                if (capped)
                    g[half] = g[half] * slope;
            }
            size_t line = key / SIDE * QUERIES * TILE + key % SIDE * BLOCK;
            grads[i] = (__m512i)_mm512_cvtne2ps_pbh(g[1], g[0]);
            _mm512_store_si512(c->weight + line, (__m512i)_mm512_cvtne2ps_pbh(e[1], e[0]));
            _mm512_store_si512(c->grad + line, grads[i]);
        }
        _mm512_store_si512(c->grad_pairs + r / 2 * BLOCK, _mm512_unpacklo_epi16(grads[0], grads[1]));
        _mm512_store_si512(c->grad_pairs + TILE + r / 2 * BLOCK, _mm512_unpackhi_epi16(grads[0], grads[1]));
    }
}

static void work_cell(const ql_tiles *t, backward_state *b, const cell *c)
{
    size_t steps = t->pad / BLOCK, half = steps * TILE;
    const uint16_t *k = at(t->k_rows, t, c->kv, c->key), *v = at(t->v_rows, t, c->kv, c->key);
    const uint16_t *q = at(t->q_turned, t, c->head, c->query), *d = at(t->dout_turned, t, c->head, c->query);
    multiply((side){k, k + half, TILE}, (side){q, q + half, TILE}, steps, false, b->s[0][0][0], AREA, 2 * AREA);
    multiply((side){v, v + half, TILE}, (side){d, d + half, TILE}, steps, false, b->ds[0][0][0], AREA, 2 * AREA);
    bool border = c->key == c->query || c->key * BLOCK < (size_t)t->from[c->query * BLOCK + BLOCK - 1];
    if (t->cap > 0)
        softmax_gradient(t, b, c, true, true);
    else if (border)
        softmax_gradient(t, b, c, true, false);
    else
        softmax_gradient(t, b, c, false, false);
}

/* sums[32 keys][pad] (+)= left[32 keys][steps blocks of queries] times those blocks' pairs. */
static void sum_queries(const ql_tiles *t, const uint16_t *left, const uint16_t *pairs, size_t steps, bool add, float *sums)
{
    for (size_t i = 0; i < t->pad / BLOCK; i++)
        multiply((side){left, left + QUERIES * TILE, TILE}, (side){pairs + 2 * i * TILE, pairs + (2 * i + 1) * TILE, t->pad * BLOCK},
                 steps, add, sums + i * 4 * AREA, AREA, 2 * AREA);
}

/* A block of queries against all blocks of keys [first, end) of the step. */
static void sum_keys(const ql_tiles *t, const uint16_t *k, const uint16_t *pairs, size_t steps, bool add, float *sums)
{
    for (size_t i = 0; i < t->pad / BLOCK; i++)
        multiply((side){k + 2 * i * TILE, k + (2 * i + 1) * TILE, t->pad * BLOCK}, (side){pairs, pairs + TILE, QUERIES * 2 * TILE},
                 steps, add, sums + i * 4 * AREA, AREA, 2 * AREA);
}

typedef struct backward_task {
    size_t head, kv, split, first_head;
    const ql_tiles_part *part;
} backward_task;

/* The keys of blocks [key, key_end) and the queries of [query, query_end), as far as they see each other. */
static void step(const ql_tiles *t, backward_state *b, const backward_task *task, size_t key, size_t key_end, size_t query,
                 size_t query_end)
{
    size_t area = t->pad * BLOCK;
    for (size_t kb = key; kb < key_end; kb++) {
        size_t first = query > kb ? query : kb, end = query_end < t->last[kb] + 1 ? query_end : t->last[kb] + 1, j = kb - key;
        if (first >= end)
            continue;
        for (size_t qb = first; qb < end; qb++) {
            size_t i = qb - query;
            work_cell(t, b, &(cell){task->head, task->kv, kb, qb, b->weight[j][0][i], b->grad[j][0][i], b->grad_pairs[j][i][0]});
        }
        size_t sums = ((task->split * t->kv_heads + task->kv) * t->blocks + kb) * area, i = first - query;
        bool add = task->head > task->first_head || first > kb;
        sum_queries(t, b->weight[j][0][i], at(t->dout_pairs, t, task->head, first), end - first, add, t->dv_sums + sums);
        sum_queries(t, b->grad[j][0][i], at(t->q_pairs, t, task->head, first), end - first, add, t->dk_sums + sums);
    }
    for (size_t qb = query; qb < query_end; qb++) {
        size_t from = (size_t)t->from[qb * BLOCK] / BLOCK, first = from > key ? from : key, end = qb + 1 < key_end ? qb + 1 : key_end;
        if (first >= end)
            continue;
        size_t share = task->part->share * t->heads + task->head * task->part->queries + qb - task->part->first;
        sum_keys(t, at(t->k_turned_pairs, t, task->kv, first), b->grad_pairs[first - key][qb - query][0], end - first,
                 first > task->part->first && first > from, t->dq_shares + share * area);
    }
}

static void backward(const ql_tiles *t, size_t kv, size_t split, size_t part, void *scratch)
{
    const ql_tiles_part *p = &t->part[part];
    size_t first = kv * t->group + split * t->group / t->splits, end = kv * t->group + (split + 1) * t->group / t->splits;
    tiles_begin();
    for (size_t head = first; head < end; head++)
        for (size_t key = p->first; key < p->end; key += KEYS) {
            size_t key_end = key + KEYS < p->end ? key + KEYS : p->end, query_end = t->last[key_end - 1] + 1;
            for (size_t query = key; query < query_end; query += QUERIES)
                step(t, scratch, &(backward_task){head, kv, split, first, p}, key, key_end, query,
                     query + QUERIES < query_end ? query + QUERIES : query_end);
        }
    tiles_end();
}

/* Rows of dk or dv of a block. */
static void finish_keys(const ql_tiles *t, const float *sums, size_t kv, size_t block, float factor, float *x)
{
    size_t rows = remains(t->tokens, block * BLOCK), area = t->pad * BLOCK, others = t->kv_heads * t->blocks * area;
    sums += (kv * t->blocks + block) * area;
    x += block * BLOCK * t->lddkv + kv * t->head_dim;
    for (size_t i = 0; i < t->pad / SIDE * 2; i++) { /* tiles of [16 keys][16 dimensions], two by two */
        size_t row = i / 2 % 2 * SIDE, col = i / 4 * BLOCK + i % 2 * SIDE;
        for (size_t r = row; r < row + SIDE && r < rows && col < t->head_dim; r++) {
            const float *line = sums + i * AREA + (r - row) * SIDE;
            float *to = x + r * t->lddkv + col;
            vf sum = vload(line);
            for (size_t split = 1; split < t->splits; split++)
                sum = sum + vload(line + split * others);
            __builtin_prefetch(to + t->head_dim, 1);
            _mm512_mask_storeu_ps(to, some_lanes(t->head_dim - col), sum * vset(factor));
        }
    }
}

/* Rows of dq of a block: the parts' shares in their order. */
static void finish_queries(const ql_tiles *t, size_t head, size_t block)
{
    const float *share[QL_TILES_PARTS];
    size_t shares = 0;
    for (size_t i = 0; i < t->parts; i++) {
        const ql_tiles_part *p = &t->part[i];
        if (p->first <= block && block < p->first + p->queries)
            share[shares++] = t->dq_shares + (p->share * t->heads + head * p->queries + block - p->first) * t->pad * BLOCK;
    }
    for (size_t col = 0; col < t->head_dim; col += SIDE)
        for (size_t half = 0; half < 2; half++) {
            size_t tile = (col / SIDE * 2 + half) * AREA, query = block * BLOCK + half * SIDE;
            __m512i line[SIDE];
#pragma GCC unroll 16
            for (size_t i = 0; i < SIDE; i++) {
                vf sum = vload(share[0] + tile + i * SIDE);
                for (size_t j = 1; j < shares; j++)
                    sum = sum + vload(share[j] + tile + i * SIDE);
                line[i] = (__m512i)(sum * vset(t->scale));
            }
            put_turned(line, t->dq + query * t->lddq + head * t->head_dim + col, t->lddq, remains(t->tokens, query),
                       t->head_dim - col, t->head_dim);
        }
}

static void finish(const ql_tiles *t, size_t block)
{
    for (size_t kv = 0; kv < t->kv_heads; kv++) {
        finish_keys(t, t->dk_sums, kv, block, t->scale / t->fold, t->dk);
        finish_keys(t, t->dv_sums, kv, block, 1, t->dv);
    }
    for (size_t head = 0; head < t->heads; head++)
        finish_queries(t, head, block);
}

const ql_tiles_kernels QL_TIER_NAME(ql_tiles) = {
    .scratch = sizeof(forward_state) > sizeof(backward_state) ? sizeof(forward_state) : sizeof(backward_state),
    .pack_keys = pack_keys,
    .forward = forward,
    .pack = pack,
    .backward = backward,
    .finish = finish,
};
