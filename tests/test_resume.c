/* Checkpoints: a run that was stopped and one that was not end with the same bits; wrong pairs and damage are
 * refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"
#include "train/trainer.h"
#include "train_case.h"

static ql_error err;

/* Masters, moments and the next step's numbers. */
static void check_equal(const train_case *a, const train_case *b)
{
    const ql_adapters *x = a->model->adapters, *y = b->model->adapters;
    size_t bytes = x->count * sizeof *x->master;
    ck_assert_uint_eq(x->count, y->count);
    ck_assert_mem_eq(x->master, y->master, bytes);
    ck_assert_mem_eq(x->value, y->value, x->count * sizeof *x->value);
    ck_assert_mem_eq(a->trainer->optimizer.memory, b->trainer->optimizer.memory,
                     ql_adamw_bytes(a->trainer->options.optim, x->count));
    ck_assert_uint_eq(a->trainer->optimizer.step, b->trainer->optimizer.step);
    ck_assert_uint_eq(a->trainer->forwards, b->trainer->forwards);
}

/* Run 1 has what run 0 has not: moments in 8 bits, another rate for B, noise, and activations in fp32. Run 2 is DoRA. */
static train_setup numbered_setup(int i)
{
    train_setup setup = train_setup_defaults();
    if (i == 1) {
        setup.train.bf16_activations = false;
        setup.train.optim = QL_OPTIM_ADAMW_8BIT;
        setup.train.loraplus_ratio = 4;
        setup.train.neftune_alpha = 5;
    }
    if (i == 2) {
        setup.lora.use_dora = true;
        setup.lora.dropout = 0;
    }
    return setup;
}

START_TEST(stopped_anywhere_it_ends_the_same)
{
    char *folder = test_folder(), path[4096];
    snprintf(path, sizeof path, "%s/checkpoint.safetensors", folder);
    train_setup setup = numbered_setup(_i);
    train_case whole, part;
    train_case_open(&whole, &setup);
    size_t steps = ql_trainer_steps(whole.trainer);
    ck_assert_uint_eq(steps, 9);
    train_case_run(&whole, steps);
    for (size_t stop = 0; stop <= steps; stop++) {
        setup = numbered_setup(_i);
        train_case_open(&part, &setup);
        train_case_run(&part, stop);
        ck_assert_ok(ql_trainer_save(part.trainer, path, &err), &err);
        train_case_close(&part);
        setup.lora.seed = 100 + stop; /* another start, which the checkpoint replaces */
        setup.threads = 1 + stop % 3;
        setup.train.recompute_blocks = setup.train.bf16_activations ? 0 : stop % 4; /* the same bits then */
        train_case_open(&part, &setup);
        ck_assert_ok(ql_trainer_resume(part.trainer, path, &err), &err);
        ck_assert_uint_eq(ql_trainer_done(part.trainer), stop);
        train_case_run(&part, steps);
        check_equal(&whole, &part);
        train_case_close(&part);
    }
    train_case_close(&whole);
    test_folder_remove(folder);
}
END_TEST

/* Again and again: the file of a resumed run is that of an unbroken one, byte for byte. */
START_TEST(checkpoints_of_resumed_runs_are_the_same)
{
    char *folder = test_folder(), path[4096], other[4096];
    snprintf(path, sizeof path, "%s/a.safetensors", folder);
    snprintf(other, sizeof other, "%s/b.safetensors", folder);
    train_setup setup = train_setup_defaults();
    train_case whole, part;
    train_case_open(&whole, &setup);
    for (size_t step = 1; step <= 6; step++) {
        train_case_run(&whole, step);
        train_case_open(&part, &setup);
        if (step > 1)
            ck_assert_ok(ql_trainer_resume(part.trainer, other, &err), &err);
        train_case_run(&part, step);
        ck_assert_ok(ql_trainer_save(whole.trainer, path, &err), &err);
        ck_assert_ok(ql_trainer_save(part.trainer, other, &err), &err);
        train_case_close(&part);
        char a[1 << 16], b[1 << 16];
        size_t read[2];
        const char *names[2] = {path, other};
        for (int i = 0; i < 2; i++) {
            FILE *file = fopen(names[i], "rb");
            ck_assert_ptr_nonnull(file);
            read[i] = fread(i ? b : a, 1, sizeof a, file);
            fclose(file);
        }
        ck_assert_uint_eq(read[0], read[1]);
        ck_assert_mem_eq(a, b, read[0]);
    }
    train_case_close(&whole);
    test_folder_remove(folder);
}
END_TEST

