/* Attention kernels; QL_TIER names the instruction set this file is compiled for.
 *
 * A panel lies transposed, [head_dim][PANEL], so that lanes are its queries (forward, dq) or its keys
 * (dkv) and no sum goes across lanes. All products are then of one kind: rows of the stream, read as
 * they lie and broadcast, times a panel. Scores S[stream][PANEL] take the stream's rows; what is
 * accumulated over the stream, [head_dim][PANEL], takes its columns. */
#include <assert.h>
#include <math.h>

#include "model/ops_kernels.h"
#include "model/ops_tier.h"
#include "model/ops_vec.h"

enum { PANEL = 2 * VN, STREAM = QL_ATTENTION_STREAM, ROWS = VN == 16 ? 8 : 4 };

/* c[rows][PANEL] (+)= a * b[depth][PANEL], a's element (r, t) at a[r * row_step + t * depth_step]. */
static inline __attribute__((always_inline)) void tile(size_t rows, size_t depth, const float *a, size_t row_step,
                                                       size_t depth_step, const float *b, float *c, bool add)
{
    vf sum[ROWS][2];
    for (size_t r = 0; r < rows; r++) {
        sum[r][0] = add ? vload(c + r * PANEL) : vset(0);
        sum[r][1] = add ? vload(c + r * PANEL + VN) : vset(0);
    }
    for (size_t t = 0; t < depth; t++) {
        vf low = vload(b + t * PANEL), high = vload(b + t * PANEL + VN);
        for (size_t r = 0; r < rows; r++) {
            vf x = vset(a[r * row_step + t * depth_step]);
            sum[r][0] = vfma(x, low, sum[r][0]);
            sum[r][1] = vfma(x, high, sum[r][1]);
        }
    }
    for (size_t r = 0; r < rows; r++) {
        vstore(c + r * PANEL, sum[r][0]);
        vstore(c + r * PANEL + VN, sum[r][1]);
    }
}

static inline __attribute__((always_inline)) void product(size_t rows, size_t depth, const float *a, size_t row_step,
                                                          size_t depth_step, const float *b, float *c, bool add)
{
    size_t r = 0;
    for (; r + ROWS <= rows; r += ROWS)
        tile(ROWS, depth, a + r * row_step, row_step, depth_step, b, c + r * PANEL, add);
    if (ROWS > 4 && rows - r >= 4) {
        tile(4, depth, a + r * row_step, row_step, depth_step, b, c + r * PANEL, add);
        r += 4;
    }
    for (; r < rows; r++)
        tile(1, depth, a + r * row_step, row_step, depth_step, b, c + r * PANEL, add);
}

/* s[rows][PANEL] = rows of the stream times a transposed panel. */
static void scores(size_t rows, size_t head_dim, const float *stream, size_t ld, const float *panel, float *s)
{
    product(rows, head_dim, stream, ld, 1, panel, s, false);
}

/* sum[head_dim][PANEL] += stream^T s[rows][PANEL]. */
static void accumulate(size_t rows, size_t head_dim, const float *stream, size_t ld, const float *s, float *sum)
{
    product(head_dim, rows, stream, 1, ld, s, sum, true);
}

/* Rows into lanes, times factor; the lanes of rows that are not there are zero. */
static void transpose_in(float *panel, size_t head_dim, const float *x, size_t ld, size_t rows, float factor)
{
    for (size_t row = 0; row < PANEL; row += VN)
        for (size_t d = 0; d < head_dim; d += VN) {
            size_t left = head_dim - d < VN ? head_dim - d : VN;
            vf block[VN];
#pragma GCC unroll 16
            for (size_t r = 0; r < VN; r++) {
                block[r] = vset(0);
                if (row + r < rows)
                    block[r] = vget(x + (row + r) * ld + d, left) * vset(factor);
            }
            vtranspose(block);
#pragma GCC unroll 16
            for (size_t i = 0; i < VN; i++)
                if (i < left)
                    vstore(panel + (d + i) * PANEL + row, block[i]);
        }
}

