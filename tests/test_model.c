/* Models against the logits, losses and greedy texts that an independent float64 program computed for them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "io/path.h"
#include "model_support.h"

static int32_t *ids_of(const json_t *array, size_t *count)
{
    *count = json_array_size(array);
    int32_t *ids = malloc((*count + 1) * sizeof *ids);
    for (size_t i = 0; i < *count; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return ids;
}

static void check_logits(const float *logits, const json_t *wanted, size_t vocab)
{
    ck_assert_uint_eq(json_array_size(wanted), vocab);
    for (size_t i = 0; i < vocab; i++) {
        double reference = json_number_value(json_array_get(wanted, i));
        ck_assert_msg(fabs(logits[i] - reference) < 1e-3, "logit %zu: %g, reference %g", i, logits[i], reference);
    }
}

static int32_t best_of(const float *logits, size_t vocab)
{
    ql_sampling greedy = {.temperature = 0, .top_p = 1};
    int32_t token;
    ck_assert_ok(ql_sample_token(&token, logits, vocab, &greedy, 0, &err), &err);
    return token;
}

/* Feeds the case in one call and token by token; both must give the reference's logits. */
static void check_case(const ql_model *model, const json_t *test)
{
    size_t count, vocab = ql_model_shape(model)->vocab_size;
    int32_t *ids = ids_of(json_object_get(test, "token_ids"), &count);
    const json_t *wanted = json_object_get(test, "last_logits"), *argmax = json_object_get(test, "all_positions_argmax");
    ql_generator *gen;
    const float *logits;
    ck_assert_ok(ql_generator_create(&gen, model, count, workers, &err), &err);
    ck_assert_ok(ql_generator_feed(gen, ids, count, &logits, &err), &err);
    check_logits(logits, wanted, vocab);
    ql_generator_reset(gen);
    for (size_t i = 0; i < count; i++) {
        ck_assert_ok(ql_generator_feed(gen, ids + i, 1, &logits, &err), &err);
        ck_assert_int_eq(best_of(logits, vocab), json_integer_value(json_array_get(argmax, i)));
    }
    check_logits(logits, wanted, vocab);
    ck_assert_fails(ql_generator_feed(gen, ids, 1, &logits, &err), QL_ERR_SHAPE, &err, "the cache holds");
    ql_generator_destroy(gen);
    const json_t *loss = json_object_get(test, "mean_loss");
    if (json_is_number(loss))
        ck_assert_double_eq_tol(loss_of(model, ids, count), json_number_value(loss), 1e-4);
    free(ids);
}

static void check_greedy(const ql_model *model, const json_t *prompt)
{
    size_t given, count, vocab = ql_model_shape(model)->vocab_size;
    const json_t *wanted = json_object_get(prompt, "greedy_token_ids");
    if (!wanted)
        return;
    int32_t *start = ids_of(json_object_get(prompt, "token_ids"), &given), *ids = ids_of(wanted, &count);
    ql_generator *gen;
    const float *logits;
    ck_assert_ok(ql_generator_create(&gen, model, count, workers, &err), &err);
    ck_assert_ok(ql_generator_feed(gen, ids, given, &logits, &err), &err);
    for (size_t i = given; i < count; i++) {
        ck_assert_int_eq(best_of(logits, vocab), ids[i]);
        ck_assert_ok(ql_generator_feed(gen, ids + i, 1, &logits, &err), &err);
    }
    ck_assert_mem_eq(start, ids, given * sizeof *ids);
    ql_generator_destroy(gen);
    free(start);
    free(ids);
}

static void check_model(const char *name)
{
    const char *dir = test_data(name);
    if (!dir)
        return;
    char *path = ql_path_join(dir, "reference.json");
    json_t *reference;
    ck_assert_ok(ql_json_read(&reference, path, &err), &err);
    ql_model *model;
    ck_assert_ok(ql_model_open(&model, dir, none, workers, &err), &err);
    const json_t *prompts = json_object_get(reference, "prompts"), *cases = json_object_get(reference, "cases");
    ck_assert_uint_gt(json_array_size(prompts) + json_array_size(cases), 0);
    for (size_t i = 0; i < json_array_size(prompts); i++) {
        check_case(model, json_array_get(prompts, i));
        check_greedy(model, json_array_get(prompts, i));
    }
    for (size_t i = 0; i < json_array_size(cases); i++)
        check_case(model, json_array_get(cases, i));
    ql_model_destroy(model);
    json_decref(reference);
    free(path);
}

