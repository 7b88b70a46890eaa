/* The embedding, and the cross-entropy joined with the LM head: against double arithmetic, its gradient and central
 * finite differences, with masked tokens, several chunks of tokens, parts of the head in every kind of format, logits far
 * from their target's, bad ones, and any number of threads. */
#include "kern/kernels.h"
#include "ops_support.h"
#include "quant/sweep.h"
#include "quant/weight.h"

enum { GAP = 5 };

typedef struct problem {
    size_t m, hidden, vocabulary, ld;
    float softcap;
    float *table, *x, *dx, *token_loss;
    int32_t *target;
    ql_weight *head;
    void *buffer;
} problem;

static void setup(problem *p, size_t m, size_t hidden, size_t vocabulary, ql_format format)
{
    ql_error err = {0};
    *p = (problem){.m = m, .hidden = hidden, .vocabulary = vocabulary, .ld = hidden + GAP};
    p->table = random_matrix(vocabulary, hidden, hidden);
    ck_assert_ok(ql_weight_quantize(&p->head, format, "head", p->table, QL_F32, hidden, vocabulary, hidden, NULL, &err),
                 &err);
    ql_weight_dequantize(p->head, 0, vocabulary, p->table, hidden);
    p->x = random_matrix(m, hidden, p->ld);
    p->dx = empty_matrix(m, hidden, p->ld);
    p->token_loss = empty_matrix(1, m, m);
    p->target = (int32_t *)guarded(m);
    for (size_t t = 0; t < m; t++)
        p->target[t] = t % 5 == 3 ? -1 : t % 11 == 2 ? -100 : (int32_t)((t * 131 + 7) % vocabulary);
    p->buffer = aligned_alloc(64, ql_loss_buffer_bytes(p->head, m, true));
    ck_assert_ptr_nonnull(p->buffer);
}

static void teardown(problem *p)
{
    ql_weight_destroy(p->head);
    free(p->buffer);
}

static ql_loss loss_of(const problem *p, float grad_scale)
{
    return (ql_loss){p->head, p->m, p->x, p->ld, p->target, grad_scale, p->dx, p->ld, p->token_loss,
                     p->softcap};
}

static ql_loss_sum run(const problem *p, const ql_loss *loss, size_t threads)
{
    ql_workers *workers = make_workers(threads, ql_loss_scratch(p->head, p->m));
    ql_loss_sum sum = ql_loss_run(loss, p->buffer, workers);
    ql_workers_destroy(workers);
    return sum;
}

/* -log softmax(x W^T)[target] of one token; element `moved` of x counts as larger by `step`. */
static double reference(const problem *p, size_t token, size_t moved, double step)
{
    double *logit = malloc(p->vocabulary * sizeof *logit), max = -INFINITY, sum = 0;
    for (size_t v = 0; v < p->vocabulary; v++) {
        logit[v] = 0;
        for (size_t d = 0; d < p->hidden; d++)
            logit[v] += (p->x[token * p->ld + d] + (d == moved ? step : 0)) * p->table[v * p->hidden + d];
        if (p->softcap > 0)
            logit[v] = (double)p->softcap * tanh(logit[v] / (double)p->softcap);
        max = logit[v] > max ? logit[v] : max;
    }
    for (size_t v = 0; v < p->vocabulary; v++)
        sum += exp(logit[v] - max);
    double loss = log(sum) + max - logit[p->target[token]];
    free(logit);
    return loss;
}

