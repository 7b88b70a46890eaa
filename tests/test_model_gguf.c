/* Models in GGUF files: against the logits, losses and texts of an independent float64 program, against the same
 * weights in a Hugging Face folder, and files that lie. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_case.h"
#include "io/json.h"
#include "model/pass.h"
#include "quant/weight.h"
#include "support.h"

static ql_workers *workers;
static ql_error err;
static const ql_format none = {.code = QL_CODE_F32};

static void setup(void)
{
    ck_assert_ok(ql_workers_create(&workers, 2, &err), &err);
}

static void teardown(void)
{
    ql_workers_destroy(workers);
}

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

/* Mean loss over the next tokens. */
static double loss_of(const ql_model *model, const int32_t *ids, size_t count)
{
    size_t m = count - 1, start[2] = {0, m};
    uint32_t position[256];
    for (size_t i = 0; i < m; i++)
        position[i] = (uint32_t)i;
    ql_batch batch = {
        .tokens = m, .sequences = 1, .ids = ids, .target = ids + 1, .position = position, .start = start};
    ql_pass pass = {0};
    ql_loss_sum loss;
    ck_assert_ok(ql_pass_init(&pass, model, m, m, (ql_pass_kind){0}, workers, &err), &err);
    ck_assert_ok(ql_pass_run(&pass, &batch, 0, NULL, NULL, &loss, workers, &err), &err);
    ql_pass_free(&pass);
    return loss.sum / (double)loss.count;
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

/* ---- files that lie ---- */

static const ql_model_config small = {.arch = QL_ARCH_LLAMA,
                                      .vocab_size = 40,
                                      .hidden_size = 32,
                                      .intermediate_size = 64,
                                      .layers = 1,
                                      .heads = 2,
                                      .kv_heads = 1,
                                      .head_dim = 16,
                                      .max_positions = 64,
                                      .rms_norm_eps = 1e-5,
                                      .rope_theta = 10000};

/* A block of q8_0 for each 32 elements, all of them zero. */
static void add_matrix(gguf_writer *w, const char *name, size_t n, size_t k)
{
    static const unsigned char zeros[40 * 64 / 32 * 34 + 34];
    gguf_tensor(w, name, GGUF_Q8_0, 2, (size_t[]){n, k}, zeros, n * k / 32 * 34);
}

static void add_vector(gguf_writer *w, const char *name, size_t n)
{
    static const float zeros[64];
    gguf_tensor(w, name, GGUF_F32, 1, &n, zeros, n * sizeof *zeros);
}

static void add_model(gguf_writer *w)
{
    gguf_config(w, &small);
    add_matrix(w, "token_embd.weight", 40, 32);
    add_vector(w, "output_norm.weight", 32);
    add_vector(w, "blk.0.attn_norm.weight", 32);
    add_vector(w, "blk.0.ffn_norm.weight", 32);
    add_matrix(w, "blk.0.attn_q.weight", 32, 32);
    add_matrix(w, "blk.0.attn_k.weight", 16, 32);
    add_matrix(w, "blk.0.attn_v.weight", 16, 32);
    add_matrix(w, "blk.0.attn_output.weight", 32, 32);
    add_matrix(w, "blk.0.ffn_gate.weight", 64, 32);
    add_matrix(w, "blk.0.ffn_up.weight", 64, 32);
    add_matrix(w, "blk.0.ffn_down.weight", 32, 64);
}

static ql_status try_model(gguf_writer *w)
{
    char *folder = test_folder();
    ql_model *model = NULL;
    ql_status status = ql_model_open(&model, gguf_finish(w, folder, "bad.gguf"), none, workers, &err);
    ck_assert(!status == !!model);
    ql_model_destroy(model);
    test_folder_remove(folder);
    return status;
}

START_TEST(what_is_missing_is_named)
{
    static const char *const needed[] = {
        "general.architecture",      "llama.context_length",     "llama.embedding_length",
        "llama.feed_forward_length", "llama.block_count",        "llama.attention.head_count",
        "token_embd.weight",         "output_norm.weight",       "blk.0.attn_norm.weight",
        "blk.0.ffn_norm.weight",     "blk.0.attn_q.weight",      "blk.0.attn_k.weight",
        "blk.0.attn_v.weight",       "blk.0.attn_output.weight", "blk.0.ffn_gate.weight",
        "blk.0.ffn_up.weight",       "blk.0.ffn_down.weight",    "llama.attention.layer_norm_rms_epsilon",
    };
    gguf_writer w = {0};
    add_model(&w);
    ck_assert_ok(try_model(&w), &err);
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        w = (gguf_writer){.without = needed[i]};
        add_model(&w);
        ck_assert_fails(try_model(&w), QL_ERR_FORMAT, &err, needed[i]);
        ck_assert_msg(strstr(err.message, "bad.gguf") != NULL, "%s", err.message);
    }
}
END_TEST