START_TEST(stories_f32)
{
    check_model("models/stories260K-hf");
}
END_TEST

START_TEST(stories_f16)
{
    check_model("models/stories260K-hf-f16");
}
END_TEST

START_TEST(llama3_with_scaled_rope)
{
    check_model("models/tiny-random/tiny_llama3");
}
END_TEST

START_TEST(qwen3_with_head_norms)
{
    check_model("models/tiny-random/tiny_qwen3");
}
END_TEST

START_TEST(quantized_checkpoint_of_others_is_refused)
{
    const char *dir = test_data("models/tiny-random/tiny_llama3_tied_mlx4bit");
    ql_model *model;
    if (dir)
        ck_assert_fails(ql_model_open(&model, dir, none, workers, &err), QL_ERR_UNSUPPORTED, &err, "quantization");
}
END_TEST

/* ---- configuration ---- */

static const char good_config[] = "\"hidden_size\": 32, \"intermediate_size\": 48, \"num_hidden_layers\": 1, "
                                  "\"num_attention_heads\": 4, \"vocab_size\": 20, \"max_position_embeddings\": 64";

static ql_status read_config(ql_model_config *config, const char *members)
{
    char *folder = test_folder(), *path = ql_path_join(folder, "config.json");
    FILE *file = fopen(path, "w");
    fprintf(file, "{%s}", members);
    fclose(file);
    ql_status status = ql_model_config_read(config, folder, &err);
    free(path);
    test_folder_remove(folder);
    return status;
}

START_TEST(configuration_of_each_architecture)
{
    ql_model_config c;
    char text[1024];
    snprintf(text, sizeof text, "\"model_type\": \"llama\", %s", good_config);
    ck_assert_ok(read_config(&c, text), &err);
    ck_assert_uint_eq(c.kv_heads, 4);
    ck_assert_uint_eq(c.head_dim, 8);
    ck_assert(!c.qkv_bias && !c.qk_norm && !c.tied);
    snprintf(text, sizeof text, "\"model_type\": \"qwen2\", \"tie_word_embeddings\": true, \"rope_theta\": 1e6, %s",
             good_config);
    ck_assert_ok(read_config(&c, text), &err);
    ck_assert(c.qkv_bias && !c.o_bias && !c.qk_norm && c.tied);
    ck_assert_double_eq(c.rope_theta, 1e6);
    snprintf(text, sizeof text, "\"model_type\": \"qwen3\", \"head_dim\": 16, %s", good_config);
    ck_assert_ok(read_config(&c, text), &err);
    ck_assert(!c.qkv_bias && c.qk_norm);
    ck_assert_uint_eq(c.head_dim, 16);
    snprintf(text, sizeof text,
             "\"model_type\": \"llama\", \"rope_parameters\": {\"rope_theta\": 5e5, \"rope_type\": \"llama3\", "
             "\"factor\": 32, \"low_freq_factor\": 1, \"high_freq_factor\": 4, "
             "\"original_max_position_embeddings\": 8192}, %s",
             good_config);
    ck_assert_ok(read_config(&c, text), &err);
    ck_assert_double_eq(c.rope_theta, 5e5);
    ck_assert_double_eq(c.rope_scaling.factor, 32);
}
END_TEST

