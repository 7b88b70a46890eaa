/* The two ends of attention on tiles: inputs into tiles, and sums out of them. Included by ops_attention_tiles_kern.c.
 */
#ifndef QL_SRC_MODEL_OPS_ATTENTION_ENDS_H
#define QL_SRC_MODEL_OPS_ATTENTION_ENDS_H

#include <math.h>

#include "model/ops_attention_pack.h"
#include "model/ops_vec.h"

/* Block `block` of a head's packed array. */
static inline uint16_t *of_head(uint16_t *packed, const ql_tiles *t, size_t head, size_t block)
{
    return packed + ((head - t->head_shift) * t->blocks + block) * t->pad * BLOCK;
}

static inline uint16_t *of_kv(uint16_t *packed, const ql_tiles *t, size_t kv, size_t block)
{
    return packed + ((kv - t->kv_shift) * t->blocks + block) * t->pad * BLOCK;
}

/* Where exponents and deltas of a block of queries are. */
static inline size_t lanes_of(const ql_tiles *t, size_t head, size_t block)
{
    return ((head - t->head_shift) * t->blocks + block) * BLOCK;
}

/* Where a part's share of a head's dq is. */
static inline float *share_of(const ql_tiles *t, const ql_tiles_part *p, size_t head, size_t block)
{
    return t->dq_shares +
           (p->share * t->heads + (head - t->head_shift) * p->queries + block - p->first) * t->pad * BLOCK;
}

/* Floats from a block of rows to the one that comes next. */
static inline size_t next_of(const ql_tiles *t, size_t ld)
{
    return t->by_head ? BLOCK * ld : t->head_dim;
}

static inline source rows_of(const ql_tiles *t, const float *x, size_t ld, size_t head, size_t row, size_t rows,
                             float factor)
{
    return (source){x + row * ld + head * t->head_dim, ld, remains(rows, row), t->head_dim, factor, next_of(t, ld)};
}

static void pack_kv(const ql_tiles *t, size_t kv, size_t block)
{
    source k = rows_of(t, t->k, t->ldkv, kv, block * BLOCK, t->tokens, 1);
    source v = rows_of(t, t->v, t->ldkv, kv, block * BLOCK, t->tokens, 1);
    pack_rows(&k, t->pad, of_kv(t->k_rows, t, kv, block));
    pack_turned_pairs(&v, t->pad, of_kv(t->v_turned_pairs, t, kv, block));
}

/* delta and exponents of a block of queries, in lane_order. */
static void pack_queries(const ql_tiles *t, size_t head, size_t block)
{
    size_t row = block * BLOCK, lanes = lanes_of(t, head, block);
    source o = rows_of(t, t->o, t->ldo, head, row, t->tokens, 1),
           d = rows_of(t, t->dout, t->lddo, head, row, t->tokens, 1);
    for (size_t half = 0; half < BLOCK; half += SIDE) {
        __m512i line[SIDE];
#pragma GCC unroll 16
        for (size_t i = 0; i < SIDE; i++) {
            vf sum = vset(0);
            for (size_t col = 0; col < t->head_dim;
                 col += SIDE) { /* dout as the tiles see it, so that its rounding cancels */
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

static void pack_kv_back(const ql_tiles *t, size_t kv, size_t block)
{
    source k = rows_of(t, t->k, t->ldkv, kv, block * BLOCK, t->tokens, 1);
    source v = rows_of(t, t->v, t->ldkv, kv, block * BLOCK, t->tokens, 1);
    pack_rows(&k, t->pad, of_kv(t->k_rows, t, kv, block));
    pack_turned_pairs(&k, t->pad, of_kv(t->k_turned_pairs, t, kv, block));
    pack_rows(&v, t->pad, of_kv(t->v_rows, t, kv, block));
}

static void pack_head_back(const ql_tiles *t, size_t head, size_t block)
{
    source q = rows_of(t, t->q, t->ldq, head, block * BLOCK, t->tokens, t->fold);
    source d = rows_of(t, t->dout, t->lddo, head, block * BLOCK, t->tokens, 1);
    pack_turned(&q, t->pad, lane_order, of_head(t->q_turned, t, head, block));
    pack_pairs(&q, t->pad, lane_order, of_head(t->q_pairs, t, head, block));
    pack_turned(&d, t->pad, lane_order, of_head(t->dout_turned, t, head, block));
    pack_pairs(&d, t->pad, lane_order, of_head(t->dout_pairs, t, head, block));
    pack_queries(t, head, block);
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

/* Rows of dk or dv of a block. */
static void put_keys(const ql_tiles *t, const float *sums, size_t kv, size_t block, float factor, float *x)
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
            __builtin_prefetch(to + next_of(t, t->lddkv), 1);
            _mm512_mask_storeu_ps(to, some_lanes(t->head_dim - col), sum * vset(factor));
        }
    }
}

static void finish_kv(const ql_tiles *t, size_t kv, size_t block)
{
    put_keys(t, t->dk_sums, kv, block, t->scale / t->fold, t->dk);
    put_keys(t, t->dv_sums, kv, block, 1, t->dv);
}

/* Rows of dq of a block: the parts' shares in their order. */
static void finish_head(const ql_tiles *t, size_t head, size_t block)
{
    const float *share[QL_TILES_PARTS];
    size_t shares = 0;
    for (size_t i = 0; i < t->parts; i++) {
        const ql_tiles_part *p = &t->part[i];
        if (p->first <= block && block < p->first + p->queries)
            share[shares++] = share_of(t, p, head, block);
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
                       t->head_dim - col, next_of(t, t->lddq));
        }
}

#endif
