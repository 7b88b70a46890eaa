/* Models in GGUF files: against the logits, losses and texts of an independent float64 program, and against the same
 * weights in a Hugging Face folder. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_case.h"
#include "io/json.h"
#include "model_support.h"
#include "quant/weight.h"

static ql_model *open_model(const char *path, ql_format format)
{
    ql_model *model;
    ck_assert_ok(ql_model_open(&model, path, format, workers, &err), &err);
    return model;
}

static size_t ids_of(const json_t *array, int32_t ids[256])
{
    size_t count = json_array_size(array);
    ck_assert_uint_le(count, 256);
    for (size_t i = 0; i < count; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return count;
}

/* The logits after ids[count], to be freed. */
static float *logits_of(const ql_model *model, const int32_t *ids, size_t count)
{
    ql_generator *gen;
    const float *logits;
    size_t bytes = ql_model_shape(model)->vocab_size * sizeof *logits;
    ck_assert_ok(ql_generator_create(&gen, model, count, workers, &err), &err);
    ck_assert_ok(ql_generator_feed(gen, ids, count, &logits, &err), &err);
    float *copy = memcpy(malloc(bytes), logits, bytes);
    ql_generator_destroy(gen);
    return copy;
}

static void check_near(const float *logits, const json_t *wanted, const json_t *ids)
{
    for (size_t i = 0; i < json_array_size(wanted); i++) {
        size_t at = ids ? (size_t)json_integer_value(json_array_get(ids, i)) : i;
        double reference = json_number_value(json_array_get(wanted, i));
        ck_assert_msg(fabs((double)logits[at] - reference) < 1e-4, "logit %zu: %g, reference %g", at,
                      (double)logits[at], reference);
    }
}

