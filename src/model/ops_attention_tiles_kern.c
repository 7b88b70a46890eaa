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
#include "model/ops_vec.h"

enum { CHUNK = 8 /* blocks of keys that forward takes at once */, KEYS = 2, QUERIES = 4 /* blocks of a step backward */ };

static const float NOTHING = -1e30f; /* the maximum of no scores; infinity less infinity would be NaN */

/* ---- forward: 32 queries of a head ---- */

typedef struct forward_state {
    _Alignas(64) uint16_t q[BLOCK * WIDEST];
    float s[2][CHUNK * BLOCK][SIDE];     /* [half of the queries][key][query] */
    uint16_t weight[2][CHUNK][TILE];     /* exp of them in pairs of keys, from the right */
    float out[WIDEST / BLOCK][4][AREA];  /* transposed: [16 dimensions, below 16 more][half of the queries] */
    float max[2][SIDE], sum[2][SIDE];    /* the maximum rounded up: changing it costs no rounding */
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

/* Scores of `cells` blocks of keys from block `first` on. */
static void scores(const ql_tiles *t, forward_state *f, size_t kv, size_t first, size_t cells, size_t query)
{
    size_t steps = t->pad / BLOCK;
    side b = {f->q, f->q + steps * TILE, TILE};
    for (size_t i = 0; i < cells; i++) {
        const uint16_t *k = of_kv(t->k_rows, t, kv, first + i);
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
    for (size_t key = first; key < end; key += CHUNK) {
        size_t cells = end - key < CHUNK ? end - key : CHUNK;
        scores(t, f, kv, key, cells, query);
        for (size_t half = 0; half < 2; half++)
            softmax(f, half, cells * BLOCK, t->pad / BLOCK, key == first);
        values(t, f, kv, key, cells, key > first);
    }
    end_products();
    put_out(t, f, head, row);
}

/* ---- backward ---- */

typedef struct backward_state {
    _Alignas(64) struct {
        float s[2][2][SIDE][SIDE], ds[2][2][SIDE][SIDE]; /* [half of the keys][half of the queries] */
    } block[2]; /* one at work, while the products of the next go on */
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
static inline __attribute__((always_inline)) void bend(const ql_tiles *t, float s[2][2][SIDE][SIDE], float ds[2][2][SIDE][SIDE],
                                                       const cell *c, bool border, bool capped)
{
    const float *exponents = t->exponent + lanes_of(t, c->head, c->query), *deltas = t->delta + lanes_of(t, c->head, c->query);
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
                vf x = vload(s[key / SIDE][half][key % SIDE]), slope = vset(1);
                if (capped) {
                    vf bent = vtanh(x);
                    x = vset(t->cap) * bent;
                    slope = vset(1) - bent * bent;
                }
                if (border) {
                    __m512i position = _mm512_set1_epi32((int)(c->key * BLOCK + key));
                    __mmask16 seen = _mm512_cmple_epi32_mask(position, own[half]) &
                                     _mm512_cmpge_epi32_mask(position, from[half]);
                    x = _mm512_mask_mov_ps(vset(-INFINITY), seen, x);
                }
                e[half] = exp2_cheap(x - exponent[half]);
                g[half] = e[half] * (vload(ds[key / SIDE][half][key % SIDE]) - delta[half]);
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

static void softmax_gradient(const ql_tiles *t, backward_state *b, size_t at_work, const cell *c)
{
    bool border = c->key == c->query || c->key * BLOCK < (size_t)t->from[c->query * BLOCK + BLOCK - 1];
    if (t->cap > 0)
        bend(t, b->block[at_work].s, b->block[at_work].ds, c, true, true);
    else if (border)
        bend(t, b->block[at_work].s, b->block[at_work].ds, c, true, false);
    else
        bend(t, b->block[at_work].s, b->block[at_work].ds, c, false, false);
}

static void cell_products(const ql_tiles *t, backward_state *b, size_t at_work, const cell *c)
{
    size_t steps = t->pad / BLOCK, half = steps * TILE;
    const uint16_t *k = of_kv(t->k_rows, t, c->kv, c->key), *v = of_kv(t->v_rows, t, c->kv, c->key);
    const uint16_t *q = of_head(t->q_turned, t, c->head, c->query), *d = of_head(t->dout_turned, t, c->head, c->query);
    multiply((side){k, k + half, TILE}, (side){q, q + half, TILE}, steps, false, b->block[at_work].s[0][0][0], AREA, 2 * AREA);
    multiply((side){v, v + half, TILE}, (side){d, d + half, TILE}, steps, false, b->block[at_work].ds[0][0][0], AREA, 2 * AREA);
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
            cells[count++] = (cell){task->head, task->kv, key, query, b->weight[i][0][j], b->grad[i][0][j], b->grad_pairs[i][j][0]};
        }
    cell_products(t, b, 0, &cells[0]);
    for (size_t i = 0; i < count; i++) {
        if (i + 1 < count)
            cell_products(t, b, (i + 1) % 2, &cells[i + 1]);
        softmax_gradient(t, b, i % 2, &cells[i]);
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
        sum_queries(t, b->weight[i][0][j], of_head(t->dout_pairs, t, task->head, first), end - first, more, t->dv_sums + sums);
        sum_queries(t, b->grad[i][0][j], of_head(t->q_pairs, t, task->head, first), end - first, more, t->dk_sums + sums);
    }
    for (size_t query = e->query; query < e->query_end; query++) {
        size_t from = (size_t)t->from[query * BLOCK] / BLOCK, end = query + 1 < e->key_end ? query + 1 : e->key_end;
        first = from > e->key ? from : e->key;
        if (first >= end)
            continue;
        sum_keys(t, of_kv(t->k_turned_pairs, t, task->kv, first), b->grad_pairs[first - e->key][query - e->query][0], end - first,
                 first > task->part->first && first > from, share_of(t, task->part, task->head, query));
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
