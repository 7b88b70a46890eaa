/* AdamW, clipping and schedules against tables computed with PyTorch 2.13 and transformers 5.23. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "optim_support.h"

static ql_workers *make_workers(size_t threads)
{
    ql_workers *workers;
    ck_assert_int_eq(ql_workers_create(&workers, threads, NULL), QL_OK);
    return workers;
}

/* ---- AdamW ---- */

typedef struct adam_row {
    size_t i;
    float p, m, v;
} adam_row;

typedef struct adam_case {
    size_t steps;
    double lr, beta1, beta2, eps, decay, max_norm;
    double last_norm; /* 0: not clipped */
    adam_row rows[5];
} adam_case;

/* Start: p[i] = (37 i mod 19 - 9) / 16; gradient of step s: (53 i + 29 s mod 101 - 50) / 64, times 2^-12
 * for every third i. 19 parameters, torch.optim.AdamW with clip_grad_norm_ before it. */
static const adam_case adam_cases[] = {
    {1, 1e-2, 0.9, 0.999, 1e-8, 0, 0, 0,
     {{0, -0.552501261f, -8.0108648e-06f, 6.41739526e-12f},
      {1, 0.55250001f, 0.0500000007f, 0.000250000012f},
      {2, 0.50999999f, -0.0250000004f, 6.2500003e-05f},
      {9, 0.0724994615f, -1.8692017e-05f, 3.49391488e-11f},
      {18, -0.509998918f, 9.1552738e-06f, 8.38190281e-12f}}},
    {5, 1e-2, 0.9, 0.999, 1e-8, 0.01, 0, 0,
     {{0, -0.55001843f, -5.9036638e-06f, 4.55341841e-11f},
      {1, 0.553056598f, 0.072070621f, 0.00128626695f},
      {2, 0.50350076f, 0.00781155797f, 0.000752940716f},
      {9, 0.0906834975f, -1.49684547e-05f, 7.95932487e-11f},
      {18, -0.49946633f, 5.09811389e-06f, 7.06055006e-11f}}},
    {40, 3e-3, 0.8, 0.95, 1e-6, 0.1, 1, 1.5473,
     {{0, -0.538246512f, -4.52735821e-06f, 4.13735135e-09f},
      {1, 0.54290545f, -0.09389323f, 0.0789267421f},
      {2, 0.491411269f, 0.0308999699f, 0.0687354505f},
      {9, 0.0805505291f, -2.40985719e-06f, 4.41772974e-09f},
      {18, -0.486901313f, 1.79518338e-05f, 4.41127046e-09f}}},
};

START_TEST(adamw_agrees_with_torch)
{
    const adam_case *c = &adam_cases[_i];
    enum { N = 19 };
    ql_adapters *set = make_set(10, 9, 1);
    ql_adamw opt;
    const ql_adamw_options options = {QL_OPTIM_ADAMW, c->beta1, c->beta2, c->eps, c->decay, 1};
    ck_assert_int_eq(ql_adamw_init(&opt, N, &options, NULL), QL_OK);
    float start[N];
    for (size_t i = 0; i < N; i++)
        start[i] = (float)((int)(i * 37 % 19) - 9) / 16;
    ql_adapters_set(set, 0, N, start);
    double norm = 0;
    for (size_t step = 1; step <= c->steps; step++) {
        for (size_t i = 0; i < N; i++)
            set->grad[i] = table_grad(i, step);
        ck_assert_int_eq(ql_grad_norm(&norm, set, NULL, NULL), QL_OK);
        ql_adamw_step(&opt, set, c->lr, ql_clip_factor(norm, c->max_norm), NULL);
    }
    ck_assert_uint_eq(opt.step, c->steps);
    if (c->last_norm != 0)
        ck_assert_double_eq_tol(norm, c->last_norm, 1e-4);
    for (size_t j = 0; j < 5; j++) {
        adam_row r = c->rows[j];
        ck_assert_float_eq_tol(set->master[r.i], r.p, 3e-7f * fabsf(r.p));
        ck_assert_float_eq_tol(opt.m[r.i], r.m, 2e-6f * fabsf(r.m));
        ck_assert_float_eq_tol(opt.v[r.i], r.v, 1e-6f * r.v);
    }
    for (size_t i = 0; i < N; i++)
        ck_assert_uint_eq(set->value[i], ql_f32_to_f16(set->master[i]));
    ql_adamw_free(&opt);
    ql_adapters_destroy(set);
}
END_TEST

