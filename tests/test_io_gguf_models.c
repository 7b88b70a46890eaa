/* Real GGUF files, beside what other formats say of the same models. */
#include "support.h"

#include <string.h>

#include "io/gguf.h"
#include "io/json.h"

/* The same model as safetensors and as GGUF: norms and fp16 matrices agree to the bit. */
START_TEST(reads_stories_as_safetensors_do)
{
    const char *gguf_path = test_data("models/gguf/stories260K-q4_0.gguf");
    const char *wide_path = test_data("models/stories260K-hf"), *half_path = test_data("models/stories260K-hf-f16");
    if (!gguf_path || !wide_path || !half_path)
        return;
    ql_error err = {0};
    ql_tensors *tensors, *wide, *half;
    ck_assert_ok(ql_tensors_open(&tensors, gguf_path, &err), &err);
    ck_assert_ok(ql_tensors_open(&wide, wide_path, &err), &err);
    ck_assert_ok(ql_tensors_open(&half, half_path, &err), &err);
    ck_assert_uint_eq(ql_tensors_count(tensors), 47);
    ck_assert_str_eq(ql_tensors_find(tensors, "token_embd.weight")->dtype_name, "Q4_0");
    for (int layer = 0; layer < 5; layer++) {
        char name[96];
        const ql_tensor *ours, *theirs;
        snprintf(name, sizeof name, "blk.%d.attn_norm.weight", layer);
        ck_assert_ok(ql_tensors_need(&ours, tensors, name, 1, (size_t[]){64}, &err), &err);
        snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", layer);
        ck_assert_ok(ql_tensors_need(&theirs, wide, name, 1, (size_t[]){64}, &err), &err);
        ck_assert_mem_eq(ours->data, theirs->data, theirs->bytes);
        snprintf(name, sizeof name, "blk.%d.ffn_down.weight", layer);
        ck_assert_ok(ql_tensors_need(&ours, tensors, name, 2, (size_t[]){64, 172}, &err), &err);
        snprintf(name, sizeof name, "model.layers.%d.mlp.down_proj.weight", layer);
        ck_assert_ok(ql_tensors_need(&theirs, half, name, 2, (size_t[]){64, 172}, &err), &err);
        ck_assert_mem_eq(ours->data, theirs->data, theirs->bytes);
    }
    const ql_gguf *gguf = ql_tensors_gguf(tensors);
    int64_t value;
    ck_assert_ptr_null(ql_tensors_gguf(wide));
    ck_assert_ok(ql_gguf_get_int(gguf, "llama.block_count", 5, 5, &value, &err), &err);
    ck_assert_ok(ql_gguf_get_int(gguf, "llama.attention.head_count_kv", 4, 4, &value, &err), &err);
    ck_assert_ok(ql_gguf_get_int(gguf, "llama.embedding_length", 64, 64, &value, &err), &err);
    ql_tensors_close(tensors);
    ql_tensors_close(wide);
    ql_tensors_close(half);
}
END_TEST

/* The vocabulary in a GGUF and in tokenizer.json: the same pieces under the same numbers. */
START_TEST(reads_vocabularies)
{
    static const char *const files[][2] = {
        {"tokenizer-vectors/ggml-vocab-gpt-2.gguf", "tokenizers/gpt2/tokenizer.json"},
        {"tokenizer-vectors/ggml-vocab-llama-spm.gguf", "tokenizers/tinyllama/tokenizer.json"}};
    for (size_t i = 0; i < 2; i++) {
        const char *path = test_data(files[i][0]), *json_path = test_data(files[i][1]);
        if (!path || !json_path)
            continue;
        ql_error err = {0};
        ql_tensors *tensors;
        json_t *json;
        const ql_gguf_value *tokens;
        ck_assert_ok(ql_tensors_open(&tensors, path, &err), &err);
        ck_assert_ok(ql_json_read(&json, json_path, &err), &err);
        const json_t *vocab = json_object_get(json_object_get(json, "model"), "vocab");
        ck_assert_ok(ql_gguf_get_strings(ql_tensors_gguf(tensors), "tokenizer.ggml.tokens", &tokens, &err), &err);
        ck_assert_uint_eq(tokens->count, json_object_size(vocab));
        size_t at = 0, length;
        for (size_t id = 0; id < tokens->count; id++) {
            const char *text = ql_gguf_next_string(tokens, &at, &length);
            char piece[1024];
            snprintf(piece, sizeof piece, "%.*s", (int)length, text);
            ck_assert_int_eq(json_integer_value(json_object_get(vocab, piece)), (long long)id);
        }
        json_decref(json);
        ql_tensors_close(tensors);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("io_gguf_models");
    TCase *tests = tcase_create("gguf");
    tcase_set_timeout(tests, 300);
    tcase_add_test(tests, reads_stories_as_safetensors_do);
    tcase_add_test(tests, reads_vocabularies);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