START_TEST(configuration_refused_by_name)
{
    static const struct {
        const char *members, *words;
        ql_status status;
    } bad[] = {
        {"\"model_type\": \"gpt2\"", "gpt2", QL_ERR_UNSUPPORTED},
        {"\"vocab_size\": 3", "model_type", QL_ERR_FORMAT},
        {"\"model_type\": \"llama\", \"hidden_act\": \"gelu\"", "gelu", QL_ERR_UNSUPPORTED},
        {"\"model_type\": \"llama\", \"num_key_value_heads\": 3", "num_key_value_heads 3", QL_ERR_FORMAT},
        {"\"model_type\": \"llama\", \"num_key_value_heads\": \"two\"", "num_key_value_heads", QL_ERR_FORMAT},
        {"\"model_type\": \"llama\", \"head_dim\": 7", "even", QL_ERR_UNSUPPORTED},
        {"\"model_type\": \"gpt2\"", "llama, qwen2, qwen3, mistral, gemma2, gemma3_text, phi3, smollm3", QL_ERR_UNSUPPORTED},
        {"\"model_type\": \"qwen2\", \"use_sliding_window\": true, \"layer_types\": [\"linear_attention\"]",
         "linear_attention", QL_ERR_UNSUPPORTED},
        {"\"model_type\": \"gemma2\", \"layer_types\": []", "0 entries for 1 layers", QL_ERR_FORMAT},
        {"\"model_type\": \"gemma2\", \"hidden_activation\": \"gelu\"", "gelu_pytorch_tanh is", QL_ERR_UNSUPPORTED},
        {"\"model_type\": \"gemma3_text\", \"use_bidirectional_attention\": true", "use_bidirectional_attention",
         QL_ERR_UNSUPPORTED},
        {"\"model_type\": \"smollm3\", \"no_rope_layers\": [1, 0]", "2 entries for 1 layers", QL_ERR_FORMAT},
        {"\"model_type\": \"phi3\", \"partial_rotary_factor\": 0.4", "partial_rotary_factor", QL_ERR_UNSUPPORTED},
        {"\"model_type\": \"phi3\", \"rope_scaling\": {\"type\": \"longrope\"}", "short_factor", QL_ERR_FORMAT},
        {"\"model_type\": \"phi3\", \"original_max_position_embeddings\": 32, "
         "\"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1, 1]}", "2 entries for 4 frequencies", QL_ERR_FORMAT},
        {"\"model_type\": \"phi3\", \"original_max_position_embeddings\": 32, "
         "\"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1, 1, \"a\", 1]}", "short_factor[2]", QL_ERR_FORMAT},
        {"\"model_type\": \"llama\", \"rope_scaling\": {\"type\": \"yarn\"}", "yarn", QL_ERR_UNSUPPORTED},
        {"\"model_type\": \"llama\", \"rope_scaling\": {\"rope_type\": \"llama3\"}", "factor", QL_ERR_FORMAT},
        {"\"model_type\": \"llama\", \"quantization_config\": {\"quant_method\": \"gptq\"}", "GPTQ", QL_ERR_UNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ql_model_config c;
        char text[1024];
        snprintf(text, sizeof text, "%s, %s", bad[i].members, strstr(bad[i].members, "vocab") ? "\"x\": 1" : good_config);
        ck_assert_fails(read_config(&c, text), bad[i].status, &err, bad[i].words);
    }
    ql_model_config c;
    ck_assert_fails(read_config(&c, "\"model_type\": \"llama\""), QL_ERR_FORMAT, &err, "vocab_size");
    ck_assert_fails(ql_model_config_read(&c, "/nonexistent/model", &err), QL_ERR_IO, &err, "/nonexistent/model");
}
END_TEST

START_TEST(module_names)
{
    unsigned modules;
    ck_assert_ok(ql_modules_parse(&modules, "all-linear", &err), &err);
    ck_assert_uint_eq(modules, QL_ALL_LINEAR);
    ck_assert_ok(ql_modules_parse(&modules, "v_proj,q_proj", &err), &err);
    ck_assert_uint_eq(modules, 1u << QL_Q | 1u << QL_V);
    ck_assert_fails(ql_modules_parse(&modules, "q_proj,c_attn", &err), QL_ERR_ARG, &err, "c_attn");
    ck_assert_fails(ql_modules_parse(&modules, "", &err), QL_ERR_ARG, &err, "all-linear");
}
END_TEST

START_TEST(sampling_follows_its_options)
{
    const float logits[5] = {1, 3, 3, 0, -2};
    ck_assert_int_eq(best_of(logits, 5), 1);
    size_t seen[5] = {0};
    ql_sampling s = {.temperature = 1, .top_p = 1, .seed = 7};
    const int draws = 20000;
    for (int i = 0; i < draws; i++) {
        int32_t token;
        ck_assert_ok(ql_sample_token(&token, logits, 5, &s, (size_t)i, &err), &err);
        seen[token]++;
    }
    double total = exp(1) + 2 * exp(3) + 1 + exp(-2);
    for (int i = 0; i < 5; i++) { /* within five standard deviations */
        double p = exp(logits[i]) / total;
        ck_assert_double_eq_tol((double)seen[i] / draws, p, 5 * sqrt(p * (1 - p) / draws));
    }
    s.top_k = 1;
    s.top_p = 0.99;
    int32_t token;
    ck_assert_ok(ql_sample_token(&token, logits, 5, &s, 3, &err), &err);
    ck_assert_int_eq(token, 1);
    const float broken[2] = {1, NAN};
    ck_assert_fails(ql_sample_token(&token, broken, 2, &s, 3, &err), QL_ERR_VALUE, &err, "token 1");
}
END_TEST

/* -log softmax(x W^T)[target] in double, with what the head dequantizes to. */
static double head_loss(const ql_model *model, const float *x, size_t target)
{
    size_t vocab = model->config.vocab_size, d = model->config.hidden_size;
    double sum = 0, wanted = 0;
    float *row = malloc(d * sizeof *row);
    for (size_t v = 0; v < vocab; v++) {
        double logit = 0;
        ql_weight_dequantize(model->head, v, 1, row, d);
        for (size_t i = 0; i < d; i++)
            logit += (double)x[i] * (double)row[i];
        sum += exp(logit);
        wanted = v == target ? logit : wanted;
    }
    free(row);
    return log(sum) - wanted;
}

/* _i: tied. The loss is that of the quantized head; the embedding stays as it was. */
START_TEST(a_quantized_head_is_the_one_in_use)
{
    const ql_model_config config = {
        .vocab_size = 97, .hidden_size = 72, .intermediate_size = 100, .layers = 1, .heads = 6, .kv_heads = 2,
        .head_dim = 12, .max_positions = 8, .rms_norm_eps = 1e-6, .rope_theta = 1e4, .tied = _i};
    static const size_t start[] = {0, 3};
    const ql_batch batch = {.tokens = 3, .sequences = 1, .ids = (const int32_t[]){5, 7, 96}, .start = start,
                            .target = (const int32_t[]){7, 96, 0}, .position = (const uint32_t[]){0, 1, 2}};
    ql_model *model;
    ql_pass pass = {0};
    ql_loss_sum loss;
    float kept[72], now[72];
    ck_assert_ok(ql_model_random(&model, &config, none, 3, workers, &err), &err);
    ql_weight_dequantize(model->embed, 5, 1, kept, 72);
    size_t dense = ql_model_memory(model).dense;
    ck_assert_ok(ql_model_quantize_head(model, none, workers, &err), &err);
    ck_assert_uint_eq(ql_model_memory(model).dense, dense);
    ck_assert_ok(ql_model_quantize_head(model, ql_format_default(), workers, &err), &err);
    ck_assert_uint_gt(ql_model_memory(model).codes, 97 * 72 / 2);
    ck_assert_uint_eq(ql_model_memory(model).dense, dense - (_i ? 0 : (97 * 72 * 2 + 63) / 64 * 64));
    ck_assert_fails(ql_model_quantize_head(model, ql_format_default(), workers, &err), QL_ERR_UNSUPPORTED, &err, "nf4");
    ql_weight_dequantize(model->embed, 5, 1, now, 72);
    ck_assert_mem_eq(kept, now, sizeof kept);
    ck_assert_ok(ql_pass_init(&pass, model, 3, 3, (ql_pass_kind){0}, workers, &err), &err);
    ck_assert_ok(ql_pass_run(&pass, &batch, 0, NULL, NULL, &loss, workers, &err), &err);
    double wanted = 0;
    for (size_t t = 0; t < 3; t++)
        wanted += head_loss(model, pass.out + t * 72, (size_t)batch.target[t]);
    ck_assert_double_eq_tol(loss.sum, wanted, 1e-5);
    ql_pass_free(&pass);
    ql_model_destroy(model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model");
    TCase *references = tcase_create("references");
    tcase_set_timeout(references, 120);
    tcase_add_checked_fixture(references, setup, teardown);
    tcase_add_test(references, stories_f32);
    tcase_add_test(references, stories_f16);
    tcase_add_test(references, llama3_with_scaled_rope);
    tcase_add_test(references, qwen3_with_head_norms);
    tcase_add_test(references, quantized_checkpoint_of_others_is_refused);
    tcase_add_loop_test(references, a_quantized_head_is_the_one_in_use, 0, 2);
    suite_add_tcase(suite, references);
    TCase *parts = tcase_create("parts");
    tcase_add_test(parts, configuration_of_each_architecture);
    tcase_add_test(parts, configuration_refused_by_name);
    tcase_add_test(parts, module_names);
    tcase_add_test(parts, sampling_follows_its_options);
    suite_add_tcase(suite, parts);
    return test_run(suite);
}
