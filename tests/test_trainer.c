/* The trainer's bits, and the losses of whole texts: tokenizer, data, model and evaluation together. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "io/json.h"
#include "io/path.h"
#include "model/model.h"
#include "support.h"
#include "train_case.h"

static ql_error err;

/* Every part took time, and together they took that of the step, up to what the call of it took. */
static void check_times(const ql_part_times *times, bool asked, double seconds, double call)
{
    double sum = 0;
    for (int part = 0; part < QL_PARTS; part++) {
        ck_assert_msg((times->seconds[part] > 0) == asked, "%s: %g s", ql_part_name(part), times->seconds[part]);
        sum += times->seconds[part];
    }
    if (asked)
        ck_assert_msg(sum >= seconds && sum <= call, "parts %g s, step %g s, call %g s", sum, seconds, call);
}

/* What is rounded to bf16. */
enum { NOTHING = 0, PRODUCTS = 1, WAITING = 2 };

/* A small model, everything on: dropout, shuffling, accumulation, ragged samples, recomputation or not. */
static double train_some(float *masters, size_t count, size_t threads, size_t recompute, unsigned bf16, ql_arch arch)
{
    double loss = 0;
    ql_model_config config = train_setup_defaults().config;
    config.arch = arch;
    config.tied = config.qkv_bias = arch == QL_ARCH_QWEN2;
    config.qk_norm = arch == QL_ARCH_QWEN3;
    int32_t ids[40];
    uint8_t learn[40];
    ql_sample samples[7];
    for (int i = 0; i < 40; i++) {
        ids[i] = (i * 31 + 7) % 97;
        learn[i] = i % 3 != 0;
    }
    for (size_t i = 0; i < 7; i++)
        samples[i] = (ql_sample){ids + i, learn, 10 + 4 * i};
    ql_workers *workers;
    ql_model *model;
    ql_dataset *data;
    ql_trainer *trainer;
    ql_lora_options lora = ql_lora_options_defaults();
    lora.dropout = 0.1;
    ql_train_options options = ql_train_options_defaults();
    options.batch_size = 2;
    options.grad_accum = 2;
    options.epochs = 2;
    options.lr = 1e-2;
    options.recompute_blocks = recompute;
    options.bf16_activations = bf16 & WAITING;
    ck_assert_ok(ql_workers_create(&workers, threads, &err), &err);
    ck_assert_ok(ql_model_random(&model, &config, ql_format_default(), 3, workers, &err), &err);
    ql_model_allow_bf16(model, bf16 & PRODUCTS);
    ck_assert_ok(ql_model_attach(model, &lora, &err), &err);
    ck_assert_uint_eq(ql_model_adapter_parameters(model), count);
    ck_assert_ok(ql_dataset_from_samples(&data, samples, 7, &err), &err);
    ck_assert_ok(ql_trainer_create(&trainer, model, data, &options, workers, &err), &err);
    ck_assert_uint_eq(ql_trainer_steps(trainer), 4);
    for (int i = 0; i < 4; i++) {
        ql_step_report report;
        ql_part_times times = {.since = 0};
        double start = ql_seconds();
        ql_workers_time(workers, i < 2 ? &times : NULL);
        ck_assert_ok(ql_trainer_step(trainer, &report, &err), &err);
        ql_workers_time(workers, NULL);
        double call = ql_seconds() - start;
        ck_assert(isfinite(report.loss) && report.grad_norm > 0);
        check_times(&times, i < 2, report.seconds, call);
        loss = report.loss;
    }
    memcpy(masters, model->adapters->master, count * sizeof *masters);
    ql_trainer_destroy(trainer);
    ql_dataset_close(data);
    ql_model_destroy(model);
    ql_workers_destroy(workers);
    return loss;
}

enum { COUNT = 3 * 8 * ((72 + 72) + 2 * (72 + 24) + (72 + 72) + 2 * (72 + 100) + (100 + 72)) };

START_TEST(same_bits_for_any_threads_and_recomputation)
{
    static float first[COUNT], other[COUNT];
    ql_arch arch = (ql_arch)_i;
    train_some(first, COUNT, 1, 0, NOTHING, arch);
    for (size_t threads = 2; threads <= 3; threads++) {
        train_some(other, COUNT, threads, 0, NOTHING, arch);
        ck_assert_mem_eq(first, other, sizeof first);
    }
    for (size_t recompute = 1; recompute <= 4; recompute++) { /* of three blocks, the last of which never is */
        train_some(other, COUNT, 2, recompute < 4 ? recompute : SIZE_MAX, NOTHING, arch);
        ck_assert_mem_eq(first, other, sizeof first);
    }
}
END_TEST