/* x is `size` times as large as numbers below 1. */
static void check(size_t m, size_t hidden, size_t vocabulary, float softcap, ql_format format, float size)
{
    problem p;
    setup(&p, m, hidden, vocabulary, format);
    p.softcap = softcap;
    for (size_t i = 0; i < (m - 1) * p.ld + hidden; i++)
        p.x[i] *= size;
    ql_loss loss = loss_of(&p, 0.25f);
    ql_loss_sum got = run(&p, &loss, 2);
    double sum = 0, bound = 8 * 0x1p-24 * (double)(hidden + 8) * (double)size;
    size_t count = 0;
    for (size_t t = 0; t < m; t++) {
        if (p.target[t] < 0) {
            ck_assert(p.token_loss[t] == 0);
            for (size_t d = 0; d < hidden; d++)
                ck_assert(p.dx[t * p.ld + d] == 0);
            continue;
        }
        double want = reference(&p, t, SIZE_MAX, 0), step = 1e-5 * (double)size;
        assert_near(p.token_loss[t], want, bound, "loss of token %zu, vocabulary %zu", t, vocabulary);
        sum += want;
        count++;
        for (size_t d = t % 7; d < hidden; d += hidden / 2 + 1) {
            double slope = (reference(&p, t, d, step) - reference(&p, t, d, -step)) / (2 * step) * 0.25;
            assert_near(p.dx[t * p.ld + d], slope, bound + 1e-9 * (double)size, "dx of token %zu, %zu", t, d);
        }
    }
    assert_gaps_untouched(p.dx, m, hidden, p.ld);
    ck_assert_uint_eq(got.count, count);
    ck_assert_uint_eq(got.first_bad, m);
    assert_near(got.sum, sum, bound * (double)count, "the sum, vocabulary %zu", vocabulary);
    teardown(&p);
}

static const ql_format f32 = {.code = QL_CODE_F32};

START_TEST(matches_double_and_its_differences)
{
    if (!use_tier(_i))
        return;
    check(700, 24, 40, 0, f32, 1); /* three chunks */
    check(1, 8, 3, 0, f32, 1);
    check(3, 8, 1, 0, f32, 1);
    check(37, 33, 1001, 0, f32, 1);
    check(5, 16, 5000, 0, f32, 1);
    check(300, 24, 40, 3, f32, 1);
    check(20, 33, 1001, 0.5f, f32, 1);
}
END_TEST

START_TEST(heads_of_any_format_in_parts)
{
    if (!use_tier(_i))
        return;
    check(20, 96, 5000, 0, (ql_format){QL_CODE_NF4, QL_SCALE_DQ, 32, false}, 1);
    check(20, 96, 1300, 0, (ql_format){QL_CODE_INT8, QL_SCALE_F16, 64, false}, 1);
    check(20, 96, 1300, 0, (ql_format){QL_CODE_FP4, QL_SCALE_F32, 64, false}, 1);
    check(20, 96, 1300, 0, (ql_format){QL_CODE_NF4, QL_SCALE_BNB_NESTED, 32, false}, 1);
    check(60, 33, 1300, 0, (ql_format){QL_CODE_NF4, QL_SCALE_BNB_NESTED, 64, true}, 1); /* in one piece */
    check(20, 33, 1300, 0, (ql_format){.code = QL_CODE_BF16}, 1);
}
END_TEST

/* Largest logits hundreds from the target's, whose exponential is then beyond a float's range: the chunk is done again. */
START_TEST(targets_far_below)
{
    if (!use_tier(_i))
        return;
    check(300, 24, 700, 0, f32, 100);
    check(40, 24, 5000, 0, f32, 300);
    check(40, 24, 700, 90, f32, 100);
}
END_TEST

/* Where products round to bf16: x and W are such numbers here, so that what is left are the rough exponentials, rounded
 * to bf16 before the second product: 2^-8 at most of each word's own share. */