static void transpose_out(float *x, size_t ld, size_t rows, const float *panel, size_t head_dim, float factor)
{
    for (size_t row = 0; row < rows; row += VN)
        for (size_t d = 0; d < head_dim; d += VN) {
            size_t left = head_dim - d < VN ? head_dim - d : VN;
            vf block[VN];
#pragma GCC unroll 16
            for (size_t i = 0; i < VN; i++) {
                block[i] = vset(0);
                if (i < left)
                    block[i] = vload(panel + (d + i) * PANEL + row) * vset(factor);
            }
            vtranspose(block);
#pragma GCC unroll 16
            for (size_t r = 0; r < VN; r++)
                if (row + r < rows)
                    vput(x + (row + r) * ld + d, block[r], left);
        }
}

static void fill(float *x, size_t n, float value)
{
    for (size_t i = 0; i < n; i += VN)
        vstore(x + i, vset(value));
}

static void load_lanes(float *lanes, const float *x, size_t rows)
{
    fill(lanes, PANEL, 0);
    memcpy(lanes, x, rows * sizeof *x);
}

/* Stream rows are keys from position `key`, lanes queries from position `query`: a query sees no later key. */
static void hide_later_keys(float *s, size_t rows, size_t key, size_t query)
{
    for (size_t r = query > key ? query - key : 0; r < rows; r++) {
        size_t lanes = key + r - query < PANEL ? key + r - query : PANEL;
        for (size_t i = 0; i < lanes; i++)
            s[r * PANEL + i] = -INFINITY;
    }
}

/* Stream rows are queries from position `query`, lanes keys from position `key`. */
static void hide_earlier_queries(float *s, size_t rows, size_t query, size_t key)
{
    for (size_t r = 0; r < rows && query + r < key + PANEL; r++)
        for (size_t i = query + r + 1 - key; i < PANEL; i++)
            s[r * PANEL + i] = -INFINITY;
}

/* s becomes exp(s - max) with the maximum so far; what was summed under the old one is scaled down. */
static void softmax_step(float *s, size_t rows, float *max, float *sum, float *out, size_t head_dim)
{
    for (size_t half = 0; half < PANEL; half += VN) {
        vf before = vload(max + half), top = before;
        for (size_t r = 0; r < rows; r++)
            top = vmax(vload(s + r * PANEL + half), top);
        vf shrink = vexp(before - top), total = vload(sum + half) * shrink;
        for (size_t r = 0; r < rows; r++) {
            vf e = vexp(vload(s + r * PANEL + half) - top);
            vstore(s + r * PANEL + half, e);
            total = total + e;
        }
        for (size_t d = 0; d < head_dim; d++)
            vstore(out + d * PANEL + half, vload(out + d * PANEL + half) * shrink);
        vstore(max + half, top);
        vstore(sum + half, total);
    }
}

static void forward(const ql_attention_panel *p, float *scratch)
{
    size_t hd = p->head_dim, end = p->first + p->rows;
    float *q = scratch, *out = q + hd * PANEL, *s = out + hd * PANEL;
    float max[PANEL], sum[PANEL];
    transpose_in(q, hd, p->q, p->ldq, p->rows, p->scale);
    fill(out, hd * PANEL, 0);
    fill(max, PANEL, -INFINITY);
    fill(sum, PANEL, 0);
    for (size_t key = 0; key < end; key += STREAM) {
        size_t keys = end - key < STREAM ? end - key : STREAM;
        scores(keys, hd, p->k + key * p->ldkv, p->ldkv, q, s);
        if (key + keys > p->first)
            hide_later_keys(s, keys, key, p->first);
        softmax_step(s, keys, max, sum, out, hd);
        accumulate(keys, hd, p->v + key * p->ldkv, p->ldkv, s, out);
    }
    for (size_t half = 0; half < PANEL; half += VN) {
        vf share = vset(1) / vload(sum + half);
        for (size_t d = 0; d < hd; d++)
            vstore(out + d * PANEL + half, vload(out + d * PANEL + half) * share);
    }
    transpose_out(p->out, p->ldo, p->rows, out, hd, 1);
    for (size_t r = 0; p->lse_out && r < p->rows; r++)
        p->lse_out[r] = max[r] + logf(sum[r]);
}