static int32_t best_of(const float *logits, size_t vocab)
{
    size_t best = 0;
    for (size_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

static void check_greedy(const ql_model *model, const json_t *wanted, size_t given)
{
    int32_t ids[256];
    size_t count = ids_of(wanted, ids), vocab = ql_model_shape(model)->vocab_size;
    for (size_t i = given; i < count; i++) {
        float *logits = logits_of(model, ids, i);
        ck_assert_int_eq(best_of(logits, vocab), ids[i]);
        free(logits);
    }
}

static void check_case(const ql_model *model, const json_t *test)
{
    int32_t ids[256];
    size_t count = ids_of(json_object_get(test, "token_ids"), ids);
    float *logits = logits_of(model, ids, count);
    check_near(logits, json_object_get(test, "last_logits"), NULL);
    check_near(logits, json_object_get(test, "first_16_logits"), NULL);
    check_near(logits, json_object_get(test, "top10_logits"), json_object_get(test, "top10_ids"));
    ck_assert_int_eq(best_of(logits, ql_model_shape(model)->vocab_size),
                     json_integer_value(json_array_get(json_object_get(test, "top10_ids"), 0)));
    free(logits);
    ck_assert_double_eq_tol(loss_of(model, ids, count), json_number_value(json_object_get(test, "mean_loss")), 1e-5);
    check_greedy(model, json_object_get(test, "greedy_token_ids"), count);
}

static const struct {
    const char *name, *format; /* what the model says of itself when it is opened as stored */
    bool quantized;
} files[] = {
    {"stories260K-q8_0", "q8_0", true}, {"stories260K-q4_0", "q4_0", true}, {"llama-2-tiny-random", "f32", false}};
enum { FILES = sizeof files / sizeof *files };

START_TEST(files_give_the_reference_values)
{
    char name[96], text[48];
    json_t *reference;
    snprintf(name, sizeof name, "models/gguf/%s.gguf", files[_i].name);
    const char *path = test_data(name);
    if (!path)
        return;
    snprintf(name, sizeof name, "models/gguf/%s.reference.json", files[_i].name);
    ck_assert_ok(ql_json_read(&reference, test_data(name), &err), &err);
    ql_model *model = open_model(path, none);
    ck_assert_str_eq(ql_format_describe(ql_model_format(model), text), files[_i].format);
    const json_t *cases = json_object_get(reference, "cases");
    ck_assert_uint_gt(json_array_size(cases), 0);
    for (size_t i = 0; i < json_array_size(cases); i++)
        check_case(model, json_array_get(cases, i));
    ql_format format;
    ck_assert_ok(ql_model_default_format(&format, path, &err), &err);
    ck_assert_int_eq(format.code, files[_i].quantized ? QL_CODE_F32 : QL_CODE_NF4);
    ql_model_destroy(model);
    json_decref(reference);
}
END_TEST

/* Adapters are made for rows in Hugging Face's order: the weights must be those of the folder, row by row. */
START_TEST(rows_are_in_hugging_faces_order)
{
    const char *path = test_data("models/gguf/stories260K-q8_0.gguf"), *dir = test_data("models/stories260K-hf");
    if (!path || !dir)
        return;
    ql_model *stored = open_model(path, none), *wanted = open_model(dir, none);
    ck_assert_uint_gt(ql_model_memory(stored).mapped, 200000);
    for (size_t i = 0; i < ql_model_shape(wanted)->layers; i++)
        for (int module = 0; module < QL_MODULES; module++) {
            const ql_weight *a = stored->blocks[i].weight[module], *b = wanted->blocks[i].weight[module];
            float x[256], y[256];
            ck_assert_uint_eq(ql_weight_rows(a), ql_weight_rows(b));
            for (size_t row = 0; row < ql_weight_rows(a); row++) {
                ql_weight_dequantize(a, row, 1, x, 256);
                ql_weight_dequantize(b, row, 1, y, 256);
                for (size_t col = 0; col < ql_weight_cols(a); col++)
                    ck_assert_msg(fabsf(x[col] - y[col]) < 0.02f, "layer %zu %s row %zu: %g, %g", i,
                                  ql_module_name(ql_model_shape(wanted), (ql_module)module), row, (double)x[col],
                                  (double)y[col]);
            }
        }
    ql_model_destroy(stored);
    ql_model_destroy(wanted);
}
END_TEST

/* The same numbers in both kinds of file: logits to the bit, but for the roundings of Llama 3's divisors. */
START_TEST(a_folder_and_its_gguf_agree)
{
    static const char *const dirs[] = {"models/stories260K-hf", "models/stories260K-hf-f16",
                                       "models/tiny-random/tiny_llama3", "models/tiny-random/tiny_qwen3"};
    static const int32_t ids[] = {1, 7, 30, 12, 100, 3, 3, 250};
    const char *dir = test_data(dirs[_i]);
    if (!dir)
        return;
    char *folder = test_folder();
    gguf_writer w = {0};
    gguf_of_folder(&w, dir);
    ql_model *a = open_model(gguf_finish(&w, folder, "m.gguf"), none), *b = open_model(dir, none);
    ck_assert_uint_eq(ql_model_config_parameters(ql_model_shape(a)), ql_model_config_parameters(ql_model_shape(b)));
    float *x = logits_of(a, ids, 8), *y = logits_of(b, ids, 8);
    double bound = a->divided ? 1e-5 : 0, turns[2][128];
    const ql_rope_config ropes[2] = {ql_model_rope(a, false), ql_model_rope(b, false)};
    for (int i = 0; i < 2; i++)
        ql_rope_frequencies(&ropes[i], turns[i]);
    for (size_t i = 0; i < ropes[0].head_dim / 2; i++)
        ck_assert_double_eq_tol(turns[0][i] / turns[1][i], 1, 1e-6);
    for (size_t i = 0; i < ql_model_shape(a)->vocab_size; i++)
        ck_assert_msg(fabs((double)x[i] - (double)y[i]) <= bound, "%s: logit %zu: %.9g, %.9g", dirs[_i], i,
                      (double)x[i], (double)y[i]);
    free(x);
    free(y);
    ql_model_destroy(a);
    ql_model_destroy(b);
    test_folder_remove(folder);
}
END_TEST

START_TEST(a_format_asked_for_is_made_from_the_values)
{
    const char *path = test_data("models/gguf/stories260K-q4_0.gguf");
    if (!path)
        return;
    ql_format format;
    ck_assert_ok(ql_format_parse(&format, "int8", 32, false, &err), &err);
    ql_model *stored = open_model(path, none), *made = open_model(path, format);
    ck_assert_int_eq(ql_model_format(made).code, QL_CODE_INT8);
    const ql_weight *a = stored->blocks[1].weight[QL_K], *b = made->blocks[1].weight[QL_K];
    float x[64], y[64];
    for (size_t row = 0; row < ql_weight_rows(a); row++) {
        ql_weight_dequantize(a, row, 1, x, 64);
        ql_weight_dequantize(b, row, 1, y, 64);
        for (size_t i = 0; i < 64; i++)
            ck_assert_float_eq_tol(x[i], y[i], 0.02f);
    }
    ql_model_destroy(stored);
    ql_model_destroy(made);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model_gguf");
    TCase *tcase = tcase_create("gguf");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, files_give_the_reference_values, 0, FILES);
    tcase_add_test(tcase, rows_are_in_hugging_faces_order);
    tcase_add_loop_test(tcase, a_folder_and_its_gguf_agree, 0, 4);
    tcase_add_test(tcase, a_format_asked_for_is_made_from_the_values);
    suite_add_tcase(suite, tcase);
    return test_run(suite);
}
