/* GGUF files that are no model: what is missing, cannot be, does not fit or was cut is refused by name. */
#include <stdio.h>
#include <string.h>

#include "gguf_case.h"
#include "model_support.h"

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
    Suite *suite = suite_create("model_gguf_refused");
    TCase *tcase = tcase_create("refused");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, what_is_missing_is_named);
    tcase_add_test(tcase, metadata_that_cannot_be_is_refused);
    tcase_add_test(tcase, tensors_that_do_not_fit_are_refused);
    tcase_add_test(tcase, a_file_cut_short_is_refused);
    suite_add_tcase(suite, tcase);
    return test_run(suite);
}