static void check_bf16(const ql_matmul_kernel *kernel, size_t m, size_t hidden, size_t vocabulary, float softcap)
{
    problem p;
    setup(&p, m, hidden, vocabulary, (ql_format){.code = QL_CODE_BF16});
    p.softcap = softcap;
    p.head->kernel = kernel;
    for (size_t i = 0; i < (m - 1) * p.ld + hidden; i++)
        p.x[i] = ql_bf16_to_f32(ql_f32_to_bf16(p.x[i] * 4));
    ql_loss loss = loss_of(&p, 1);
    run(&p, &loss, 2);
    double *logit = malloc(vocabulary * sizeof *logit), worst = 0, off = 0;
    for (size_t t = 0; t < m; t++) {
        double max = -INFINITY, sum = 0;
        if (p.target[t] < 0)
            continue;
        for (size_t v = 0; v < vocabulary; v++) {
            logit[v] = 0;
            for (size_t d = 0; d < hidden; d++)
                logit[v] += (double)p.x[t * p.ld + d] * p.table[v * hidden + d];
            if (softcap > 0)
                logit[v] = (double)softcap * tanh(logit[v] / (double)softcap);
            max = fmax(max, logit[v]);
        }
        for (size_t v = 0; v < vocabulary; v++)
            sum += exp(logit[v] - max);
        double want = log(sum) + max - logit[p.target[t]];
        off = fmax(off, fabs(want - p.token_loss[t]));
        assert_near(p.token_loss[t], want, 2e-5, "%s: loss of token %zu", kernel->name, t);
        for (size_t d = 0; d < hidden; d++) {
            double dx = 0, others = 0;
            for (size_t v = 0; v < vocabulary; v++) {
                double share = exp(logit[v] - max) / sum, is = v == (size_t)p.target[t], w = p.table[v * hidden + d];
                double slope = softcap > 0 ? 1 - logit[v] * logit[v] / (double)softcap / (double)softcap : 1;
                dx += (share - is) * slope * w;
                others += is > 0 ? 0 : share * slope * fabs(w);
            }
            worst = fmax(worst, fabs(dx - p.dx[t * p.ld + d]) / (others + 1e-9));
            assert_near(p.dx[t * p.ld + d], dx, 0x1.02p-8 * others + 1e-6, "%s: dx of token %zu, %zu", kernel->name, t, d);
        }
    }
    printf("%s: loss off by %.1e, dx by %.1e of what it adds up\n", kernel->name, off, worst);
    free(logit);
    teardown(&p);
}

START_TEST(bf16_rounds_the_gradient_alone)
{
    for (size_t i = 0; i <= ql_matmul_kernel_count; i++) {
#ifdef __x86_64__
        const ql_matmul_kernel *kernel = i < ql_matmul_kernel_count ? ql_matmul_kernels[i] : &ql_matmul_amx_emulated;
#else
        const ql_matmul_kernel *kernel = ql_matmul_kernels[i % ql_matmul_kernel_count];
#endif
        if (!kernel->bf16_inputs || (kernel->cpu & ~ql_cpu_features()))
            continue;
        check_bf16(kernel, 40, 48, 700, 0);
        check_bf16(kernel, 270, 32, 300, 0);
        check_bf16(kernel, 20, 33, 1000, 6);
    }
}
END_TEST

START_TEST(same_bits_on_any_threads_and_without_a_gradient)
{
    problem p;
    setup(&p, 300, 64, 5000, _i ? (ql_format){.code = QL_CODE_BF16} : ql_format_default());
    ck_assert_uint_gt(ql_sweep_parts(p.head), 3);
    ql_weight_allow_bf16(p.head, _i);
    ql_loss loss = loss_of(&p, 1.0f / 240);
    size_t bytes = ((p.m - 1) * p.ld + p.hidden) * sizeof(float);
    ql_loss_sum one = run(&p, &loss, 1);
    float *dx = empty_matrix(p.m, p.hidden, p.ld), *token_loss = guarded(p.m);
    memcpy(dx, p.dx, bytes);
    memcpy(token_loss, p.token_loss, p.m * sizeof(float));
    for (size_t threads = 2; threads <= 3; threads++) {
        ql_loss_sum many = run(&p, &loss, threads);
        ck_assert(many.sum == one.sum && many.count == one.count);
        for (size_t t = 0; t < p.m; t++)
            ck_assert_mem_eq(dx + t * p.ld, p.dx + t * p.ld, p.hidden * sizeof(float));
        ck_assert_mem_eq(token_loss, p.token_loss, p.m * sizeof(float));
    }
    loss.dx = NULL;
    loss.token_loss = NULL;
    ck_assert(run(&p, &loss, 2).sum == one.sum);
    teardown(&p);
}
END_TEST

