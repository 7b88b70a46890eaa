/* Numbers that are not finite: found in the step where they appear, named, and passed over where that is asked. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "quant/weight.h"
#include "support.h"
#include "train/trainer.h"
#include "train_case.h"

static ql_error err;
static ql_step_report report;

static const ql_format dense = {.code = QL_CODE_BF16, .scale = QL_SCALE_NONE};

enum { NAN16 = 0x7fc0, INF16 = 0x7f80 }; /* in BF16 */

static train_setup setup_of(ql_nonfinite what, bool recompute)
{
    train_setup setup = train_setup_defaults();
    setup.format = dense;
    setup.train.on_nonfinite = what;
    setup.train.recompute_blocks = recompute ? SIZE_MAX : 0;
    return setup;
}

/* All that steps change. */
typedef struct state {
    size_t bytes;
    float *copy[3];
} state;

static const float *part(const train_case *c, int i)
{
    return i == 0 ? c->model->adapters->master : i == 1 ? c->trainer->optimizer.m : c->trainer->optimizer.v;
}

static state remember(const train_case *c)
{
    state s = {.bytes = c->model->adapters->count * sizeof(float)};
    for (int i = 0; i < 3; i++)
        s.copy[i] = memcpy(malloc(s.bytes), part(c, i), s.bytes);
    return s;
}

static void check_unchanged(state *s, const train_case *c)
{
    for (int i = 0; i < 3; i++) {
        ck_assert_mem_eq(s->copy[i], part(c, i), s->bytes);
        free(s->copy[i]);
    }
}

static void check_message(const char *const *parts)
{
    for (; *parts; parts++)
        ck_assert_msg(strstr(err.message, *parts) != NULL, "\"%s\" lacks \"%s\"", err.message, *parts);
}

/* One bad number in each matrix of a block in turn. */
START_TEST(base_weights_are_named)
{
    for (int module = 0; module < QL_MODULES; module++) {
        train_setup setup = setup_of(QL_NONFINITE_STOP, module % 2);
        setup.train.bf16_activations = module % 4 < 2;
        train_case c;
        train_case_open(&c, &setup);
        train_case_run(&c, 1);
        state before = remember(&c);
        uint16_t *w = ql_writable(c.model->blocks[1].weight[module]->view.codes);
        uint16_t good = w[5];
        w[5] = module % 3 ? NAN16 : INF16;
        ck_assert_int_eq(ql_trainer_step(c.trainer, &report, &err), QL_ERR_VALUE);
        char where[40];
        snprintf(where, sizeof where, "layer 1, %s", ql_module_name(&c.model->config, (ql_module)module));
        check_message((const char *const[]){"step 2: sample ", where, NULL});
        ck_assert(!report.skipped);
        ck_assert_uint_eq(ql_trainer_done(c.trainer), 1);
        check_unchanged(&before, &c);
        w[5] = good; /* what failed can be done again */
        train_case_run(&c, 2);
        train_case_close(&c);
    }
}
END_TEST

/* The last input of the longest sample is the only one of its kind; nothing else sees its row of the embedding. */
static void spoil_sample_10(train_case *c)
{
    ql_sample sample = ql_dataset_sample(c->data, 10);
    uint16_t *row = ql_writable(c->model->embed->view.codes);
    row[(size_t)sample.ids[sample.length - 2] * c->model->config.hidden_size] = NAN16;
}

START_TEST(samples_are_named_and_passed_over)
{
    train_setup setup = setup_of(QL_NONFINITE_SKIP, _i);
    train_case c;
    train_case_open(&c, &setup);
    spoil_sample_10(&c);
    size_t skipped = 0;
    for (size_t step = 1; step <= ql_trainer_steps(c.trainer); step++) {
        state before = remember(&c);
        uint64_t updates = c.trainer->optimizer.step;
        ck_assert_ok(ql_trainer_step(c.trainer, &report, &err), &err);
        ck_assert_uint_eq(ql_trainer_done(c.trainer), step);
        if (report.skipped) {
            char where[40];
            snprintf(where, sizeof where, "step %zu: sample 10: ", step);
            check_message((const char *const[]){where, "it begins in the embedding", NULL});
            ck_assert(isnan(report.loss));
            ck_assert_uint_eq(c.trainer->optimizer.step, updates);
            check_unchanged(&before, &c);
            skipped++;
        } else {
            ck_assert(isfinite(report.loss) && isfinite(report.grad_norm));
            ck_assert_uint_eq(c.trainer->optimizer.step, updates + 1);
            for (int i = 0; i < 3; i++)
                free(before.copy[i]);
        }
    }
    ck_assert_uint_eq(skipped, 3); /* once an epoch */
    ck_assert_uint_eq(ql_trainer_skipped(c.trainer), 3);
    train_case_close(&c);
}
END_TEST

