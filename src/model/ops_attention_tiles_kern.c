/* The kernels of ops_attention_tiles.h; QL_TIER names the products this file is compiled for. */
#include <math.h>
#include <stdbool.h>

#ifdef QL_DOTS
#include "model/ops_attention_dots.h"
#else
#include "model/ops_attention_amx.h"
#endif
#include "model/ops_attention_ends.h"
#include "model/ops_tier.h"
#include "model/ops_exp.h"

enum {
    CHUNK = 4 /* blocks of keys that forward takes at once */,
    KEYS = 2,
    QUERIES = 4 /* blocks of a step backward */
};

static const float NOTHING = -1e30f; /* the maximum of no scores; infinity less infinity would be NaN */

/* ---- forward: 32 queries of a head ---- */

typedef struct forward_state {
    _Alignas(64) uint16_t q[BLOCK * WIDEST];
    float s[2][2][CHUNK * BLOCK][SIDE]; /* [chunk at work, and the next][half of the queries][key][query] */
    uint16_t weight[2][CHUNK][TILE];    /* exp of them in pairs of keys, from the right */
    float out[WIDEST / BLOCK][4][AREA]; /* transposed: [16 dimensions, below 16 more][half of the queries] */
    float max[2][SIDE], sum[2][SIDE];   /* the maximum rounded up: changing it costs no rounding */
} forward_state;

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

/* Products of q and the block `key`, the `i`th of its chunk. */
static inline void score(const ql_tiles *t, const forward_state *f, float s[2][CHUNK * BLOCK][SIDE], size_t kv,
                         size_t key, size_t i)
{
    size_t steps = t->pad / BLOCK;
    const uint16_t *k = of_kv(t->k_rows, t, kv, key);
    multiply((side){k, k + steps * TILE, TILE}, (side){f->q, f->q + steps * TILE, TILE}, steps, false, s[0][i * BLOCK],
             CHUNK * BLOCK * SIDE, AREA);
}

/* What else scores of a chunk from block `first` on are subject to. */
static void settle(const ql_tiles *t, float s[CHUNK * BLOCK][SIDE], size_t first, size_t cells, size_t query,
                   size_t half)
{
    for (size_t r = 0; t->cap > 0 && r < cells * BLOCK; r++)
        vstore(s[r], vset(t->cap) * vtanh(vload(s[r])));
    for (size_t i = 0; i < cells; i++) {
        size_t key = (first + i) * BLOCK;
        if (key + BLOCK > query + 1 || key < (size_t)t->from[query + BLOCK - 1])
            hide(t, s + i * BLOCK, key, query + half * SIDE);
    }
}