static void dq(const ql_attention_panel *p, float *scratch)
{
    size_t hd = p->head_dim, end = p->first + p->rows;
    float *q = scratch, *dout = q + hd * PANEL, *sum = dout + hd * PANEL, *s = sum + hd * PANEL;
    float *dp = s + STREAM * PANEL, lse[PANEL], delta[PANEL];
    transpose_in(q, hd, p->q, p->ldq, p->rows, p->scale);
    transpose_in(dout, hd, p->dout, p->lddo, p->rows, 1);
    load_lanes(lse, p->lse, p->rows);
    load_lanes(delta, p->delta, p->rows);
    fill(sum, hd * PANEL, 0);
    for (size_t key = 0; key < end; key += STREAM) {
        size_t keys = end - key < STREAM ? end - key : STREAM;
        const float *k = p->k + key * p->ldkv;
        scores(keys, hd, k, p->ldkv, q, s);
        scores(keys, hd, p->v + key * p->ldkv, p->ldkv, dout, dp);
        if (key + keys > p->first)
            hide_later_keys(s, keys, key, p->first);
        for (size_t i = 0; i < keys * PANEL; i += VN) {
            vf e = vexp(vload(s + i) - vload(lse + i % PANEL));
            vstore(s + i, e * (vload(dp + i) - vload(delta + i % PANEL)));
        }
        accumulate(keys, hd, k, p->ldkv, s, sum);
    }
    transpose_out(p->dq, p->lddq, p->rows, sum, hd, p->scale);
}

/* The queries [query, query + rows) of one head, against a panel of keys k and values v. */
static void dkv_step(const ql_attention_panel *p, size_t head, size_t query, size_t rows, float *k)
{
    size_t hd = p->head_dim;
    float *v = k + hd * PANEL, *dk = v + hd * PANEL, *dv = dk + hd * PANEL, *s = dv + hd * PANEL;
    float *dp = s + STREAM * PANEL;
    const float *q = p->q + query * p->ldq + head * hd, *dout = p->dout + query * p->lddo + head * hd;
    const float *lse = p->lse + head * p->ldlse + query, *delta = p->delta + head * p->ldlse + query;
    scores(rows, hd, q, p->ldq, k, s);
    scores(rows, hd, dout, p->lddo, v, dp);
    if (query < p->first + PANEL)
        hide_earlier_queries(s, rows, query, p->first);
    for (size_t i = 0; i < rows * PANEL; i += VN) {
        vf e = vexp(vload(s + i) - vset(lse[i / PANEL]));
        vstore(s + i, e);
        vstore(dp + i, e * (vload(dp + i) - vset(delta[i / PANEL])));
    }
    accumulate(rows, hd, dout, p->lddo, s, dv);
    accumulate(rows, hd, q, p->ldq, dp, dk);
}

static void dkv(const ql_attention_panel *p, float *scratch)
{
    size_t hd = p->head_dim;
    float *k = scratch, *v = k + hd * PANEL, *dk = v + hd * PANEL, *dv = dk + hd * PANEL;
    transpose_in(k, hd, p->k, p->ldkv, p->rows, p->scale);
    transpose_in(v, hd, p->v, p->ldkv, p->rows, 1);
    fill(dk, 2 * hd * PANEL, 0);
    for (size_t head = 0; head < p->group; head++)
        for (size_t query = p->first; query < p->length; query += STREAM)
            dkv_step(p, head, query, p->length - query < STREAM ? p->length - query : STREAM, k);
    transpose_out(p->dk, p->lddkv, p->rows, dk, hd, p->scale);
    transpose_out(p->dv, p->lddkv, p->rows, dv, hd, 1);
}