/* Norms so large that logits still are finite and gradients are not. */
START_TEST(gradients_are_named_and_passed_over)
{
    train_setup setup = setup_of(_i ? QL_NONFINITE_SKIP : QL_NONFINITE_STOP, _i);
    train_case c;
    train_case_open(&c, &setup);
    train_case_run(&c, 1);
    float *last = ql_writable(c.model->final_norm), *inner = ql_writable(c.model->blocks[2].mlp_norm);
    for (size_t i = 0; i < setup.config.hidden_size; i++) {
        last[i] = 1e37f;
        inner[i] = 1e4f;
    }
    state before = remember(&c);
    ck_assert_int_eq(ql_trainer_step(c.trainer, &report, &err), _i ? QL_OK : QL_ERR_VALUE);
    ck_assert(isfinite(report.loss) && !isfinite(report.grad_norm));
    char where[40];
    snprintf(where, sizeof where, "step 2: sample %zu: the norm", c.trainer->order[4]);
    check_message((const char *const[]){where, "on the way back it begins in layer 2, ", NULL});
    ck_assert_uint_eq(ql_trainer_done(c.trainer), 1 + (size_t)_i);
    ck_assert(report.skipped == (_i == 1));
    check_unchanged(&before, &c);
    train_case_close(&c);
}
END_TEST

/* Steps that were passed over count in a checkpoint too. */
START_TEST(resumed_runs_pass_over_the_same)
{
    char *folder = test_folder(), path[4096];
    snprintf(path, sizeof path, "%s/checkpoint.safetensors", folder);
    train_setup setup = setup_of(QL_NONFINITE_SKIP, false);
    train_case whole, half;
    train_case_open(&whole, &setup);
    spoil_sample_10(&whole);
    for (int i = 0; i < 9; i++)
        ck_assert_ok(ql_trainer_step(whole.trainer, &report, &err), &err);
    for (int round = 0; round < 9; round++) {
        train_case_open(&half, &setup);
        spoil_sample_10(&half);
        if (round)
            ck_assert_ok(ql_trainer_resume(half.trainer, path, &err), &err);
        ck_assert_ok(ql_trainer_step(half.trainer, &report, &err), &err);
        ck_assert_ok(ql_trainer_save(half.trainer, path, &err), &err);
        if (round == 8) {
            state end = remember(&whole);
            check_unchanged(&end, &half);
            ck_assert_uint_eq(ql_trainer_skipped(half.trainer), 3);
        }
        train_case_close(&half);
    }
    train_case_close(&whole);
    test_folder_remove(folder);
}
END_TEST

/* With adapters that are bad themselves there is nothing to go on with. */
START_TEST(adapters_are_named_and_never_passed_over)
{
    char *folder = test_folder(), path[4096];
    snprintf(path, sizeof path, "%s/checkpoint.safetensors", folder);
    for (int skip = 0; skip < 2; skip++) {
        train_setup setup = setup_of(skip ? QL_NONFINITE_SKIP : QL_NONFINITE_STOP, false);
        train_case c;
        train_case_open(&c, &setup);
        train_case_run(&c, 1);
        const ql_adapter *a = c.model->blocks[2].linear[QL_GATE].adapter;
        ql_adapters_set(c.model->adapters, a->offset + 3, 1, &(float){skip ? NAN : -INFINITY});
        ck_assert_fails(ql_trainer_step(c.trainer, &report, &err), QL_ERR_VALUE, &err,
                        "step 2: the adapter of layer 2, gate_proj");
        ck_assert_uint_eq(ql_trainer_done(c.trainer), 1);
        ck_assert_fails(ql_trainer_save(c.trainer, path, &err), QL_ERR_VALUE, &err, "layer 2, gate_proj");
        train_case_close(&c);
    }
    test_folder_remove(folder);
}
END_TEST

/* An update that leaves FP16's range is told of at once, not a step later. */
START_TEST(updates_out_of_range_are_named)
{
    train_setup setup = setup_of(QL_NONFINITE_SKIP, false);
    setup.train.lr = 1000;
    setup.train.warmup_steps = 0;
    train_case c;
    train_case_open(&c, &setup);
    const ql_adapter *a = c.model->blocks[1].linear[QL_Q].adapter;
    for (size_t i = 0; i < a->r * (a->k + a->n); i++) /* near the end on both sides: one of them goes over */
        ql_adapters_set(c.model->adapters, a->offset + i, 1, &(float){i % 2 ? 65500 : -65500});
    ck_assert_fails(ql_trainer_step(c.trainer, &report, &err), QL_ERR_VALUE, &err,
                    "step 1: the adapter of layer 1, q_proj");
    ck_assert(isfinite(report.loss) && isfinite(report.grad_norm));
    train_case_close(&c);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("health");
    TCase *tests = tcase_create("health");
    tcase_set_timeout(tests, 240);
    tcase_add_test(tests, base_weights_are_named);
    tcase_add_loop_test(tests, samples_are_named_and_passed_over, 0, 2);
    tcase_add_loop_test(tests, gradients_are_named_and_passed_over, 0, 2);
    tcase_add_test(tests, resumed_runs_pass_over_the_same);
    tcase_add_test(tests, adapters_are_named_and_never_passed_over);
    tcase_add_test(tests, updates_out_of_range_are_named);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
