/* Variants of a run. NEFTune's noise on the embeddings: its reach, distribution and independence of threads, and that only
 * training has it. Moments in 8 bits: the losses of a run beside those with fp32. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/pass.h"
#include "support.h"
#include "train_case.h"

static ql_error err;

enum { D = 70, SHORT = 5, LONG = 47, TOKENS = SHORT + LONG };

/* What the blocks are given, x[TOKENS][D], with that noise. */
static void embeddings(float *x, ql_noise noise, size_t threads)
{
    train_setup setup = train_setup_defaults();
    setup.config.hidden_size = D; /* not a multiple of 4 */
    int32_t ids[TOKENS], target[TOKENS];
    uint32_t position[TOKENS];
    const size_t start[] = {0, SHORT, TOKENS};
    for (int i = 0; i < TOKENS; i++) {
        ids[i] = i * 31 % 97;
        target[i] = i % 97;
        position[i] = (uint32_t)(i < SHORT ? i : i - SHORT);
    }
    ql_workers *workers;
    ql_model *model;
    ql_pass pass = {0};
    ql_loss_sum loss;
    const ql_batch batch = {.tokens = TOKENS, .sequences = 2, .ids = ids, .target = target, .position = position,
                            .start = start, .noise = noise};
    ck_assert_ok(ql_workers_create(&workers, threads, &err), &err);
    ck_assert_ok(ql_model_random(&model, &setup.config, setup.format, 3, workers, &err), &err);
    ck_assert_ok(ql_model_attach(model, &setup.lora, &err), &err);
    const ql_pass_kind kind = {true, false, SIZE_MAX};
    ck_assert_ok(ql_pass_init(&pass, model, TOKENS, LONG, kind, workers, &err), &err);
    ck_assert_ok(ql_pass_run(&pass, &batch, 1, NULL, NULL, &loss, workers, &err), &err);
    memcpy(x, pass.saved[0].x, TOKENS * D * sizeof *x);
    ql_pass_free(&pass);
    ql_model_destroy(model);
    ql_workers_destroy(workers);
}

static void check_sequence(const float *plain, const float *noisy, size_t tokens, double alpha)
{
    double reach = alpha / sqrt((double)(tokens * D)), sum = 0, squares = 0, most = 0, count = (double)(tokens * D);
    for (size_t i = 0; i < tokens * D; i++) {
        double n = ((double)noisy[i] - (double)plain[i]) / reach;
        sum += n;
        squares += n * n;
        most = fabs(n) > most ? fabs(n) : most;
    }
    ck_assert_msg(most > 0.97 && most < 1 + 1e-4, "largest %g of the reach", most);
    ck_assert_double_eq_tol(sum / count, 0, 4 * sqrt(1.0 / 3 / count)); /* uniform: variance 1/3, of squares 4/45 */
    ck_assert_double_eq_tol(squares / count, 1.0 / 3, 4 * sqrt(4.0 / 45 / count));
}

START_TEST(noise_is_uniform_in_its_reach)
{
    static float plain[TOKENS * D], noisy[TOKENS * D], other[TOKENS * D];
    embeddings(plain, (ql_noise){0}, 1);
    embeddings(noisy, (ql_noise){.alpha = 5, .seed = 1, .step = 9}, 1);
    check_sequence(plain, noisy, SHORT, 5);
    check_sequence(plain + SHORT * D, noisy + SHORT * D, LONG, 5);
    embeddings(other, (ql_noise){.alpha = 5, .seed = 1, .step = 9}, 3);
    ck_assert_mem_eq(other, noisy, sizeof noisy);
    for (int i = 0; i < 2; i++) { /* of another step, and of another seed, it is another */
        embeddings(other, (ql_noise){.alpha = 5, .seed = 1 + (uint64_t)i, .step = 10 - (uint64_t)i}, 1);
        int same = 0;
        for (int j = 0; j < TOKENS * D; j++)
            same += other[j] == noisy[j];
        ck_assert_int_lt(same, TOKENS * D / 50);
    }
}
END_TEST

/* The trainer turns it on, and evaluation does not have it. */
START_TEST(only_training_is_noisy)
{
    double losses[3], before = 0;
    ql_eval_report report = {0};
    for (int i = 0; i < 3; i++) {
        train_setup setup = train_setup_defaults();
        setup.train.neftune_alpha = i ? 30 : 0;
        setup.train.lr = 0;
        setup.threads = 1 + (size_t)i / 2;
        setup.lora.dropout = 0;
        train_case c;
        train_case_open(&c, &setup);
        ql_step_report first, step;
        ck_assert_ok(ql_trainer_step(c.trainer, &first, &err), &err);
        losses[i] = first.loss;
        for (int j = 1; j < 4; j++)
            ck_assert_ok(ql_trainer_step(c.trainer, &step, &err), &err);
        before = report.loss;
        ck_assert_ok(ql_evaluate(&report, c.model, c.data, 3, c.workers, &err), &err);
        ck_assert(i == 0 || report.loss == before);
        train_case_close(&c);
    }
    ck_assert(losses[1] != losses[0]);
    ck_assert(losses[1] == losses[2]);
}
END_TEST

START_TEST(losses_stay_near_with_moments_in_8_bits)
{
    double losses[2][40];
    for (int i = 0; i < 2; i++) {
        train_setup setup = train_setup_defaults();
        setup.train.optim = i ? QL_OPTIM_ADAMW_8BIT : QL_OPTIM_ADAMW;
        setup.train.steps = 40;
        train_case c;
        train_case_open(&c, &setup);
        for (int step = 0; step < 40; step++) {
            ql_step_report report;
            ck_assert_ok(ql_trainer_step(c.trainer, &report, &err), &err);
            losses[i][step] = report.loss;
        }
        train_case_close(&c);
    }
    ck_assert_double_lt(losses[0][39], 0.9 * losses[0][0]); /* something is learned */
    for (int step = 0; step < 40; step++)
        ck_assert_double_eq_tol(losses[1][step], losses[0][step], 0.02 * losses[0][step]);
    ck_assert(losses[1][39] != losses[0][39]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("variants");
    TCase *tests = tcase_create("variants");
    tcase_set_timeout(tests, 240);
    tcase_add_test(tests, noise_is_uniform_in_its_reach);
    tcase_add_test(tests, only_training_is_noisy);
    tcase_add_test(tests, losses_stay_near_with_moments_in_8_bits);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