/* Raises the maximum over `rows` keys; what was summed under the one before is scaled down to it. */
static void raise_maximum(forward_state *f, float s[CHUNK * BLOCK][SIDE], size_t half, size_t rows, size_t out_tiles,
                          bool first)
{
    vf before = vload(f->max[half]), top[4] = {before, before, before, before};
    for (size_t r = 0; r < rows; r += 4)
        for (size_t i = 0; i < 4; i++)
            top[i] = vmax(vload(s[r + i]), top[i]);
    vf max = _mm512_roundscale_ps(vmax(vmax(top[0], top[1]), vmax(top[2], top[3])),
                                  _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    vstore(f->max[half], max);
    if (first || !_mm512_cmp_ps_mask(max, before, _CMP_NEQ_UQ))
        return;
    vf shrink = vscale2(vset(1), vmax(before - max, vset(-200)));
    vstore(f->sum[half], vload(f->sum[half]) * shrink);
    for (size_t i = 0; i < out_tiles; i++)
        for (size_t r = 0; r < 2 * AREA; r += SIDE) {
            float *line = f->out[i][r / AREA * 2 + half] + r % AREA;
            vstore(line, vload(line) * shrink);
        }
}

/* The weights of a block of keys under the maximum. */
static void weigh(forward_state *f, float s[BLOCK][SIDE], size_t half, uint16_t weight[TILE])
{
    vf max = vload(f->max[half]), sum[2] = {vload(f->sum[half]), vset(0)};
    for (size_t r = 0; r < BLOCK; r += 2) {
        vf above = exp2_cheap(vload(s[r]) - max), below = exp2_cheap(vload(s[r + 1]) - max);
        sum[0] = sum[0] + above;
        sum[1] = sum[1] + below;
        _mm512_store_si512(weight + r / 2 * BLOCK, interleaved(above, below));
    }
    vstore(f->sum[half], sum[0] + sum[1]);
}

static void values(const ql_tiles *t, forward_state *f, size_t kv, size_t first, size_t cells, bool add)
{
    side b = {f->weight[0][0], f->weight[1][0], TILE};
    for (size_t i = 0; i < t->pad / BLOCK; i++) {
        const uint16_t *v = of_kv(t->v_turned_pairs, t, kv, first) + i * 2 * TILE;
        multiply((side){v, v + TILE, t->pad * BLOCK}, b, cells, add, f->out[i][0], AREA, 2 * AREA);
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
    begin_products();
    for (size_t i = 0; i < CHUNK && first + i < end; i++)
        score(t, f, f->s[0], kv, first + i, i);
    for (size_t key = first, now = 0; key < end; key += CHUNK, now ^= 1) {
        size_t cells = end - key < CHUNK ? end - key : CHUNK;
        for (size_t half = 0; half < 2; half++) {
            settle(t, f->s[now][half], key, cells, query, half);
            raise_maximum(f, f->s[now][half], half, cells * BLOCK, t->pad / BLOCK, key == first);
        }
        for (size_t i = 0; i < cells; i++) { /* products of the next chunk go on meanwhile */
            if (key + CHUNK + i < end)
                score(t, f, f->s[now ^ 1], kv, key + CHUNK + i, i);
            for (size_t half = 0; half < 2; half++)
                weigh(f, f->s[now][half] + i * BLOCK, half, f->weight[half][i]);
        }
        values(t, f, kv, key, cells, key > first);
    }
    end_products();
    put_out(t, f, head, row);
}

/* ---- backward ---- */

/* Scores and the gradients of their weights: [half of the keys][half of the queries]. */
typedef struct products {
    _Alignas(64) float s[2][2][SIDE][SIDE], ds[2][2][SIDE][SIDE];
} products;

typedef struct backward_state {
    products block[2];                           /* one at work, while those of the next are made */
    uint16_t weight[KEYS][2][QUERIES][TILE];     /* [keys][half of them][queries]: from the left, over queries */
    uint16_t grad[KEYS][2][QUERIES][TILE];       /* of the scores, so */
    uint16_t grad_pairs[KEYS][QUERIES][2][TILE]; /* and from the right, over keys; [half of the queries] */
} backward_state;

/* A task's block of keys and of queries. */
typedef struct cell {
    size_t head, kv, key, query; /* blocks */
    uint16_t *weight, *grad;     /* the upper half's; the lower one's is QUERIES * TILE further */
    uint16_t *grad_pairs;
} cell;

/* Weights and the scores' gradients of half of a block's keys. */
static inline __attribute__((always_inline)) void bend(const ql_tiles *t, const products *b, const cell *c,
                                                       size_t half_keys, bool border, bool capped)
{
    const float *exponents = t->exponent + lanes_of(t, c->head, c->query),
                *deltas = t->delta + lanes_of(t, c->head, c->query);
    vf exponent[2] = {vload(exponents), vload(exponents + SIDE)}, delta[2] = {vload(deltas), vload(deltas + SIDE)};
    __m512i own[2], from[2];
    for (size_t half = 0; border && half < 2; half++) {
        const int32_t *plain = t->from + c->query * BLOCK;
        __m512i order =
            _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(lane_order + half * SIDE)));
        own[half] = _mm512_add_epi32(order, _mm512_set1_epi32((int)(c->query * BLOCK)));
        from[half] = _mm512_permutex2var_epi32(_mm512_loadu_si512(plain), order, _mm512_loadu_si512(plain + SIDE));
    }
    for (size_t r = 0; r < SIDE; r += 2) {
        __m512i grads[2];
#pragma GCC unroll 2
        for (size_t i = 0; i < 2; i++) {
            vf e[2], g[2];
#pragma GCC unroll 2
            for (size_t half = 0; half < 2; half++) {
                vf x = vload(b->s[half_keys][half][r + i]), slope = vset(1);
                if (capped) {
                    vf bent = vtanh(x);
                    x = vset(t->cap) * bent;
                    slope = vset(1) - bent * bent;
                }
                if (border) {
                    __m512i position = _mm512_set1_epi32((int)(c->key * BLOCK + half_keys * SIDE + r + i));
                    __mmask16 seen =
                        _mm512_cmple_epi32_mask(position, own[half]) & _mm512_cmpge_epi32_mask(position, from[half]);
                    x = _mm512_mask_mov_ps(vset(-INFINITY), seen, x);
                }
                e[half] = exp2_cheap(x - exponent[half]);
                g[half] = e[half] * (vload(b->ds[half_keys][half][r + i]) - delta[half]);
                if (capped)
                    g[half] = g[half] * slope;
            }
            size_t line = half_keys * QUERIES * TILE + (r + i) * BLOCK;
            grads[i] = (__m512i)_mm512_cvtne2ps_pbh(g[1], g[0]);
            _mm512_store_si512(c->weight + line, (__m512i)_mm512_cvtne2ps_pbh(e[1], e[0]));
            _mm512_store_si512(c->grad + line, grads[i]);
        }
        uint16_t *pairs = c->grad_pairs + (half_keys * SIDE + r) / 2 * BLOCK;
        _mm512_store_si512(pairs, _mm512_unpacklo_epi16(grads[0], grads[1]));
        _mm512_store_si512(pairs + TILE, _mm512_unpackhi_epi16(grads[0], grads[1]));
    }
}