/* q times each of up to VN keys, one a lane; zero in the other lanes. */
static vf dots(size_t head_dim, const float *q, const float *k, size_t ld, size_t keys)
{
    vf sum[VN];
#pragma GCC unroll 16
    for (size_t r = 0; r < VN; r++) {
        sum[r] = vset(0);
        for (size_t d = 0; r < keys && d < head_dim; d += VN)
            sum[r] = vfma(vget(q + d, head_dim - d), vget(k + r * ld + d, head_dim - d), sum[r]);
    }
    vtranspose(sum);
#pragma GCC unroll 4
    for (size_t width = VN / 2; width; width /= 2)
#pragma GCC unroll 8
        for (size_t r = 0; r < width; r++)
            sum[r] = sum[r] + sum[r + width];
    return sum[0];
}

/* out = out * shrink + weight[rows] * v */
static void weigh_values(size_t head_dim, size_t rows, const float *weight, const float *v, size_t ld, float shrink,
                         float *out)
{
    size_t d = 0;
    for (; d + 4 * VN <= head_dim; d += 4 * VN) {
        vf sum[4];
        for (size_t i = 0; i < 4; i++)
            sum[i] = vload(out + d + i * VN) * vset(shrink);
        for (size_t r = 0; r < rows; r++)
            for (size_t i = 0; i < 4; i++)
                sum[i] = vfma(vset(weight[r]), vload(v + r * ld + d + i * VN), sum[i]);
        for (size_t i = 0; i < 4; i++)
            vstore(out + d + i * VN, sum[i]);
    }
    for (; d < head_dim; d += VN) {
        size_t left = head_dim - d;
        vf sum = vget(out + d, left) * vset(shrink);
        for (size_t r = 0; r < rows; r++)
            sum = vfma(vset(weight[r]), vget(v + r * ld + d, left), sum);
        vput(out + d, sum, left);
    }
}

/* Lanes run along head_dim here: one query would leave a panel nearly empty. */
static void decode_step(const ql_attention_panel *p, size_t head, size_t key, size_t keys, float *max, float *sum)
{
    float s[STREAM], top = *max, shrink;
    for (size_t r = 0; r < keys; r += VN)
        vstore(s + r, vset(p->scale) * dots(p->head_dim, p->q + head * p->head_dim, p->k + (key + r) * p->ldkv,
                                            p->ldkv, keys - r));
    for (size_t r = 0; r < keys; r++)
        top = s[r] > top ? s[r] : top;
    shrink = expf(*max - top);
    *sum *= shrink;
    for (size_t r = 0; r < keys; r += VN)
        vput(s + r, vexp(vget(s + r, keys - r) - vset(top)), keys - r);
    for (size_t r = 0; r < keys; r++)
        *sum += s[r];
    *max = top;
    weigh_values(p->head_dim, keys, s, p->v + key * p->ldkv, p->ldkv, shrink, p->out + head * p->head_dim);
}

static void decode(const ql_attention_panel *p, float *scratch)
{
    float *max = scratch, *sum = max + p->group;
    for (size_t head = 0; head < p->group; head++) {
        max[head] = -INFINITY;
        sum[head] = 0;
    }
    memset(p->out, 0, p->group * p->head_dim * sizeof *p->out);
    for (size_t key = 0; key <= p->first; key += STREAM)
        for (size_t head = 0; head < p->group; head++)
            decode_step(p, head, key, p->first + 1 - key < STREAM ? p->first + 1 - key : STREAM, max + head,
                        sum + head);
    for (size_t head = 0; head < p->group; head++)
        for (size_t d = 0; d < p->head_dim; d++)
            p->out[head * p->head_dim + d] /= sum[head];
}

const ql_attention_kernels QL_TIER_NAME(ql_attention) = {
    .panel = PANEL,
    .forward = forward,
    .dq = dq,
    .dkv = dkv,
    .decode = decode,
};