/* More than one chunk, an odd tail, and the result of 1, 2 and 3 threads bit for bit. */
START_TEST(adamw_does_not_depend_on_threads)
{
    enum { IN = 4999, OUT = 3000, RANK = 5, N = RANK * (IN + OUT) };
    const ql_adamw_options options = {_i % 2 ? QL_OPTIM_ADAMW_8BIT : QL_OPTIM_ADAMW, 0.9, 0.999, 1e-8, 0.01, 1 + _i / 2};
    ql_adapters *sets[3];
    for (size_t t = 0; t < 3; t++) {
        ql_adapters *set = sets[t] = make_set(IN, OUT, RANK);
        ql_workers *workers = make_workers(t + 1);
        ql_adamw opt;
        ck_assert_int_eq(ql_adamw_init(&opt, N, &options, NULL), QL_OK);
        ql_adapters_init(set, 3);
        for (size_t step = 1; step <= 3; step++) {
            double norm;
            for (size_t i = 0; i < N; i++)
                set->grad[i] = table_grad(i, step);
            ck_assert_int_eq(ql_grad_norm(&norm, set, workers, NULL), QL_OK);
            ql_adamw_step(&opt, set, 1e-3, ql_clip_factor(norm, 1), workers);
        }
        ck_assert_mem_eq(set->master, sets[0]->master, N * sizeof(float));
        ck_assert_mem_eq(set->value, sets[0]->value, N * sizeof(uint16_t));
        for (size_t i = 0; i < N; i++)
            ck_assert_uint_eq(set->value[i], ql_f32_to_f16(set->master[i]));
        ql_adamw_free(&opt);
        ql_workers_destroy(workers);
    }
    for (size_t t = 0; t < 3; t++)
        ql_adapters_destroy(sets[t]);
}
END_TEST

/* Two layers, 7 -> 5 and 6 -> 9, rank 2, through peft.optimizers.create_loraplus_optimizer(lr=1e-2, ratio 16,
 * loraplus_weight_decay=0.1) and 5 steps of torch.optim.AdamW; parameters and gradients as above. */
START_TEST(loraplus_agrees_with_peft)
{
    static const struct {
        size_t i;
        float p;
    } rows[] = {{0, -0.54753232f},   {13, -0.167864561f}, {14, -0.657059669f}, {23, 0.345890105f},
                {24, 0.300520957f}, {35, -0.402822167f}, {36, 0.0189341679f}, {53, 0.0112232417f}};
    enum { N = 54 };
    ql_adapters *set;
    ql_adamw opt;
    const ql_adamw_options options = {QL_OPTIM_ADAMW, 0.9, 0.999, 1e-8, 0.1, 16};
    const ql_adapter_shape shapes[] = {{.in_features = 7, .out_features = 5, .rank = 2, .scaling = 1},
                                       {.in_features = 6, .out_features = 9, .rank = 2, .scaling = 1}};
    ck_assert_int_eq(ql_adapters_create(&set, shapes, 2, true, NULL), QL_OK);
    ck_assert_uint_eq(set->count, N);
    ck_assert_int_eq(ql_adamw_init(&opt, N, &options, NULL), QL_OK);
    float start[N];
    for (size_t i = 0; i < N; i++)
        start[i] = (float)((int)(i * 37 % 19) - 9) / 16;
    ql_adapters_set(set, 0, N, start);
    for (size_t step = 1; step <= 5; step++) {
        for (size_t i = 0; i < N; i++)
            set->grad[i] = table_grad(i, step);
        ql_adamw_step(&opt, set, 1e-2, 1, NULL);
    }
    for (size_t j = 0; j < sizeof rows / sizeof *rows; j++)
        ck_assert_float_eq_tol(set->master[rows[j].i], rows[j].p, 1e-6f * fabsf(rows[j].p) + 1e-8f);
    ql_adamw_free(&opt);
    ql_adapters_destroy(set);
}
END_TEST