static void softmax_gradient(const ql_tiles *t, const products *b, const cell *c, size_t half_keys)
{
    bool border = c->key == c->query || c->key * BLOCK < (size_t)t->from[c->query * BLOCK + BLOCK - 1];
    if (t->cap > 0)
        bend(t, b, c, half_keys, true, true);
    else if (border)
        bend(t, b, c, half_keys, true, false);
    else
        bend(t, b, c, half_keys, false, false);
}

static void turned_product(const ql_tiles *t, const uint16_t *rows, const uint16_t *turned, float *c)
{
    size_t steps = t->pad / BLOCK, half = steps * TILE;
    multiply((side){rows, rows + half, TILE}, (side){turned, turned + half, TILE}, steps, false, c, AREA, 2 * AREA);
}

static void make_scores(const ql_tiles *t, products *b, const cell *c)
{
    turned_product(t, of_kv(t->k_rows, t, c->kv, c->key), of_head(t->q_turned, t, c->head, c->query), b->s[0][0][0]);
}

static void make_gradients(const ql_tiles *t, products *b, const cell *c)
{
    turned_product(t, of_kv(t->v_rows, t, c->kv, c->key), of_head(t->dout_turned, t, c->head, c->query),
                   b->ds[0][0][0]);
}

/* sums[32 keys][pad] (+)= left[32 keys][steps blocks of queries] times those blocks' pairs. */
static void sum_queries(const ql_tiles *t, const uint16_t *left, const uint16_t *pairs, size_t steps, bool add,
                        float *sums)
{
    for (size_t i = 0; i < t->pad / BLOCK; i++)
        multiply((side){left, left + QUERIES * TILE, TILE},
                 (side){pairs + 2 * i * TILE, pairs + (2 * i + 1) * TILE, t->pad * BLOCK}, steps, add,
                 sums + i * 4 * AREA, AREA, 2 * AREA);
}

/* A block of queries against all blocks of keys [first, end) of the step. */
static void sum_keys(const ql_tiles *t, const uint16_t *k, const uint16_t *pairs, size_t steps, bool add, float *sums)
{
    for (size_t i = 0; i < t->pad / BLOCK; i++)
        multiply((side){k + 2 * i * TILE, k + (2 * i + 1) * TILE, t->pad * BLOCK},
                 (side){pairs, pairs + TILE, QUERIES * 2 * TILE}, steps, add, sums + i * 4 * AREA, AREA, 2 * AREA);
}

typedef struct backward_task {
    size_t head, kv, split;
    bool more;
    const ql_tiles_part *part;
} backward_task;