/* Where the processor gains nothing by it, bf16 computes what fp32 does. */
START_TEST(bf16_stays_near_and_on_any_threads)
{
    static float one[COUNT], two[COUNT];
    double plain = train_some(one, COUNT, 1, 0, NOTHING, QL_ARCH_LLAMA);
    double rounded = train_some(one, COUNT, 1, 0, PRODUCTS, QL_ARCH_LLAMA);
    ck_assert_double_eq_tol(rounded, plain, 1e-2 * plain);
    train_some(two, COUNT, 2, SIZE_MAX, PRODUCTS, QL_ARCH_LLAMA);
    ck_assert_mem_eq(one, two, sizeof one);
}
END_TEST

/* Rounded activations make other gradients, but not on other threads; of what is computed again only the input of a
 * block was rounded. */
START_TEST(waiting_in_bf16_stays_near_and_on_any_threads)
{
    static float plain[COUNT], one[COUNT], two[COUNT];
    ql_arch arch = (ql_arch)_i;
    double exact = train_some(plain, COUNT, 1, 0, NOTHING, arch);
    for (size_t recompute = 0; recompute < 3; recompute++) {
        double rounded = train_some(one, COUNT, 1, recompute, WAITING, arch);
        ck_assert_double_eq_tol(rounded, exact, 1e-2 * exact);
        ck_assert_mem_ne(plain, one, sizeof one);
        train_some(two, COUNT, 3, recompute, WAITING, arch);
        ck_assert_mem_eq(one, two, sizeof one);
    }
}
END_TEST

/* Texts cut as the reference's protocol says give its losses: tokenizer, data and model together. */
START_TEST(texts_have_the_reference_losses)
{
    const char *dir = test_data("models/stories260K-hf"), *corpora = test_data("corpora");
    if (!dir || !corpora)
        return;
    const ql_format none = {.code = QL_CODE_F32, .scale = QL_SCALE_NONE};
    ql_workers *workers;
    ql_model *model;
    ql_tokenizer *tokenizer;
    json_t *reference;
    char *path = ql_path_join(dir, "reference.json");
    ck_assert_ok(ql_json_read(&reference, path, &err), &err);
    free(path);
    ck_assert_ok(ql_workers_create(&workers, 2, &err), &err);
    ck_assert_ok(ql_model_open(&model, dir, none, workers, &err), &err);
    ck_assert_ok(ql_tokenizer_open(&tokenizer, dir, &err), &err);
    static const struct {
        const char *file;
        size_t piece;
    } texts[] = {{"tinystories-excerpt.txt", 255}, {"tinyshakespeare.txt", 127}};
    for (size_t t = 0; t < 2; t++) {
        static char text[16384];
        path = ql_path_join(corpora, texts[t].file);
        FILE *file = fopen(path, "rb");
        ck_assert_ptr_nonnull(file);
        ck_assert_uint_eq(fread(text, 1, sizeof text, file), sizeof text);
        fclose(file);
        free(path);
        ql_ids ids = {0};
        ck_assert_ok(ql_tokenizer_encode(tokenizer, text, sizeof text, QL_ENCODE_PLAIN, &ids, &err), &err);
        static int32_t piece[16][256];
        static uint8_t learn[256];
        ql_sample samples[16];
        memset(learn, 1, sizeof learn);
        for (size_t i = 0; i < 16; i++) {
            piece[i][0] = ql_tokenizer_bos(tokenizer);
            memcpy(piece[i] + 1, ids.data + i * texts[t].piece, texts[t].piece * sizeof **piece);
            samples[i] = (ql_sample){piece[i], learn, texts[t].piece + 1};
        }
        ql_dataset *data;
        ql_eval_report report;
        ck_assert_ok(ql_dataset_from_samples(&data, samples, 16, &err), &err);
        ck_assert_ok(ql_evaluate(&report, model, data, 5, workers, &err), &err);
        const json_t *wanted = json_array_get(json_object_get(reference, "text_losses"), t);
        ck_assert_double_eq_tol(report.loss, json_number_value(json_object_get(wanted, "mean_loss")), 1e-4);
        ck_assert_uint_eq(report.learned, 16 * texts[t].piece);
        ql_dataset_close(data);
        ql_ids_free(&ids);
    }
    ql_tokenizer_close(tokenizer);
    ql_model_destroy(model);
    ql_workers_destroy(workers);
    json_decref(reference);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("trainer");
    TCase *tests = tcase_create("trainer");
    tcase_set_timeout(tests, 240);
    tcase_add_loop_test(tests, same_bits_for_any_threads_and_recomputation, QL_ARCH_LLAMA, QL_ARCH_QWEN3 + 1);
    tcase_add_test(tests, bf16_stays_near_and_on_any_threads);
    tcase_add_loop_test(tests, waiting_in_bf16_stays_near_and_on_any_threads, 0, 3);
    tcase_add_test(tests, texts_have_the_reference_losses);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