START_TEST(the_first_bad_token_is_named)
{
    if (!use_tier(_i))
        return;
    static const float bad[] = {NAN, INFINITY, 3e38f};
    for (size_t i = 0; i < 3; i++) {
        problem p;
        setup(&p, 600, 16, 33, (ql_format){.code = QL_CODE_F32});
        ql_loss loss = loss_of(&p, 1);
        p.x[3 * p.ld] = bad[i]; /* masked: never seen */
        ck_assert_uint_eq(run(&p, &loss, 2).first_bad, p.m);
        for (size_t d = 0; d < p.hidden; d++)
            p.x[521 * p.ld + d] = p.x[571 * p.ld + d] = bad[i];
        ck_assert_uint_eq(run(&p, &loss, 2).first_bad, 521);
        loss.softcap = 2; /* which would make infinities finite */
        ck_assert_uint_eq(run(&p, &loss, 2).first_bad, 521);
        teardown(&p);
    }
}
END_TEST

START_TEST(all_masked_is_nothing)
{
    problem p;
    setup(&p, 9, 16, 33, (ql_format){.code = QL_CODE_F32});
    for (size_t t = 0; t < p.m; t++)
        p.target[t] = -1;
    ql_loss loss = loss_of(&p, 1);
    ql_loss_sum got = run(&p, &loss, 1);
    ck_assert(got.sum == 0 && got.count == 0 && got.first_bad == p.m);
    ck_assert(p.dx[8 * p.ld + 15] == 0);
    teardown(&p);
}
END_TEST

START_TEST(embedding_gathers_rows)
{
    enum { V = 11, D = 20, M = 40, LD = D + GAP };
    float *table = random_matrix(V, D, D), *y = empty_matrix(M, D, LD);
    ql_weight *weight;
    ql_error err = {0};
    ck_assert_ok(ql_weight_borrow(&weight, table, QL_F32, V, D, &err), &err);
    int32_t ids[M];
    for (size_t t = 0; t < M; t++)
        ids[t] = (int32_t)(t * 7 % V);
    ql_workers *workers = make_workers(2, (ql_scratch){0});
    ql_embed(weight, 1, M, ids, y, LD, workers);
    for (size_t t = 0; t < M; t++)
        ck_assert_mem_eq(y + t * LD, table + (size_t)ids[t] * D, D * sizeof(float));
    ql_embed(weight, 3, M, ids, y, LD, workers);
    for (size_t t = 0; t < M; t++)
        for (size_t d = 0; d < D; d++)
            ck_assert(y[t * LD + d] == 3 * table[(size_t)ids[t] * D + d]);
    assert_gaps_untouched(y, M, D, LD);
    ql_workers_destroy(workers);
    ql_weight_destroy(weight);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ops_loss");
    TCase *tests = tcase_create("loss");
    tcase_set_timeout(tests, 300);
    tcase_add_loop_test(tests, matches_double_and_its_differences, 0, TIERS);
    tcase_add_loop_test(tests, heads_of_any_format_in_parts, 0, TIERS);
    tcase_add_loop_test(tests, targets_far_below, 0, TIERS);
    tcase_add_test(tests, bf16_rounds_the_gradient_alone);
    tcase_add_loop_test(tests, same_bits_on_any_threads_and_without_a_gradient, 0, 2);
    tcase_add_loop_test(tests, the_first_bad_token_is_named, 0, TIERS);
    tcase_add_test(tests, all_masked_is_nothing);
    tcase_add_test(tests, embedding_gathers_rows);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