START_TEST(adamw_refuses_bad_options)
{
    static const struct {
        ql_adamw_options options;
        const char *word;
    } bad[] = {
        {{QL_OPTIM_ADAMW, 1, 0.999, 1e-8, 0, 1}, "betas"},
        {{QL_OPTIM_ADAMW, 0.9, NAN, 1e-8, 0, 1}, "betas"},
        {{QL_OPTIM_ADAMW, 0.9, 0.999, 0, 0, 1}, "eps"},
        {{QL_OPTIM_ADAMW, 0.9, 0.999, 1e-8, -1, 1}, "weight decay"},
        {{QL_OPTIM_ADAMW_8BIT, 0.9, 0.999, 1e-8, 0, 0}, "LoRA+"},
        {{(ql_optim)7, 0.9, 0.999, 1e-8, 0, 1}, "kind"},
    };
    ql_adamw opt;
    ql_error err = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_int_eq(ql_adamw_init(&opt, 1, &bad[i].options, &err), QL_ERR_ARG);
        ck_assert_ptr_nonnull(strstr(err.message, bad[i].word));
        ck_assert_ptr_null(opt.memory);
    }
    const ql_adamw_options good = ql_adamw_options_defaults();
    ck_assert_int_eq(ql_adamw_init(&opt, SIZE_MAX / 2, &good, &err), QL_ERR_MEMORY);
    ql_adamw_free(&opt);
    ql_adamw_free(NULL);
}
END_TEST

/* ---- norm and clipping ---- */

START_TEST(norm_is_a_sum_in_double)
{
    enum { IN = 7000, OUT = 1003, RANK = 3, N = RANK * (IN + OUT) };
    ql_adapters *set = make_set(IN, OUT, RANK);
    double sum = 0, first = 0;
    for (size_t i = 0; i < N; i++) {
        set->grad[i] = (float)sin((double)i) * (i % 7 ? 1e-3f : 1e3f);
        sum += (double)set->grad[i] * set->grad[i];
    }
    for (size_t threads = 1; threads <= 3; threads++) {
        ql_workers *workers = make_workers(threads);
        double norm;
        ck_assert_int_eq(ql_grad_norm(&norm, set, workers, NULL), QL_OK);
        ck_assert_double_eq_tol(norm, sqrt(sum), 1e-12 * sqrt(sum));
        if (threads == 1)
            first = norm;
        ck_assert_mem_eq(&norm, &first, sizeof norm);
        ql_workers_destroy(workers);
    }
    ql_error err = {0};
    double norm;
    set->grad[N - 1] = NAN;
    ck_assert_int_eq(ql_grad_norm(&norm, set, NULL, &err), QL_ERR_VALUE);
    ck_assert_ptr_nonnull(strstr(err.message, "not applied"));
    set->grad[N - 1] = -INFINITY;
    ck_assert_int_eq(ql_grad_norm(&norm, set, NULL, &err), QL_ERR_VALUE);
    ql_adapters_destroy(set);
}
END_TEST

START_TEST(clip_factor_is_torchs)
{
    ck_assert_double_eq(ql_clip_factor(5, 0), 1);
    ck_assert_double_eq(ql_clip_factor(0.5, 1), 1);
    ck_assert_double_eq(ql_clip_factor(4, 1), 1 / (4 + 1e-6));
    ck_assert_double_eq(ql_clip_factor(1, 1), 1 / (1 + 1e-6)); /* torch clips at the limit too */
}
END_TEST

