/* Attention on tiles against a double implementation that gets the inputs as they are rounded, so that a derived bound
 * is left with the weights' and their gradients' rounding, and is narrow enough to see 2 % or one key that is missing.
 * With QL_AMX_EMULATED over tiles in plain C, else by all that this processor has. */
#include "attention_support.h"
#include "base/half.h"

static const shape shapes[] = {
    {2, 1, 64, 1, {330}, 0, 0},       /* several chunks of keys, and parts of them */
    {3, 1, 64, 3, {10, 7, 90}, 0, 0}, /* borders within blocks */
    {2, 2, 128, 2, {64, 65}, 0, 0},   {2, 1, 32, 1, {300}, 100, 0}, {2, 2, 48, 2, {33, 95}, 0, 4},
    {1, 1, 80, 2, {100, 40}, 37, 0},  {1, 1, 96, 1, {140}, 0, 2},   {2, 1, 256, 2, {70, 3}, 0, 0},
    {1, 1, 64, 1, {600}, 0, 0},
};
enum { SHAPES = sizeof shapes / sizeof *shapes, NONE = 100000 /* no token's number */ };

/* A sum of double terms and what its rounding depends on. */
typedef struct sum {
    double value, squares, size;
} sum;

static void add(sum *s, double term)
{
    s->value += term;
    s->squares += term * term;
    s->size += fabs(term);
}

/* Each term was rounded to bf16 (2^-9 at most, evenly spread, so a standard deviation of 2^-9 / sqrt 3; six of them)
 * after relative errors of up to `each`. */
static double bound_of(const sum *s, double each)
{
    return 6 * 0x1p-9 / sqrt(3) * sqrt(s->squares) + each * s->size + 1e-30;
}

typedef struct reference {
    double *lse;           /* as p->lse */
    sum *o, *dq, *dk, *dv; /* [m][columns], without gaps */
    sum *mean_q, *mean_k;  /* what delta's error does to dq and dk: of variances and absolute values */
    double each;           /* error of a weight: twice that of exp (2^-13.2; its sum has it, too), and the score's */
} reference;

static void *zeros(size_t count, size_t size)
{
    void *x = calloc(count, size);
    ck_assert_ptr_nonnull(x);
    return x;
}

/* One row of the softmax; the key at `missing` of the stream is left out. */
static void reference_row(const problem *p, reference *r, size_t head, size_t token, size_t missing)
{
    size_t hd = p->config.head_dim, kv = head / (p->config.heads / p->config.kv_heads), first = first_seen(p, token);
    size_t cols = p->config.heads * hd, kv_cols = p->config.kv_heads * hd, row = token * cols + head * hd;
    const float *q = p->q + token * p->ldq + head * hd, *dout = p->dout + token * p->ldq + head * hd;
    double share[1024], pull[1024], slope[1024], highest = 0, all = 0, scale = p->config.scale;
    sum mean = {0};
    for (size_t j = first; j <= token; j++) {
        double score = 0;
        pull[j - first] = 0;
        for (size_t d = 0; d < hd; d++) {
            score += (double)q[d] * p->k[j * p->ldkv + kv * hd + d];
            pull[j - first] += (double)dout[d] * p->v[j * p->ldkv + kv * hd + d];
        }
        score = capped(p, score * scale);
        highest = fabs(score) > highest ? fabs(score) : highest;
        slope[j - first] = p->config.softcap > 0 ? 1 - score / p->config.softcap * (score / p->config.softcap) : 1;
        share[j - first] = j == missing ? 0 : exp(score);
        all += share[j - first];
    }
    r->lse[head * p->m + token] = log(all);
    r->each = fmax(r->each, 2 * 0x1.1p-13 + highest * 0x1p-21);
    for (size_t j = first; j <= token; j++) {
        share[j - first] /= all;
        add(&mean, share[j - first] * pull[j - first]);
        for (size_t d = 0; d < hd; d++)
            add(&r->o[row + d], share[j - first] * p->v[j * p->ldkv + kv * hd + d]);
    }
    double off = bound_of(&mean, r->each); /* of delta, which is one for all keys of the row */
    for (size_t j = first; j <= token; j++)
        for (size_t d = 0; d < hd; d++) {
            size_t at = j * kv_cols + kv * hd + d;
            double k = p->k[j * p->ldkv + kv * hd + d], weight = share[j - first] * slope[j - first] * scale;
            double grad = weight * (pull[j - first] - mean.value);
            add(&r->dq[row + d], grad * k);
            add(&r->mean_q[row + d], weight * off * k);
            add(&r->dk[at], grad * q[d]);
            add(&r->mean_k[at], weight * off * q[d]);
            add(&r->dv[at], share[j - first] * dout[d]);
        }
}