static void change(train_setup *s, int which)
{
    switch (which) {
    case 0: s->config.layers = 2; return;
    case 1: s->config.qkv_bias = false; return;
    case 2: s->format.code = QL_CODE_INT4; return;
    case 3: s->weights++; return;
    case 4: s->shift = 1; return;
    case 5: s->lora.rank = 3; return;
    case 6: s->lora.alpha = 8; return;
    case 7: s->lora.use_rslora = true; return;
    case 8: s->lora.dropout = 0.2; return;
    case 9: s->lora.modules = 1; return;
    case 10: s->train.batch_size = 1; return;
    case 11: s->train.grad_accum = 1; return;
    case 12: s->train.lr = 2e-2; return;
    case 13: s->train.beta1 = 0.8; return;
    case 14: s->train.beta2 = 0.99; return;
    case 15: s->train.eps = 1e-7; return;
    case 16: s->train.weight_decay = 0; return;
    case 17: s->train.max_grad_norm = 2; return;
    case 18: s->train.schedule = QL_SCHEDULE_LINEAR; return;
    case 19: s->train.warmup_steps = 3; return;
    case 20: s->train.shuffle = false; return;
    case 21: s->train.seed++; return;
    case 22: s->train.epochs = 4; return;
    case 23: s->train.optim = QL_OPTIM_ADAMW_8BIT; return;
    case 24: s->train.loraplus_ratio = 16; return;
    case 25: s->train.neftune_alpha = 5; return;
    case 26: s->train.bf16_activations = false; return;
    case 27: s->train.recompute_blocks = 2; return;
    }
}

static const char *const changed[] = {
    "its model was", "its base weights was", "its base format was nf4 g64 dq and is int4 g64 dq now",
    "its base weights was", "its data was 11 samples", "its rank was 4 and is 3 now", "its alpha was 16 and is 8 now",
    "its rslora was no and is yes", "its dropout was", "its target-modules was q_proj,k_proj",
    "its batch-size was 2 and is 1", "its grad-accum was 2 and is 1", "its lr was", "its beta1 was", "its beta2 was",
    "its eps was", "its weight-decay was", "its max-grad-norm was 1 and is 2", "its schedule was cosine and is linear",
    "its warmup-steps was 2 and is 3", "its shuffle was yes", "its seed was 5 and is 6", "its steps was 9 and is 12",
    "its optim was adamw and is adamw8bit now", "its loraplus-ratio was 1 and is 16", "its neftune-alpha was 0 and is 5",
    "its kind of activations was bf16, 0 blocks recomputed and is f32 now",
    "its kind of activations was bf16, 0 blocks recomputed and is bf16, 2 blocks recomputed now"};

START_TEST(another_run_is_refused_by_name)
{
    char *folder = test_folder(), path[4096];
    snprintf(path, sizeof path, "%s/checkpoint.safetensors", folder);
    train_setup setup = train_setup_defaults();
    train_case c;
    train_case_open(&c, &setup);
    train_case_run(&c, 2);
    ck_assert_ok(ql_trainer_save(c.trainer, path, &err), &err);
    train_case_close(&c);
    for (int i = 0; i < (int)(sizeof changed / sizeof *changed); i++) {
        setup = train_setup_defaults();
        change(&setup, i);
        train_case_open(&c, &setup);
        float first = c.model->adapters->master[0];
        ck_assert_fails(ql_trainer_resume(c.trainer, path, &err), QL_ERR_ARG, &err, changed[i]);
        ck_assert_uint_eq(ql_trainer_done(c.trainer), 0);
        ck_assert(c.model->adapters->master[0] == first);
        train_case_close(&c);
    }
    test_folder_remove(folder);
}
END_TEST

