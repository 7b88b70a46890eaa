/* The plan of a run and the real one hold the same bytes, class by class. */
#include <stdio.h>

#include "support.h"
#include "train_case.h"

static ql_error err;

static ql_model *planned(const train_setup *setup)
{
    ql_model *model;
    ck_assert_ok(ql_model_plan(&model, &setup->config, setup->format, &err), &err);
    ck_assert_ok(ql_model_quantize_head(model, setup->head, NULL, &err), &err);
    ck_assert_ok(ql_model_attach(model, &setup->lora, &err), &err);
    return model;
}

static void check_same(const train_setup *setup, const ql_model *real, bool mapped, const ql_trainer_bytes *held,
                       ql_train_shape data)
{
    ql_model *plan = planned(setup);
    ql_trainer_bytes t;
    ql_model_bytes m = ql_model_memory(plan), r = ql_model_memory(real);
    ck_assert_uint_eq(ql_model_adapter_parameters(plan), ql_model_adapter_parameters(real));
    ck_assert_uint_eq(m.codes, r.codes);
    ck_assert_uint_eq(m.scales, r.scales);
    ck_assert_uint_gt(m.mapped, 0);
    if (mapped) {
        ck_assert_uint_eq(m.dense, r.dense);
        ck_assert_uint_eq(m.mapped, r.mapped);
    } else { /* a random model holds what a folder's maps, each matrix on cache lines of its own */
        ck_assert_uint_le(m.dense + m.mapped, r.dense + r.mapped);
        ck_assert_uint_lt(r.dense + r.mapped - m.dense - m.mapped, 2 * 64);
    }
    ck_assert_ok(ql_train_plan(&t, plan, data, &setup->train, setup->threads, &err), &err);
    ck_assert_uint_eq(t.adapters, held->adapters);
    ck_assert_uint_eq(t.gradients, held->gradients);
    ck_assert_uint_eq(t.optimizer, held->optimizer);
    ck_assert_uint_eq(t.activations, held->activations);
    ck_assert_uint_eq(t.workspace, held->workspace);
    ql_trainer_bytes same;
    ck_assert_ok(ql_train_plan(&same, real, data, &setup->train, setup->threads, &err), &err);
    ck_assert_mem_eq(&same, &t, sizeof t);
    ql_model_destroy(plan);
}

START_TEST(plans_hold_what_runs_hold)
{
    static const char *const formats[] = {"nf4", "int8", "fp4", "bnb-nf4", "int4", "nf4"};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        train_setup setup = train_setup_defaults();
        ck_assert_ok(ql_format_parse(&setup.format, formats[i], 64, i % 2, &err), &err);
        setup.config.stored = QL_BF16;
        setup.config.tied = i == 2 || i == 4;
        if (i == 1 || i == 4)
            ck_assert_ok(ql_format_parse(&setup.head, i == 1 ? "int8" : "nf4", 64, true, &err), &err);
        setup.config.arch = i == 1 ? QL_ARCH_QWEN3 : QL_ARCH_QWEN2;
        setup.config.qk_norm = i == 1;
        setup.lora.modules = i == 3 ? 1u << QL_Q | 1u << QL_DOWN : QL_ALL_LINEAR;
        setup.lora.use_dora = i == 4;
        setup.lora.dropout = i == 4 ? 0 : 0.1;
        setup.train.recompute_blocks = i % 4; /* 3: one more than need be */
        setup.train.bf16_activations = i % 4 < 2;
        setup.train.batch_size = 1 + i;
        setup.threads = 1 + i % 3;
        setup.train.optim = i % 2 ? QL_OPTIM_ADAMW_8BIT : QL_OPTIM_ADAMW;
        if (i == 5)
            setup.train.batch_size = 100; /* more than there are */
        train_case c;
        train_case_open(&c, &setup);
        train_case_run(&c, 1);
        ql_trainer_bytes held = ql_trainer_memory(c.trainer);
        ql_train_shape data = ql_train_shape_of(c.data);
        ck_assert_uint_eq(data.samples, TRAIN_CASE_SAMPLES);
        ck_assert_uint_eq(data.longest, 48);
        check_same(&setup, c.model, false, &held, data);
        train_case_close(&c);
    }
}
END_TEST

/* From config.json alone, against the folder's real files. */
START_TEST(plans_of_folders_hold_what_is_mapped)
{
    const char *dir = test_data("models/stories260K-hf");
    if (!dir)
        return;
    static const char *const formats[] = {"nf4", "none"};
    for (size_t i = 0; i < 2; i++) {
        train_setup setup = train_setup_defaults();
        ck_assert_ok(ql_format_parse(&setup.format, formats[i], 64, true, &err), &err);
        ck_assert_ok(ql_model_config_read(&setup.config, dir, &err), &err);
        train_setup small = train_setup_defaults();
        train_case c; /* for its data */
        train_case_open(&c, &small);
        ql_workers *workers;
        ql_model *model;
        ql_trainer *trainer;
        ck_assert_ok(ql_workers_create(&workers, setup.threads, &err), &err);
        ck_assert_ok(ql_model_open(&model, dir, setup.format, workers, &err), &err);
        ck_assert_ok(ql_model_attach(model, &setup.lora, &err), &err);
        ck_assert_ok(ql_trainer_create(&trainer, model, c.data, &setup.train, workers, &err), &err);
        ql_trainer_bytes held = ql_trainer_memory(trainer);
        check_same(&setup, model, true, &held, ql_train_shape_of(c.data));
        ql_trainer_destroy(trainer);
        ql_model_destroy(model);
        ql_workers_destroy(workers);
        train_case_close(&c);
    }
}
END_TEST