static reference refer(const problem *p, size_t missing)
{
    size_t floats = p->m * p->config.heads * p->config.head_dim,
           kv_floats = p->m * p->config.kv_heads * p->config.head_dim;
    reference r = {zeros(p->config.heads * p->m, sizeof(double)),
                   zeros(floats, sizeof(sum)),
                   zeros(floats, sizeof(sum)),
                   zeros(kv_floats, sizeof(sum)),
                   zeros(kv_floats, sizeof(sum)),
                   zeros(floats, sizeof(sum)),
                   zeros(kv_floats, sizeof(sum)),
                   0};
    for (size_t head = 0; head < p->config.heads; head++)
        for (size_t t = 0; t < p->m; t++)
            reference_row(p, &r, head, t, missing);
    return r;
}

static void drop(reference *r)
{
    free(r->lse);
    free(r->o);
    free(r->dq);
    free(r->dk);
    free(r->dv);
    free(r->mean_q);
    free(r->mean_k);
}

/* How many of got[m][cols], times `factor`, are out of bound; the worst of them in bounds goes to *worst. `means` are
 * of delta's error: a row's is one number, whose terms add up, while those of several rows are independent. */
static size_t outside(const problem *p, const reference *r, const float *got, size_t ld, size_t cols, const sum *want,
                      const sum *means, bool one_row, float factor, double *worst)
{
    size_t count = 0;
    for (size_t i = 0; i < p->m * cols; i++) {
        double bound = bound_of(&want[i], r->each);
        if (means)
            bound += one_row ? fabs(means[i].value) : sqrt(means[i].squares);
        double off = fabs((double)got[i / cols * ld + i % cols] * factor - want[i].value) / bound;
        *worst = off > *worst ? off : *worst;
        count += !(off <= 1);
    }
    return count;
}

static size_t outside_o(const problem *p, const reference *r, float factor, double *worst)
{
    return outside(p, r, p->o, p->ldq, p->config.heads * p->config.head_dim, r->o, NULL, false, factor, worst);
}

static size_t outside_dq(const problem *p, const reference *r, float factor, double *worst)
{
    return outside(p, r, p->dq, p->ldq, p->config.heads * p->config.head_dim, r->dq, r->mean_q, true, factor, worst);
}

static size_t outside_dk(const problem *p, const reference *r, float factor, double *worst)
{
    return outside(p, r, p->dk, p->ldkv, p->config.kv_heads * p->config.head_dim, r->dk, r->mean_k, false, factor,
                   worst);
}

static size_t outside_dv(const problem *p, const reference *r, float factor, double *worst)
{
    return outside(p, r, p->dv, p->ldkv, p->config.kv_heads * p->config.head_dim, r->dv, NULL, false, factor, worst);
}

static void to_bf16(float *x, size_t rows, size_t cols, size_t ld, float fold)
{
    for (size_t t = 0; t < rows; t++)
        for (size_t i = 0; i < cols; i++)
            x[t * ld + i] = ql_bf16_to_f32(ql_f32_to_bf16(x[t * ld + i] * fold)) / fold;
}