/* The blocks of keys [key, key_end) and of queries [query, query_end). */
typedef struct extent {
    size_t key, key_end, query, query_end;
} extent;

/* The blocks of queries of `e` that see the keys' block `key`: from *first to before the result. */
static size_t seeing(const ql_tiles *t, const extent *e, size_t key, size_t *first)
{
    *first = e->query > key ? e->query : key;
    return e->query_end < t->last[key] + 1 ? e->query_end : t->last[key] + 1;
}

/* Weights and gradients of the scores, wherever keys and queries see each other. */
static void work(const ql_tiles *t, backward_state *b, const backward_task *task, const extent *e)
{
    cell cells[KEYS * QUERIES];
    size_t count = 0;
    for (size_t key = e->key, query; key < e->key_end; key++)
        for (size_t end = seeing(t, e, key, &query); query < end; query++) {
            size_t i = key - e->key, j = query - e->query;
            cells[count++] =
                (cell){task->head, task->kv, key, query, b->weight[i][0][j], b->grad[i][0][j], b->grad_pairs[i][j][0]};
        }
    make_scores(t, &b->block[0], &cells[0]);
    make_gradients(t, &b->block[0], &cells[0]);
    for (size_t i = 0; i < count; i++) { /* products of the next block go on meanwhile */
        products *now = &b->block[i % 2], *next = &b->block[(i + 1) % 2];
        if (i + 1 < count)
            make_scores(t, next, &cells[i + 1]);
        softmax_gradient(t, now, &cells[i], 0);
        if (i + 1 < count)
            make_gradients(t, next, &cells[i + 1]);
        softmax_gradient(t, now, &cells[i], 1);
    }
}

static void step(const ql_tiles *t, backward_state *b, const backward_task *task, const extent *e)
{
    size_t area = t->pad * BLOCK, first;
    work(t, b, task, e);
    for (size_t key = e->key; key < e->key_end; key++) {
        size_t end = seeing(t, e, key, &first), i = key - e->key, j = first - e->query;
        if (first >= end)
            continue;
        size_t sums = ((task->split * t->kv_heads + task->kv) * t->blocks + key) * area;
        bool more = task->more || first > key;
        sum_queries(t, b->weight[i][0][j], of_head(t->dout_pairs, t, task->head, first), end - first, more,
                    t->dv_sums + sums);
        sum_queries(t, b->grad[i][0][j], of_head(t->q_pairs, t, task->head, first), end - first, more,
                    t->dk_sums + sums);
    }
    for (size_t query = e->query; query < e->query_end; query++) {
        size_t from = (size_t)t->from[query * BLOCK] / BLOCK, end = query + 1 < e->key_end ? query + 1 : e->key_end;
        first = from > e->key ? from : e->key;
        if (first >= end)
            continue;
        sum_keys(t, of_kv(t->k_turned_pairs, t, task->kv, first), b->grad_pairs[first - e->key][query - e->query][0],
                 end - first, first > task->part->first && first > from, share_of(t, task->part, task->head, query));
    }
}

static void backward(const ql_tiles *t, size_t head, size_t split, const ql_tiles_part *part, bool more, void *scratch)
{
    const backward_task task = {head, head / t->group, split, more, part};
    begin_products();
    for (size_t key = part->first; key < part->end; key += KEYS) {
        size_t key_end = key + KEYS < part->end ? key + KEYS : part->end, query_end = t->last[key_end - 1] + 1;
        for (size_t query = key; query < query_end; query += QUERIES) {
            extent e = {key, key_end, query, query + QUERIES < query_end ? query + QUERIES : query_end};
            step(t, scratch, &task, &e);
        }
    }
    end_products();
}

const ql_tiles_kernels QL_TIER_NAME(ql_tiles) = {
    .scratch = sizeof(forward_state) > sizeof(backward_state) ? sizeof(forward_state) : sizeof(backward_state),
    .pack_kv = pack_kv,
    .forward = forward,
    .pack_kv_back = pack_kv_back,
    .pack_head_back = pack_head_back,
    .backward = backward,
    .finish_head = finish_head,
    .finish_kv = finish_kv,
};
