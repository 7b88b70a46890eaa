/* Attention kernels; QL_TIER names the instruction set this file is compiled for.
 *
 * A panel lies transposed, [head_dim][PANEL], so that lanes are its queries (forward) or its keys (backward)
 * and no sum goes across lanes; the other side streams by. Products are rows of the stream, read as they lie
 * and broadcast, times a panel: scores S[stream][PANEL] take the stream's rows; what is accumulated over the
 * stream, [head_dim][PANEL], takes its columns. Only dq sums over the panel's side: S[stream][PANEL] times
 * the panel's rows. */
#include <float.h>
#include <math.h>

#include "model/ops_attention_fma.h"
#include "model/ops_exp.h"
#include "model/ops_kernels.h"
#include "model/ops_tier.h"

enum { STREAM = QL_ATTENTION_STREAM };

/* Rows become lanes (Eklundh 1972). */
static inline __attribute__((always_inline)) void vtranspose(vf rows[VN])
{
#pragma GCC unroll 4
    for (int step = VN / 2; step; step /= 2)
#pragma GCC unroll 16
        for (int i = 0; i < VN; i++)
            if (!(i & step))
                vexchange(&rows[i], &rows[i + step], step);
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

/* Rows a multiple of 1 KB apart share so few sets of a first-level cache that 64 of them push each other out, and
 * what is accumulated reads each of their lines 16 / ROWS times: copying such rows close together pays from 4 on. */
static const float *close_rows(const float *x, size_t *ld, size_t rows, size_t head_dim, float *copy)
{
    size_t close = head_dim + 16;
    if (ROWS > 4 || *ld % 256 != 0)
        return x;
    for (size_t r = 0; r < rows; r++)
        memcpy(copy + r * close, x + r * *ld, head_dim * sizeof *x);
    *ld = close;
    return copy;
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

/* The same: a query sees no key that its window has left behind. */
static void hide_old_keys(float *s, size_t rows, size_t key, size_t query, size_t window)
{
    for (size_t r = 0; r < rows && key + r + window < query + PANEL; r++)
        for (size_t i = key + r + window > query ? key + r + window - query : 0; i < PANEL; i++)
            s[r * PANEL + i] = -INFINITY;
}

/* Stream rows are queries from position `query`, lanes keys from position `key`. */
static void hide_late_queries(float *s, size_t rows, size_t query, size_t key, size_t window)
{
    for (size_t r = query < key + window ? key + window - query : 0; r < rows; r++)
        for (size_t i = 0; i < PANEL && key + i + window <= query + r; i++)
            s[r * PANEL + i] = -INFINITY;
}

static void hide_earlier_queries(float *s, size_t rows, size_t query, size_t key)
{
    for (size_t r = 0; r < rows && query + r < key + PANEL; r++)
        for (size_t i = query + r + 1 - key; i < PANEL; i++)
            s[r * PANEL + i] = -INFINITY;
}

static void cap(float *s, size_t rows, float softcap)
{
    for (size_t i = 0; i < rows * PANEL; i += VN)
        vstore(s + i, vsoftcap(vload(s + i), softcap));
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

static void forward(const ql_attention_part *p, float *scratch)
{
    size_t hd = p->head_dim, end = p->first + p->rows;
    float *q = scratch, *out = q + hd * PANEL, *s = out + hd * PANEL, *copy = s + STREAM * PANEL;
    float max[PANEL], sum[PANEL];
    transpose_in(q, hd, p->q, p->ldq, p->rows, p->scale);
    fill(out, hd * PANEL, 0);
    fill(max, PANEL, -INFINITY);
    fill(sum, PANEL, 0);
    /* From the first key in sight of the first query on, the first stream has one for every query. */
    for (size_t key = p->first >= p->window ? p->first + 1 - p->window : 0; key < end; key += STREAM) {
        size_t keys = end - key < STREAM ? end - key : STREAM;
        scores(keys, hd, p->k + key * p->ldkv, p->ldkv, q, s);
        if (p->softcap > 0)
            cap(s, keys, p->softcap);
        if (key + keys > p->first)
            hide_later_keys(s, keys, key, p->first);
        if (end > p->window)
            hide_old_keys(s, keys, key, p->first, p->window);
        softmax_step(s, keys, max, sum, out, hd);
        size_t ldv = p->ldkv;
        const float *v = close_rows(p->v + key * p->ldkv, &ldv, keys, hd, copy);
        accumulate(keys, hd, v, ldv, s, out);
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

/* A panel of keys on its way past the queries. */
typedef struct key_panel {
    size_t first;             /* position of its first key */
    float *k, *v, *dk, *dv;   /* [head_dim][PANEL] */
    float *rows, *s, *ds;     /* k's rows [PANEL][pad]; [STREAM][PANEL] twice */
    float *copy;              /* of close_rows, twice */
} key_panel;

/* s, scores that are hidden or capped already, becomes the weights of the softmax, and ds, the weights' gradients, the
 * scores' before their cap. */
static void softmax_gradient(const ql_attention_part *p, size_t query, size_t rows, float *s, float *ds)
{
    for (size_t r = 0; r < rows; r++) {
        vf lse = vset(p->lse[query + r]), delta = vset(p->delta[query + r]);
        for (size_t i = r * PANEL; i < (r + 1) * PANEL; i += VN) {
            vf score = vload(s + i), e = vexp(score - lse), grad = e * (vload(ds + i) - delta);
            if (p->softcap > 0) /* a hidden score is minus infinity: its slope is to be 0, too */
                grad = grad * vsoftcap_slope(vmax(score, vset(-p->softcap)), p->softcap);
            vstore(s + i, e);
            vstore(ds + i, grad);
        }
    }
}

static void backward_step(const ql_attention_part *p, const key_panel *panel, size_t query, size_t rows)
{
    size_t hd = p->head_dim, pad = ql_attention_pad(hd), ldq = p->ldq, lddo = p->lddo;
    const float *q = close_rows(p->q + query * ldq, &ldq, rows, hd, panel->copy);
    const float *dout = close_rows(p->dout + query * lddo, &lddo, rows, hd, panel->copy + STREAM * (hd + 16));
    float *s = panel->s, *ds = panel->ds;
    scores(rows, hd, q, ldq, panel->k, s);
    scores(rows, hd, dout, lddo, panel->v, ds);
    if (p->softcap > 0)
        cap(s, rows, p->softcap);
    if (query < panel->first + PANEL)
        hide_earlier_queries(s, rows, query, panel->first);
    if (p->length > p->window)
        hide_late_queries(s, rows, query, panel->first, p->window);
    softmax_gradient(p, query, rows, s, ds);
    accumulate(rows, hd, dout, lddo, s, panel->dv);
    accumulate(rows, hd, q, ldq, ds, panel->dk);
    /* The part's first panel passes all of its queries, unless its window keeps it from them. */
    bool add = panel->first > p->first || p->length > p->window;
    accumulate_stream(rows, pad, ds, panel->rows, p->dq + (query - p->first) * pad, add);
}

static void backward(const ql_attention_part *p, float *scratch)
{
    size_t hd = p->head_dim, pad = ql_attention_pad(hd);
    key_panel panel = {.k = scratch, .v = scratch + hd * PANEL, .dk = scratch + 2 * hd * PANEL};
    panel.dv = panel.dk + hd * PANEL;
    panel.rows = panel.dv + hd * PANEL;
    panel.s = panel.rows + pad * PANEL;
    panel.ds = panel.s + STREAM * PANEL;
    panel.copy = panel.ds + STREAM * PANEL;
    fill(panel.rows, pad * PANEL, 0);
    bool windowed = p->length > p->window;
    if (windowed)
        memset(p->dq, 0, (p->length - p->first) * pad * sizeof *p->dq);
    for (size_t at = 0; at < p->rows; at += PANEL) {
        size_t keys = p->rows - at < PANEL ? p->rows - at : PANEL;
        panel.first = p->first + at;
        transpose_in(panel.k, hd, p->k + at * p->ldkv, p->ldkv, keys, p->scale);
        transpose_in(panel.v, hd, p->v + at * p->ldkv, p->ldkv, keys, 1);
        transpose_out(panel.rows, pad, keys, panel.k, hd, 1);
        fill(panel.dk, 2 * hd * PANEL, 0);
        size_t last = windowed ? panel.first + keys - 1 + p->window : p->length, end = last < p->length ? last : p->length;
        for (size_t query = panel.first; query < end; query += STREAM)
            backward_step(p, &panel, query, end - query < STREAM ? end - query : STREAM);
        transpose_out(p->dk + at * p->lddkv, p->lddkv, keys, panel.dk, hd, p->scale);
        transpose_out(p->dv + at * p->lddkv, p->lddkv, keys, panel.dv, hd, 1);
    }
}

/* q times each of up to VN keys, one a lane; minus infinity in the other lanes. */
static vf dots(size_t head_dim, const float *q, const float *k, size_t ld, size_t keys)
{
    vf sum[VN];
#pragma GCC unroll 16
    for (size_t r = 0; r < VN; r++)
        sum[r] = vset(r < keys ? 0 : -INFINITY);
    for (size_t d = 0; d < head_dim; d += VN) {
        if (keys >= VN && head_dim - d >= VN) {
            vf x = vload(q + d);
#pragma GCC unroll 16
            for (size_t r = 0; r < VN; r++)
                sum[r] = vfma(x, vload(k + r * ld + d), sum[r]);
        } else {
            vf x = vget(q + d, head_dim - d);
#pragma GCC unroll 16
            for (size_t r = 0; r < VN; r++)
                if (r < keys)
                    sum[r] = vfma(x, vget(k + r * ld + d, head_dim - d), sum[r]);
        }
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
static void decode_step(const ql_attention_part *p, size_t head, size_t key, size_t keys, float *max, float *sum)
{
    float s[STREAM], top, shrink;
    vf best = vset(*max), total = vset(0);
    for (size_t r = 0; r < keys; r += VN) {
        vf x = vset(p->scale) * dots(p->head_dim, p->q + head * p->head_dim, p->k + (key + r) * p->ldkv, p->ldkv,
                                     keys - r);
        if (p->softcap > 0) /* keys that are not there stay hidden */
            x = vless(x, vset(-FLT_MAX), x, vsoftcap(x, p->softcap));
        best = vmax(x, best);
        vstore(s + r, x);
    }
    top = vhighest(best);
    shrink = expf(*max - top);
    for (size_t r = 0; r < keys; r += VN) {
        vf e = vexp(vload(s + r) - vset(top));
        total = total + e;
        vstore(s + r, e);
    }
    *sum = *sum * shrink + vsum(total);
    *max = top;
    weigh_values(p->head_dim, keys, s, p->v + key * p->ldkv, p->ldkv, shrink, p->out + head * p->head_dim);
}

static void decode(const ql_attention_part *p, float *scratch)
{
    float *max = scratch, *sum = max + p->group;
    for (size_t head = 0; head < p->group; head++) {
        max[head] = -INFINITY;
        sum[head] = 0;
    }
    memset(p->out, 0, p->group * p->head_dim * sizeof *p->out);
    for (size_t key = 0; key < p->rows; key += STREAM)
        for (size_t head = 0; head < p->group; head++)
            decode_step(p, head, key, p->rows - key < STREAM ? p->rows - key : STREAM, max + head, sum + head);
    for (size_t head = 0; head < p->group; head++) {
        for (size_t d = 0; d < p->head_dim; d++)
            p->out[head * p->head_dim + d] /= sum[head];
        p->lse_out[head] = max[head] + logf(sum[head]);
    }
}

const ql_attention_kernels QL_TIER_NAME(ql_attention) = {
    .panel = PANEL,
    .forward = forward,
    .backward = backward,
    .decode = decode,
};
