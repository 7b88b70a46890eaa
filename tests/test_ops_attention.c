/* Attention: each tier against a plain double implementation and central finite differences of it; what a
 * token must not see; the cache; threads. */
#include "attention_support.h"

/* The tiers of ops_support.h up to avx512, whose attention the others share; then the kinds of tiles, which round to bf16. */
enum { EXACT = 3, END_TIERS = EXACT + KINDS };
#ifdef QL_AMX_EMULATED
enum { FIRST_TIER = EXACT };
#else
enum { FIRST_TIER = 0 };
#endif

static bool rounds; /* the tier at hand */

static bool use_attention_tier(int tier)
{
    rounds = tier >= EXACT;
    return rounds ? use_kind(tier - EXACT) : use_tier(tier);
}

static const char *name_of(int tier)
{
    return tier < EXACT ? tier_names[tier] : kind_names[tier - EXACT];
}

static const shape shapes[] = {
    {1, 1, 8, 1, {1}, 0, 0},
    {2, 1, 16, 2, {2, 63}, 0, 0},
    {4, 2, 16, 3, {63, 64, 65}, 0, 0},
    {7, 1, 64, 3, {65, 1, 130}, 0, 0},
    {2, 1, 80, 2, {200, 2}, 0, 0},
    {2, 2, 128, 1, {65}, 0, 0},
    {14, 2, 64, 1, {63}, 0, 0},
    {3, 3, 13, 2, {33, 5}, 0, 0},
    {1, 1, 256, 2, {40, 64}, 0, 0},
    {2, 2, 1, 1, {20}, 0, 0},
    {4, 1, 10, 2, {200, 17}, 0, 0},
    {2, 1, 16, 3, {600, 1, 257}, 0, 0}, /* several parts a sequence in the backward pass */
    {1, 1, 8, 2, {1100, 256}, 0, 0},
    {2, 1, 16, 3, {63, 1, 130}, 1, 0}, /* windows and soft caps */
    {2, 1, 16, 2, {200, 40}, 7, 0},
    {1, 1, 16, 2, {300, 65}, 64, 0},
    {2, 2, 24, 2, {130, 5}, 0, 2.5f},
    {1, 1, 8, 2, {330, 70}, 100, 4},
    {1, 1, 16, 1, {290}, 270, 1},
    {2, 1, 16, 1, {65}, 64, 0.5f},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* Row `token` of head `head` in double; returns its log of the softmax denominator. `moved` is an element of q, k
 * or v that counts as larger by `step`. */
static double reference_row(const problem *p, size_t head, size_t token, const float *moved, double step, double *o)
{
    size_t hd = p->config.head_dim, kv = head / (p->config.heads / p->config.kv_heads);
    size_t first = first_seen(p, token);
    double s[2048], max = -INFINITY, sum = 0;
    for (size_t j = first; j <= token; j++) {
        double dot = 0;
        for (size_t d = 0; d < hd; d++) {
            const float *q = p->q + token * p->ldq + head * hd + d, *k = p->k + j * p->ldkv + kv * hd + d;
            dot += (*q + (q == moved ? step : 0)) * (*k + (k == moved ? step : 0));
        }
        s[j - first] = capped(p, dot * p->config.scale);
        max = s[j - first] > max ? s[j - first] : max;
    }
    memset(o, 0, hd * sizeof *o);
    for (size_t j = first; j <= token; j++) {
        double e = exp(s[j - first] - max);
        sum += e;
        for (size_t d = 0; d < hd; d++) {
            const float *v = p->v + j * p->ldkv + kv * hd + d;
            o[d] += e * (*v + (v == moved ? step : 0));
        }
    }
    for (size_t d = 0; d < hd; d++)
        o[d] /= sum;
    return max + log(sum);
}

/* sum(o * dout) over the rows that an element of `token` and the heads [head, end) can move. */
static double reference_loss(const problem *p, size_t token, size_t last, size_t head, size_t end, const float *moved,
                             double step)
{
    double loss = 0, o[256];
    for (size_t h = head; h < end; h++)
        for (size_t t = token; t <= last; t++) {
            reference_row(p, h, t, moved, step, o);
            for (size_t d = 0; d < p->config.head_dim; d++)
                loss += o[d] * p->dout[t * p->ldq + h * p->config.head_dim + d];
        }
    return loss;
}

/* Rounding errors add up like a random walk over head_dim products and the keys; |q| <= 3, the rest <= 1. The
 * gradients keep this bound: their terms are weighted by the softmax, whose rows sum to 1 (an eighth was seen; of bf16's,
 * six tenths). */
static double forward_bound(const problem *p)
{
    return (rounds ? 0.15 * 0x1p-8 : 8 * 0x1p-24) * (3 * sqrt((double)p->config.head_dim) + sqrt((double)p->m) + 4);
}

static void check_forward(const problem *p, const char *name)
{
    size_t hd = p->config.head_dim;
    double o[256], bound = forward_bound(p);
    for (size_t h = 0; h < p->config.heads; h++)
        for (size_t t = 0; t < p->m; t++) {
            double lse = reference_row(p, h, t, NULL, 0, o);
            assert_near(p->lse[h * p->m + t], lse, bound + fabs(lse) * (rounds ? 0 : 4 * 0x1p-24), "%s: lse, head %zu, token %zu",
                        name, h, t);
            for (size_t d = 0; d < hd; d++)
                assert_near(p->o[t * p->ldq + h * hd + d], o[d], bound, "%s: o, head %zu, token %zu", name, h, t);
        }
}

/* The gradients of one row of the softmax in double: dq whole, dk and dv added to. */
static void reference_gradients(const problem *p, size_t head, size_t token, double *dq, double *dk, double *dv)
{
    size_t hd = p->config.head_dim, kv = head / (p->config.heads / p->config.kv_heads);
    size_t first = first_seen(p, token), ld = p->config.kv_heads * hd;
    const float *q = p->q + token * p->ldq + head * hd, *dout = p->dout + token * p->ldq + head * hd;
    double o[256], share[2048], pull[2048], slope[2048], mean = 0, lse = reference_row(p, head, token, NULL, 0, o);
    for (size_t j = first; j <= token; j++) {
        const float *k = p->k + j * p->ldkv + kv * hd, *v = p->v + j * p->ldkv + kv * hd;
        double dot = 0;
        pull[j - first] = 0;
        for (size_t d = 0; d < hd; d++) {
            dot += (double)q[d] * k[d];
            pull[j - first] += (double)dout[d] * v[d];
        }
        double score = capped(p, dot * p->config.scale), ratio = p->config.softcap > 0 ? score / p->config.softcap : 0;
        slope[j - first] = 1 - ratio * ratio;
        share[j - first] = exp(score - lse);
        mean += share[j - first] * pull[j - first];
    }
    memset(dq, 0, hd * sizeof *dq);
    for (size_t j = first; j <= token; j++)
        for (size_t d = 0; d < hd; d++) {
            double ds = share[j - first] * (pull[j - first] - mean) * slope[j - first] * p->config.scale;
            dq[d] += ds * p->k[j * p->ldkv + kv * hd + d];
            dk[j * ld + kv * hd + d] += ds * q[d];
            dv[j * ld + kv * hd + d] += share[j - first] * dout[d];
        }
}

static void check_gradients(const problem *p, const char *name)
{
    size_t hd = p->config.head_dim, cols = p->config.kv_heads * hd;
    double dq[256], *dk = calloc(p->m * cols, sizeof *dk), *dv = calloc(p->m * cols, sizeof *dv);
    double bound = forward_bound(p);
    for (size_t h = 0; h < p->config.heads; h++)
        for (size_t t = 0; t < p->m; t++) {
            reference_gradients(p, h, t, dq, dk, dv);
            for (size_t d = 0; d < hd; d++)
                assert_near(p->dq[t * p->ldq + h * hd + d], dq[d], bound, "%s: dq, head %zu, token %zu", name, h, t);
        }
    for (size_t t = 0; t < p->m; t++)
        for (size_t i = 0; i < cols; i++) {
            assert_near(p->dk[t * p->ldkv + i], dk[t * cols + i], bound, "%s: dk, token %zu, %zu", name, t, i);
            assert_near(p->dv[t * p->ldkv + i], dv[t * cols + i], bound, "%s: dv, token %zu, %zu", name, t, i);
        }
    free(dk);
    free(dv);
}

/* Element (token, head, d) of what q, k or v is; the finite difference against the gradient. */
static void check_slope(const problem *p, char which, size_t token, size_t head, size_t d, const char *name)
{
    size_t hd = p->config.head_dim, group = p->config.heads / p->config.kv_heads;
    size_t last = p->start[sequence_of(p, token) + 1] - 1, at = token * p->ldkv + head * hd + d;
    const float *x = which == 'k' ? p->k + at : p->v + at, *dx = which == 'k' ? p->dk + at : p->dv + at;
    size_t first_head = head * group, end = first_head + group;
    if (which == 'q') {
        at = token * p->ldq + head * hd + d;
        x = p->q + at;
        dx = p->dq + at;
        first_head = head;
        end = head + 1;
        last = token;
    }
    double step = 1e-5, high = reference_loss(p, token, last, first_head, end, x, step);
    double slope = (high - reference_loss(p, token, last, first_head, end, x, -step)) / (2 * step);
    assert_near(*dx, slope, forward_bound(p) + 1e-8, "%s: d%c, token %zu, head %zu, d %zu, head_dim %zu", name,
                which, token, head, d, hd);
}

START_TEST(matches_double_and_its_differences)
{
    const shape *s = &shapes[_i % SHAPES];
    int tier = _i / SHAPES;
    if (!use_attention_tier(tier))
        return;
    problem p;
    setup(&p, s, rounds);
    ql_workers *workers = make_workers(2, ql_attention_scratch(&p.config, p.m, true));
    run(&p, workers);
    check_forward(&p, name_of(tier));
    check_gradients(&p, name_of(tier));
    assert_gaps_untouched(p.o, p.m, s->heads * s->head_dim, p.ldq);
    assert_gaps_untouched(p.dq, p.m, s->heads * s->head_dim, p.ldq);
    assert_gaps_untouched(p.dk, p.m, s->kv_heads * s->head_dim, p.ldkv);
    assert_gaps_untouched(p.dv, p.m, s->kv_heads * s->head_dim, p.ldkv);
    for (size_t i = 0; i < 24 && !rounds; i++) {
        size_t token = (i * 29 + 11) % p.m, d = (i * 7 + 3) % s->head_dim;
        check_slope(&p, 'q', token, i % s->heads, d, name_of(tier));
        check_slope(&p, 'k', token, i % s->kv_heads, d, name_of(tier));
        check_slope(&p, 'v', token, i % s->kv_heads, d, name_of(tier));
    }
    ql_workers_destroy(workers);
}
END_TEST

static size_t floats_q(const problem *p)
{
    return (p->m - 1) * p->ldq + p->config.heads * p->config.head_dim;
}

static size_t floats_kv(const problem *p)
{
    return (p->m - 1) * p->ldkv + p->config.kv_heads * p->config.head_dim;
}

START_TEST(same_bits_on_any_threads)
{
    if (!use_attention_tier(_i))
        return;
    for (size_t i = 0; i < SHAPES; i++) {
        problem one, many;
        setup(&one, &shapes[i], rounds);
        ql_scratch need = ql_attention_scratch(&one.config, one.m, true);
        for (size_t threads = 1; threads <= 3; threads++) {
            ql_workers *workers = make_workers(threads, need);
            many = one;
            many.o = random_matrix(one.m, one.config.heads * one.config.head_dim, one.ldq);
            many.dk = empty_matrix(one.m, one.config.kv_heads * one.config.head_dim, one.ldkv);
            many.dv = empty_matrix(one.m, one.config.kv_heads * one.config.head_dim, one.ldkv);
            many.lse = guarded(one.config.heads * one.m);
            many.dout = random_matrix(one.m, one.config.heads * one.config.head_dim, one.ldq);
            memcpy(many.dout, one.dout, floats_q(&one) * sizeof(float));
            memcpy(many.o, one.q, floats_q(&one) * sizeof(float));
            if (threads == 1) {
                run(&one, workers);
                many.dq = empty_matrix(one.m, one.config.heads * one.config.head_dim, one.ldq);
                run(&many, workers);
            } else { /* o over q, dq over dout */
                many.dq = many.dout;
                ql_attention_forward(&many.config, many.o, one.ldq, one.k, one.v, one.ldkv, many.o, one.ldq, many.lse,
                                     workers);
                ql_attention_grads g = {one.q,    one.k,   one.v,    many.o,  many.dout, many.lse, many.dq, many.dk,
                                        many.dv, one.ldq, one.ldkv, one.ldq, one.ldq,   one.ldq,  one.ldkv};
                ql_attention_backward(&many.config, &g, workers);
            }
            ck_assert_mem_eq(one.o, many.o, floats_q(&one) * sizeof(float));
            ck_assert_mem_eq(one.lse, many.lse, one.config.heads * one.m * sizeof(float));
            for (size_t t = 0; t < one.m; t++)
                ck_assert_mem_eq(one.dq + t * one.ldq, many.dq + t * one.ldq,
                                 one.config.heads * one.config.head_dim * sizeof(float));
            ck_assert_mem_eq(one.dk, many.dk, floats_kv(&one) * sizeof(float));
            ck_assert_mem_eq(one.dv, many.dv, floats_kv(&one) * sizeof(float));
            ql_workers_destroy(workers);
        }
    }
}
END_TEST

static void move_token(const problem *p, size_t token)
{
    for (size_t i = 0; i < p->config.heads * p->config.head_dim; i++) {
        p->q[token * p->ldq + i] += 1;
        p->dout[token * p->ldq + i] -= 2;
    }
    for (size_t i = 0; i < p->config.kv_heads * p->config.head_dim; i++) {
        p->k[token * p->ldkv + i] += 1;
        p->v[token * p->ldkv + i] -= 2;
    }
}

/* What one token is must reach itself and, forward, the later tokens of its sequence; backward, the earlier ones. */
START_TEST(sees_only_its_own_past)
{
    if (!use_attention_tier(_i))
        return;
    static const shape s = {2, 1, 16, 3, {63, 70, 33}, 0, 0};
    static const size_t moved[] = {0, 5, 62, 63, 94, 95, 127, 132, 133, 165};
    for (size_t i = 0; i < sizeof moved / sizeof *moved; i++) {
        problem before, after;
        random_state = 77;
        setup(&before, &s, rounds);
        random_state = 77;
        setup(&after, &s, rounds);
        move_token(&after, moved[i]);
        ql_workers *workers = make_workers(2, ql_attention_scratch(&before.config, before.m, true));
        run(&before, workers);
        run(&after, workers);
        for (size_t t = 0; t < before.m; t++) {
            bool own = sequence_of(&before, t) == sequence_of(&before, moved[i]);
            bool o_same = !memcmp(before.o + t * before.ldq, after.o + t * before.ldq, 32 * sizeof(float));
            bool dk_same = !memcmp(before.dk + t * before.ldkv, after.dk + t * before.ldkv, 16 * sizeof(float));
            bool dv_same = !memcmp(before.dv + t * before.ldkv, after.dv + t * before.ldkv, 16 * sizeof(float));
            bool dq_same = !memcmp(before.dq + t * before.ldq, after.dq + t * before.ldq, 32 * sizeof(float));
            ck_assert_msg(o_same == !(own && t >= moved[i]), "o of %zu, moved %zu", t, moved[i]);
            if (!own || t < moved[i]) /* a key or value of the future moves no earlier query's gradient */
                ck_assert_msg(dq_same, "dq of %zu, moved %zu", t, moved[i]);
            if (!own)
                ck_assert_msg(dk_same && dv_same, "dk, dv of %zu, moved %zu", t, moved[i]);
            if (own && t <= moved[i])
                ck_assert_msg(!dv_same, "dv of %zu, moved %zu", t, moved[i]);
        }
        ql_workers_destroy(workers);
    }
}
END_TEST

/* A later token's key and value stay unchanged when only an earlier token's dout moves. */
START_TEST(gradients_flow_back_only)
{
    if (!use_attention_tier(_i))
        return;
    static const shape s = {2, 1, 16, 1, {100}, 0, 0};
    problem p;
    setup(&p, &s, rounds);
    ql_workers *workers = make_workers(1, ql_attention_scratch(&p.config, p.m, true));
    run(&p, workers);
    float *dk = p.dk, *dv = p.dv;
    p.dk = empty_matrix(p.m, 16, p.ldkv);
    p.dv = empty_matrix(p.m, 16, p.ldkv);
    p.dout[50 * p.ldq + 3] += 1;
    run(&p, workers);
    for (size_t t = 0; t < p.m; t++) {
        ck_assert_int_eq(!memcmp(dv + t * p.ldkv, p.dv + t * p.ldkv, 16 * sizeof(float)), t > 50);
        if (t > 50)
            ck_assert_mem_eq(dk + t * p.ldkv, p.dk + t * p.ldkv, 16 * sizeof(float));
    }
    ql_workers_destroy(workers);
}
END_TEST

START_TEST(cache_gives_what_the_whole_gives)
{
    if (!use_attention_tier(_i))
        return;
    for (size_t i = 0; i < SHAPES; i++) {
        shape s = shapes[i];
        s.sequences = 1;
        problem p;
        setup(&p, &s, rounds);
        size_t cols = s.heads * s.head_dim;
        double *want = calloc(p.m * cols, sizeof *want), bound = forward_bound(&p);
        for (size_t t = 0; t < p.m; t++)
            for (size_t h = 0; h < s.heads; h++)
                reference_row(&p, h, t, NULL, 0, want + t * cols + h * s.head_dim);
        for (size_t pos = 0; pos < p.m; pos += pos < 3 ? 1 : 31) {
            for (size_t n = 1; pos + n <= p.m; n += n * 3 + 1) {
                ql_workers *workers = make_workers(n % 3 + 1, ql_attention_scratch(&p.config, pos + n, false));
                float *o = empty_matrix(n, s.heads * s.head_dim, p.ldq);
                ql_attention_decode(&p.config, pos, n, p.q + pos * p.ldq, p.ldq, p.k, p.v, p.ldkv, o, p.ldq, workers);
                for (size_t t = 0; t < n; t++)
                    for (size_t j = 0; j < cols; j++)
                        assert_near(o[t * p.ldq + j], want[(pos + t) * cols + j], bound,
                                    "decode, position %zu of %zu new, column %zu", pos + t, n, j);
                assert_gaps_untouched(o, n, s.heads * s.head_dim, p.ldq);
                ql_workers_destroy(workers);
                workers = make_workers((n + 1) % 3 + 1, ql_attention_scratch(&p.config, pos + n, false));
                float *in_place = empty_matrix(n, s.heads * s.head_dim, p.ldq);
                memcpy(in_place, p.q + pos * p.ldq, ((n - 1) * p.ldq + s.heads * s.head_dim) * sizeof(float));
                ql_attention_decode(&p.config, pos, n, in_place, p.ldq, p.k, p.v, p.ldkv, in_place, p.ldq, workers);
                ck_assert_mem_eq(o, in_place, ((n - 1) * p.ldq + s.heads * s.head_dim) * sizeof(float));
                ql_workers_destroy(workers);
            }
        }
        free(want);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ops_attention");
    TCase *tests = tcase_create("attention");
    tcase_set_timeout(tests, 300);
    tcase_add_loop_test(tests, matches_double_and_its_differences, FIRST_TIER * (int)SHAPES, END_TIERS * (int)SHAPES);
    tcase_add_loop_test(tests, same_bits_on_any_threads, FIRST_TIER, END_TIERS);
    tcase_add_loop_test(tests, sees_only_its_own_past, FIRST_TIER, END_TIERS);
    tcase_add_loop_test(tests, gradients_flow_back_only, FIRST_TIER, END_TIERS);
    tcase_add_loop_test(tests, cache_gives_what_the_whole_gives, FIRST_TIER, END_TIERS);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