static size_t all(const ql_model *model, ql_train_shape data, const ql_train_options *options)
{
    ql_trainer_bytes t;
    ql_model_bytes m = ql_model_memory(model);
    ck_assert_ok(ql_train_plan(&t, model, data, options, 2, &err), &err);
    return m.codes + m.scales + m.dense + m.mapped + t.adapters + t.gradients + t.optimizer + t.activations +
           t.workspace;
}

/* Qwen2.5-0.5B's shape: less and less memory, the same batch a step. */
START_TEST(less_memory_takes_smaller_batches_then_recomputation)
{
    train_setup setup = train_setup_defaults();
    setup.config = (ql_model_config){.arch = QL_ARCH_QWEN2, .vocab_size = 151936, .hidden_size = 896,
                                     .intermediate_size = 4864, .layers = 24, .heads = 14, .kv_heads = 2,
                                     .head_dim = 64, .max_positions = 32768, .rms_norm_eps = 1e-6, .rope_theta = 1e6,
                                     .stored = QL_BF16, .tied = true, .qkv_bias = true};
    ql_model *model = planned(&setup);
    const ql_train_shape data = {.samples = 1000, .longest = 513};
    ql_train_options asked = setup.train, options;
    asked.batch_size = 8;
    asked.grad_accum = 3;
    const size_t other = 1 << 20;
    size_t before = all(model, data, &asked) + other, steps = 0;
    options = asked;
    ck_assert_ok(ql_train_fit(&options, model, data, 2, other, before, &err), &err);
    ck_assert_uint_eq(options.batch_size, 8);
    ck_assert_uint_eq(options.recompute_blocks, 0);
    for (;; steps++) { /* a byte less than the last way takes asks for another */
        size_t budget = before - 1;
        options = asked;
        if (ql_train_fit(&options, model, data, 2, other, budget, &err))
            break;
        before = all(model, data, &options) + other;
        ck_assert_uint_le(before, budget);
        ck_assert_uint_eq(options.batch_size * options.grad_accum, 24);
        ck_assert_uint_eq(options.batch_size, steps < 3 ? 4 >> steps : 1);
        ck_assert_uint_eq(options.recompute_blocks, steps < 3 ? 0 : steps - 2); /* one more each time */
    }
    ck_assert_uint_eq(steps, 3 + 23); /* 4, 2 and 1 sample, then recomputation of all blocks but the last */
    ck_assert_int_eq(err.status, QL_ERR_MEMORY);
    char words[40];
    snprintf(words, sizeof words, "the run needs %zu;", before);
    ck_assert_msg(strstr(err.message, words) != NULL, "\"%s\" lacks \"%s\"", err.message, words);
    ck_assert_uint_eq(options.batch_size, 1);
    ck_assert_uint_eq(options.recompute_blocks, 23);
    ql_model_destroy(model);
}
END_TEST

/* In small it is the model itself here: two layers, and a vocabulary that is not cut. */
START_TEST(estimates_count_what_grows)
{
    train_setup setup = train_setup_defaults();
    setup.config.layers = 1 + (size_t)_i * 2;
    setup.train.recompute_blocks = (size_t)_i;
    setup.lora.modules = _i ? QL_ALL_LINEAR : 1u << QL_V;
    ql_model *model = planned(&setup);
    ql_workers *workers;
    ql_step_estimate time;
    const ql_train_shape data = {.samples = 10, .longest = 33, .tokens = 210};
    ck_assert_ok(ql_workers_create(&workers, 2, &err), &err);
    ck_assert_ok(ql_train_estimate(&time, model, data, &setup.train, workers, &err), &err);
    ck_assert_double_eq(time.tokens, 2 * 2 * 20); /* two samples of 20 inputs on average, twice a step */
    ck_assert(time.kept > 0 && time.took > 0);
    ck_assert(_i ? time.recomputed > time.kept : time.recomputed == time.kept); /* the last block is still there */
    double block = (time.recomputed - time.kept) / (_i ? 2 * _i : 1);
    ck_assert_double_eq_tol(time.asked, time.kept + block * _i, 1e-9 * time.asked);
    ck_assert_fails(ql_train_estimate(&time, model, (ql_train_shape){.samples = 3}, &setup.train, workers, &err), QL_ERR_ARG,
                    &err, "a sample");
    ql_workers_destroy(workers);
    ql_model_destroy(model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("plan");
    TCase *tests = tcase_create("plan");
    tcase_set_timeout(tests, 240);
    tcase_add_test(tests, plans_hold_what_runs_hold);
    tcase_add_test(tests, plans_of_folders_hold_what_is_mapped);
    tcase_add_test(tests, less_memory_takes_smaller_batches_then_recomputation);
    tcase_add_loop_test(tests, estimates_count_what_grows, 0, 3);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
