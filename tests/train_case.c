#include "train_case.h"

#include <math.h>

#include "support.h"

static ql_error err;

train_setup train_setup_defaults(void)
{
    train_setup s = {
        .config =
            {
                .arch = QL_ARCH_QWEN2,
                .vocab_size = 97,
                .hidden_size = 72,
                .intermediate_size = 100,
                .layers = 3,
                .heads = 6,
                .kv_heads = 2,
                .head_dim = 12,
                .max_positions = 64,
                .rms_norm_eps = 1e-6,
                .rope_theta = 1e4,
                .qkv_bias = true,
            },
        .format = ql_format_default(),
        .weights = 3,
        .lora = ql_lora_options_defaults(),
        .train = ql_train_options_defaults(),
        .threads = 1,
    };
    s.lora.rank = 4;
    s.lora.dropout = 0.1;
    s.train.batch_size = 2;
    s.train.grad_accum = 2;
    s.train.epochs = 3;
    s.train.lr = 1e-2;
    s.train.warmup_steps = 2;
    s.train.weight_decay = 0.01;
    s.train.seed = 5;
    return s;
}

void train_case_open(train_case *c, const train_setup *setup)
{
    int32_t ids[60];
    uint8_t learn[60];
    ql_sample samples[TRAIN_CASE_SAMPLES];
    for (int32_t i = 0; i < 60; i++) {
        ids[i] = (i * 31 + 7 + setup->shift) % 97;
        learn[i] = i % 3 != 0;
    }
    for (size_t i = 0; i < TRAIN_CASE_SAMPLES; i++)
        samples[i] = (ql_sample){ids + i, learn, 8 + 4 * i};
    ck_assert_ok(ql_workers_create(&c->workers, setup->threads, &err), &err);
    ck_assert_ok(ql_model_random(&c->model, &setup->config, setup->format, setup->weights, c->workers, &err), &err);
    ck_assert_ok(ql_model_quantize_head(c->model, setup->head, c->workers, &err), &err);
    ck_assert_ok(ql_model_attach(c->model, &setup->lora, &err), &err);
    ck_assert_ok(ql_dataset_from_samples(&c->data, samples, TRAIN_CASE_SAMPLES, &err), &err);
    ck_assert_ok(ql_trainer_create(&c->trainer, c->model, c->data, &setup->train, c->workers, &err), &err);
}

void train_case_close(train_case *c)
{
    ql_trainer_destroy(c->trainer);
    ql_dataset_close(c->data);
    ql_model_destroy(c->model);
    ql_workers_destroy(c->workers);
}

void train_case_run(train_case *c, size_t done)
{
    ql_step_report report;
    while (ql_trainer_done(c->trainer) < done) {
        ck_assert_ok(ql_trainer_step(c->trainer, &report, &err), &err);
        ck_assert(isfinite(report.loss) && report.grad_norm > 0);
        ck_assert_uint_eq(report.step, ql_trainer_done(c->trainer));
    }
}