START_TEST(metadata_that_cannot_be_is_refused)
{
    static const struct {
        const char *key;
        uint32_t value;
        ql_status status;
        const char *words;
    } bad[] = {
        {"llama.block_count", UINT32_MAX, QL_ERR_FORMAT, "block_count"},
        {"llama.block_count", 0, QL_ERR_FORMAT, "block_count"},
        {"llama.block_count", 2, QL_ERR_FORMAT, "blk.1."},
        {"llama.embedding_length", 1u << 31, QL_ERR_FORMAT, "embedding_length"},
        {"llama.embedding_length", 64, QL_ERR_SHAPE, "token_embd.weight"},
        {"llama.feed_forward_length", 96, QL_ERR_SHAPE, "blk.0.ffn_gate.weight"},
        {"llama.attention.head_count", 3, QL_ERR_SHAPE, "blk.0.attn_q.weight"},
        {"llama.attention.head_count_kv", 7, QL_ERR_FORMAT, "num_key_value_heads 7"},
        {"llama.attention.key_length", 15, QL_ERR_UNSUPPORTED, "even"},
        {"llama.attention.key_length", 1 << 19, QL_ERR_UNSUPPORTED, "524288"},
        {"llama.attention.value_length", 8, QL_ERR_UNSUPPORTED, "values of 8"},
        {"llama.rope.dimension_count", 8, QL_ERR_UNSUPPORTED, "8 are rotated"},
        {"llama.expert_count", 8, QL_ERR_UNSUPPORTED, "expert_count 8"},
        {"llama.attention.sliding_window", 4096, QL_ERR_UNSUPPORTED, "sliding_window"},
        {"general.architecture", 1, QL_ERR_FORMAT, "general.architecture"},
        {"llama.rope.scaling.type", 1, QL_ERR_FORMAT, "rope.scaling.type"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        gguf_writer w = {.without = bad[i].key};
        add_model(&w);
        w.without = NULL;
        gguf_u32(&w, bad[i].key, bad[i].value);
        ck_assert_fails(try_model(&w), bad[i].status, &err, bad[i].words);
    }
    gguf_writer w = {.without = "general.architecture"};
    add_model(&w);
    w.without = NULL;
    gguf_string(&w, "general.architecture", "gemma2");
    ck_assert_fails(try_model(&w), QL_ERR_UNSUPPORTED, &err, "gemma2");
    add_model(&w);
    gguf_string(&w, "llama.rope.scaling.type", "yarn");
    ck_assert_fails(try_model(&w), QL_ERR_UNSUPPORTED, &err, "yarn");
}
END_TEST

START_TEST(tensors_that_do_not_fit_are_refused)
{
    static const unsigned char zeros[4096];
    gguf_writer w = {.without = "blk.0.attn_k.weight"};
    add_model(&w);
    w.without = NULL;
    add_matrix(&w, "blk.0.attn_k.weight", 32, 32);
    ck_assert_fails(try_model(&w), QL_ERR_SHAPE, &err, "32 x 32, the model needs 16 x 32");
    w.without = "blk.0.attn_k.weight";
    add_model(&w);
    w.without = NULL;
    gguf_tensor(&w, "blk.0.attn_k.weight", 6, 2, (size_t[]){16, 32}, zeros, 16 * 22); /* Q5_0 */
    ck_assert_fails(try_model(&w), QL_ERR_UNSUPPORTED, &err, "Q5_0");
    w.without = "blk.0.attn_norm.weight";
    add_model(&w);
    w.without = NULL;
    gguf_tensor(&w, "blk.0.attn_norm.weight", GGUF_Q8_0, 1, (size_t[]){32}, zeros, 34);
    ck_assert_fails(try_model(&w), QL_ERR_UNSUPPORTED, &err, "Q8_0");
    add_model(&w);
    add_vector(&w, "rope_freqs.weight", 8);
    ck_assert_fails(try_model(&w), QL_ERR_VALUE, &err, "rope_freqs.weight");
    add_model(&w);
    add_vector(&w, "rope_freqs.weight", 4);
    ck_assert_fails(try_model(&w), QL_ERR_SHAPE, &err, "rope_freqs.weight");
    add_model(&w);
    add_vector(&w, "blk.0.ffn_up.bias", 64);
    ck_assert_fails(try_model(&w), QL_ERR_UNSUPPORTED, &err, "blk.0.ffn_up.bias");
    add_model(&w);
    add_matrix(&w, "output.weight", 20, 32);
    ck_assert_fails(try_model(&w), QL_ERR_SHAPE, &err, "output.weight");
}
END_TEST

/* Every cut of a good file is refused or opens, and nothing else happens. */
START_TEST(a_file_cut_short_is_refused)
{
    char *folder = test_folder();
    gguf_writer w = {0};
    add_model(&w);
    const char *path = gguf_finish(&w, folder, "m.gguf");
    static unsigned char bytes[40000];
    FILE *file = fopen(path, "rb");
    size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    for (size_t cut = 3; cut < size; cut += cut < 2048 ? 13 : 997) {
        ql_model *model;
        ck_assert_int_ne(ql_model_open(&model, test_file(folder, "cut.gguf", bytes, cut), none, workers, &err), QL_OK);
        ck_assert_ptr_null(model);
    }
    test_folder_remove(folder);
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
    tcase_add_test(tcase, what_is_missing_is_named);
    tcase_add_test(tcase, metadata_that_cannot_be_is_refused);
    tcase_add_test(tcase, tensors_that_do_not_fit_are_refused);
    tcase_add_test(tcase, a_file_cut_short_is_refused);
    suite_add_tcase(suite, tcase);
    return test_run(suite);
}