/* A constant rate does not ask how long the run is. */
START_TEST(a_constant_schedule_takes_more_steps)
{
    char *folder = test_folder(), path[4096];
    snprintf(path, sizeof path, "%s/checkpoint.safetensors", folder);
    train_setup setup = train_setup_defaults();
    setup.train.schedule = QL_SCHEDULE_CONSTANT;
    train_case whole, part;
    train_case_open(&part, &setup);
    train_case_run(&part, 9);
    ck_assert_ok(ql_trainer_save(part.trainer, path, &err), &err);
    train_case_close(&part);
    setup.train.steps = 11;
    train_case_open(&whole, &setup);
    train_case_run(&whole, 11);
    train_case_open(&part, &setup);
    ck_assert_ok(ql_trainer_resume(part.trainer, path, &err), &err);
    train_case_run(&part, 11);
    check_equal(&whole, &part);
    train_case_close(&part);
    train_case_close(&whole);
    setup.train.steps = 8;
    train_case_open(&part, &setup);
    ck_assert_fails(ql_trainer_resume(part.trainer, path, &err), QL_ERR_ARG, &err, "9 steps are done already");
    train_case_close(&part);
    test_folder_remove(folder);
}
END_TEST

START_TEST(damaged_files_are_refused)
{
    char *folder = test_folder(), path[4096];
    snprintf(path, sizeof path, "%s/checkpoint.safetensors", folder);
    train_setup setup = train_setup_defaults();
    train_case c;
    train_case_open(&c, &setup);
    train_case_run(&c, 1);
    ck_assert_ok(ql_trainer_save(c.trainer, path, &err), &err);
    static char bytes[1 << 18];
    FILE *file = fopen(path, "rb");
    size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    ck_assert_uint_lt(size, sizeof bytes);
    for (size_t cut = 0; cut < size; cut += 997)
        ck_assert_fails(ql_trainer_resume(c.trainer, test_file(folder, "cut.safetensors", bytes, cut), &err),
                        QL_ERR_FORMAT, &err, "cut.safetensors");
    for (size_t at = 8; at < size; at += at < 2400 ? 3 : 61) { /* the length in front apart */
        bytes[at] ^= 1;
        ql_status status = ql_trainer_resume(c.trainer, test_file(folder, "bent.safetensors", bytes, size), &err);
        ck_assert_msg(status != QL_OK, "byte %zu: taken for good", at);
        bytes[at] ^= 1;
    }
    ck_assert_fails(ql_trainer_resume(c.trainer, "/nowhere/checkpoint.safetensors", &err), QL_ERR_IO, &err, "/nowhere");
    ck_assert_fails(ql_trainer_save(c.trainer, "/nowhere/checkpoint.safetensors", &err), QL_ERR_IO, &err, "/nowhere");
    ck_assert_uint_eq(ql_trainer_done(c.trainer), 1);
    ck_assert_ok(ql_trainer_resume(c.trainer, test_file(folder, "good.safetensors", bytes, size), &err), &err);
    train_case_close(&c);
    test_folder_remove(folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("resume");
    TCase *tests = tcase_create("resume");
    tcase_set_timeout(tests, 240);
    tcase_add_loop_test(tests, stopped_anywhere_it_ends_the_same, 0, 2);
    tcase_add_test(tests, checkpoints_of_resumed_runs_are_the_same);
    tcase_add_test(tests, another_run_is_refused_by_name);
    tcase_add_test(tests, a_constant_schedule_takes_more_steps);
    tcase_add_test(tests, damaged_files_are_refused);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