START_TEST(within_the_bound_which_sees_small_faults)
{
    if (!use_kind(_i / SHAPES))
        return;
    problem p;
    const shape *s = &shapes[_i % SHAPES];
    setup(&p, s, true);
    size_t cols = s->heads * s->head_dim, kv_cols = s->kv_heads * s->head_dim;
    to_bf16(p.q, p.m, cols, p.ldq, ql_tiles_fold(p.config.scale, s->softcap));
    to_bf16(p.k, p.m, kv_cols, p.ldkv, 1);
    to_bf16(p.v, p.m, kv_cols, p.ldkv, 1);
    to_bf16(p.dout, p.m, cols, p.ldq, 1);
    ql_workers *workers = make_workers(2, ql_attention_scratch(&p.config, p.m, true));
    run(&p, workers);
    reference r = refer(&p, NONE);
    size_t (*const checks[])(const problem *, const reference *, float, double *) = {outside_o, outside_dq, outside_dk,
                                                                                     outside_dv};
    for (size_t i = 0; i < 4; i++) {
        double worst = 0;
        size_t count = checks[i](&p, &r, 1, &worst);
        ck_assert_msg(!count, "%s, shape %d: %zu of %s out of bound, the worst %.3g times", kind_names[_i / SHAPES],
                      _i % SHAPES, count, (const char *[]){"o", "dq", "dk", "dv"}[i], worst);
        ck_assert_uint_gt(checks[i](&p, &r, 1.02f, &worst), p.m * s->head_dim / 8);
    }
    for (size_t i = 0; i < s->heads * p.m; i++)
        assert_near(p.lse[i], r.lse[i], r.each, "shape %d: lse of token %zu", _i, i % p.m);
    reference lacking = refer(&p, p.m / 2); /* it is to be seen in all but itself, where the reference has nothing */
    ck_assert_uint_gt(outside_o(&p, &lacking, 1, &(double){0}), s->head_dim);
    ck_assert_uint_gt(outside_dq(&p, &lacking, 1, &(double){0}), s->head_dim);
    drop(&lacking);
    drop(&r);
    ql_workers_destroy(workers);
}
END_TEST

/* Pairs of tokens, of which the second gives the first a score of 0 and itself one of x: lse is log(1 + e^x), of which
 * the maximum rounded up takes nothing away. */
START_TEST(powers_are_within_their_bound)
{
    if (!use_kind(_i))
        return;
    enum { PAIRS = 4096 };
    static size_t start[PAIRS + 1];
    static float q[2 * PAIRS][2], k[2 * PAIRS][2], o[2 * PAIRS][2], lse[2 * PAIRS];
    for (size_t i = 0; i < PAIRS; i++) {
        start[i + 1] = 2 * i + 2;
        q[2 * i + 1][0] = q[2 * i + 1][1] = 1;
        k[2 * i + 1][0] = -(float)(i / 64) / 16; /* 0 to -4 in two parts that are whole in bf16 */
        k[2 * i + 1][1] = -(float)(i % 64) / 1024;
    }
    ql_attention config = {1, 1, 2, 0.69314718f, PAIRS, start, 0, 0, true};
    ck_assert(ql_tiles_fold(config.scale, 0) == 1);
    ql_workers *workers = make_workers(1, ql_attention_scratch(&config, 2 * PAIRS, false));
    ql_attention_forward(&config, q[0], 2, k[0], k[0], 2, o[0], 2, lse, workers);
    for (size_t i = 0; i < PAIRS; i++) {
        double x = (double)k[2 * i + 1][0] + k[2 * i + 1][1], power = exp(lse[2 * i + 1]) - 1;
        assert_near(power / exp2(x), 1, 0x1.bp-14 + 1e-6 * exp2(-x), "2^%g", x);
        assert_near(lse[2 * i], 0, 0, "a score of 0");
    }
    ql_workers_destroy(workers);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ops_attention_tiles");
    TCase *tests = tcase_create("tiles");
    tcase_set_timeout(tests, 300);
    tcase_add_loop_test(tests, within_the_bound_which_sees_small_faults, 0, KINDS * SHAPES);
    tcase_add_loop_test(tests, powers_are_within_their_bound, 0, KINDS);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