/* ---- schedules ---- */

typedef struct schedule_case {
    ql_schedule schedule;
    size_t warmup, steps;
    double factor[14];
} schedule_case;

static const schedule_case schedule_cases[] = {
    {QL_SCHEDULE_CONSTANT, 3, 12, {0, 0.3333333333333333, 0.6666666666666666, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
    {QL_SCHEDULE_LINEAR, 3, 12,
     {0, 0.3333333333333333, 0.6666666666666666, 1, 0.8888888888888888, 0.7777777777777778, 0.6666666666666666,
      0.5555555555555556, 0.4444444444444444, 0.3333333333333333, 0.2222222222222222, 0.1111111111111111, 0, 0}},
    {QL_SCHEDULE_COSINE, 3, 12,
     {0, 0.3333333333333333, 0.6666666666666666, 1, 0.9698463103929542, 0.883022221559489, 0.75, 0.5868240888334653,
      0.41317591116653485, 0.2500000000000001, 0.11697777844051105, 0.03015368960704584, 0, 0.030153689607045786}},
    {QL_SCHEDULE_LINEAR, 0, 12,
     {1, 0.9166666666666666, 0.8333333333333334, 0.75, 0.6666666666666666, 0.5833333333333334, 0.5,
      0.4166666666666667, 0.3333333333333333, 0.25, 0.16666666666666666, 0.08333333333333333, 0, 0}},
    {QL_SCHEDULE_COSINE, 0, 7,
     {1, 0.9504844339512095, 0.8117449009293668, 0.6112604669781572, 0.38873953302184283, 0.18825509907063326,
      0.04951556604879048, 0, 0.04951556604879043, 0.18825509907063315, 0.3887395330218427, 0.6112604669781572,
      0.8117449009293667, 0.9504844339512095}},
};

START_TEST(schedules_agree_with_transformers)
{
    const schedule_case *c = &schedule_cases[_i];
    for (size_t step = 0; step < 14; step++)
        ck_assert_double_eq_tol(ql_schedule_factor(c->schedule, step, c->warmup, c->steps), c->factor[step], 1e-15);
}
END_TEST

START_TEST(schedules_have_names)
{
    ql_schedule schedule;
    ql_error err = {0};
    for (int i = QL_SCHEDULE_CONSTANT; i <= QL_SCHEDULE_COSINE; i++) {
        ck_assert_int_eq(ql_schedule_parse(&schedule, ql_schedule_name((ql_schedule)i), NULL), QL_OK);
        ck_assert_int_eq(schedule, i);
    }
    ck_assert_int_eq(ql_schedule_parse(&schedule, "polynomial", &err), QL_ERR_ARG);
    ck_assert_ptr_nonnull(strstr(err.message, "cosine"));
    ck_assert_uint_eq(ql_warmup_steps(0.1, 101), 11);
    ck_assert_uint_eq(ql_warmup_steps(0, 101), 0);
    ck_assert_uint_eq(ql_warmup_steps(1, 101), 101);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("optim");
    TCase *tc = tcase_create("optim");
    suite_add_tcase(suite, tc);
    tcase_add_loop_test(tc, adamw_agrees_with_torch, 0, sizeof adam_cases / sizeof *adam_cases);
    tcase_add_loop_test(tc, adamw_does_not_depend_on_threads, 0, 4);
    tcase_add_test(tc, loraplus_agrees_with_peft);
    tcase_add_test(tc, adamw_refuses_bad_options);
    tcase_add_test(tc, norm_is_a_sum_in_double);
    tcase_add_test(tc, clip_factor_is_torchs);
    tcase_add_loop_test(tc, schedules_agree_with_transformers, 0, sizeof schedule_cases / sizeof *schedule_cases);
    tcase_add_test(tc, schedules_have_names);
    return test_run(suite);
}
