/* Tokenizers in GGUF files: the same ids as the tokenizer.json of the same model, and files that must be refused. (The
 * reference texts of GGUF vocabularies are in test_text.c.) */
#include "gguf_case.h"
#include "io/json.h"
#include "text/tokenizer.h"
#include "text_support.h"

static ql_error err;

/* Both give the same ids for the first `most` bytes of a text, and for a list of odd ones. */
static void check_same(ql_tokenizer *a, ql_tokenizer *b, const char *corpus, size_t most)
{
    static const char *const odd[] = {"",
                                      " ",
                                      "  two",
                                      "don't WE'LL 12345 x1 \r\n\n\n  \xe2\x80\x83y",
                                      "\xe6\xbc\xa2\xe5\xad\x97 \xf0\x9f\x9a\x80",
                                      "a<|im_end|>b</s>c <tool_call>",
                                      "e\xcc\x81 \xc3\xa9",
                                      "\t\ttabs\x01"};
    size_t length;
    char *text = read_file(corpus, &length);
    for (size_t i = 0; i <= sizeof odd / sizeof *odd; i++) {
        ql_ids x = {0}, y = {0};
        bool last = i == sizeof odd / sizeof *odd;
        const char *from = last ? text : odd[i];
        size_t count = last ? (length < most ? length : most) : strlen(odd[i]);
        ck_assert_ok(ql_tokenizer_encode(a, from, count, QL_ENCODE_SPECIALS, &x, &err), &err);
        ck_assert_ok(ql_tokenizer_encode(b, from, count, QL_ENCODE_SPECIALS, &y, &err), &err);
        ck_assert_msg(x.count == y.count && (!x.count || !memcmp(x.data, y.data, x.count * sizeof *x.data)),
                      "\"%.60s\": %s\nand %s", from, spell_ids(x.data, x.count < 60 ? x.count : 60),
                      spell_ids(y.data, y.count < 60 ? y.count : 60));
        ql_ids_free(&x);
        ql_ids_free(&y);
    }
    free(text);
}

static void check_same_specials(const ql_tokenizer *a, const ql_tokenizer *b)
{
    ck_assert_uint_eq(ql_tokenizer_vocab(a), ql_tokenizer_vocab(b));
    ck_assert_int_eq(ql_tokenizer_bos(a), ql_tokenizer_bos(b));
    ck_assert_int_eq(ql_tokenizer_eos(a), ql_tokenizer_eos(b));
    ck_assert_int_eq(ql_tokenizer_adds_bos(a), ql_tokenizer_adds_bos(b));
}

START_TEST(sentencepiece_by_scores)
{
    ql_tokenizer *a = open_reference("models/gguf/stories260K-q4_0.gguf"), *b = open_reference("models/stories260K-hf");
    const char *corpus = test_data("corpora/tinystories-excerpt.txt");
    if (!a || !b || !corpus)
        return;
    check_same_specials(a, b);
    check_same(a, b, corpus, 100000);
    check_same(a, b, test_data("corpora/tinyshakespeare.txt"), 100000);
    ql_tokenizer_close(a);
    ql_tokenizer_close(b);
}
END_TEST

START_TEST(sentencepiece_of_llama_2)
{
    ql_tokenizer *a = open_reference("tokenizer-vectors/ggml-vocab-llama-spm.gguf"),
                 *b = open_reference("tokenizers/tinyllama");
    const char *corpus = test_data("corpora/tinyshakespeare.txt");
    if (!a || !b || !corpus)
        return;
    check_same_specials(a, b);
    check_same(a, b, corpus, 300000);
    ql_tokenizer_close(a);
    ql_tokenizer_close(b);
}
END_TEST

/* Tokens, types and merges of a tokenizer.json. */
static void add_byte_level(gguf_writer *w, const json_t *root)
{
    const json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab");
    const json_t *added = json_object_get(root, "added_tokens"), *merges = json_object_get(model, "merges");
    size_t count = json_object_size(vocab), i;
    const char *text, **tokens = calloc(count + json_array_size(added), sizeof *tokens);
    int32_t *types = calloc(count + json_array_size(added), sizeof *types);
    json_t *item;
    json_object_foreach((json_t *)vocab, text, item) tokens[json_integer_value(item)] = text;
    for (i = 0; i < count; i++)
        types[i] = 1;
    json_array_foreach(added, i, item)
    {
        size_t id = (size_t)json_integer_value(json_object_get(item, "id"));
        count = id >= count ? id + 1 : count;
        tokens[id] = json_string_value(json_object_get(item, "content"));
        types[id] = json_is_true(json_object_get(item, "special")) ? 3 : 4;
    }
    gguf_strings(w, "tokenizer.ggml.tokens", tokens, count);
    gguf_i32s(w, "tokenizer.ggml.token_type", types, count);
    tokens = realloc(tokens, (json_array_size(merges) + 1) * sizeof *tokens);
    json_array_foreach(merges, i, item) tokens[i] = json_string_value(item);
    gguf_strings(w, "tokenizer.ggml.merges", tokens, json_array_size(merges));
    free(tokens);
    free(types);
}

START_TEST(byte_level_of_qwen_2)
{
    ql_tokenizer *a, *b = open_reference("tokenizers/qwen2.5");
    const char *json = test_data("tokenizers/qwen2.5/tokenizer.json"),
               *corpus = test_data("corpora/tinyshakespeare.txt");
    if (!b || !json || !corpus)
        return;
    json_t *root;
    ck_assert_ok(ql_json_read(&root, json, &err), &err);
    gguf_writer w = {0};
    gguf_string(&w, "tokenizer.ggml.model", "gpt2");
    gguf_string(&w, "tokenizer.ggml.pre", "qwen2");
    add_byte_level(&w, root);
    gguf_u32(&w, "tokenizer.ggml.eos_token_id", (uint32_t)ql_tokenizer_eos(b));
    gguf_string(&w, "tokenizer.chat_template", b->chat_template);
    char *folder = test_folder();
    ck_assert_ok(ql_tokenizer_open(&a, gguf_finish(&w, folder, "t.gguf"), &err), &err);
    check_same_specials(a, b);
    ck_assert_str_eq(a->chat_template, b->chat_template);
    check_same(a, b, corpus, 300000);
    ql_tokenizer_close(a);
    ql_tokenizer_close(b);
    json_decref(root);
    test_folder_remove(folder);
}
END_TEST

/* ---- small vocabularies ---- */

/* Byte-level: a, b, c, 1, a space, "ab", " ab", "11", "111", "1111" and two special tokens. */
static void add_small(gguf_writer *w, const char *pre)
{
    static const char *const tokens[] = {"a",        "b",  "c",   "1",    "\u0120", "ab",
                                         "\u0120ab", "11", "111", "1111", "<end>",  "<turn>"};
    static const int32_t types[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 3};
    static const char *const merges[] = {"a b", "\u0120 ab", "1 1", "11 1", "111 1"};
    gguf_string(w, "tokenizer.ggml.model", "gpt2");
    gguf_string(w, "tokenizer.ggml.pre", pre);
    gguf_strings(w, "tokenizer.ggml.tokens", tokens, 12);
    gguf_i32s(w, "tokenizer.ggml.token_type", types, 12);
    gguf_strings(w, "tokenizer.ggml.merges", merges, 5);
    gguf_u32(w, "tokenizer.ggml.bos_token_id", 10);
    gguf_u32(w, "tokenizer.ggml.eos_token_id", 10);
    gguf_u32(w, "tokenizer.ggml.eot_token_id", 11);
}

static ql_status try_open(gguf_writer *w, ql_tokenizer **out)
{
    char *folder = test_folder();
    ql_tokenizer *t = NULL;
    ql_status status = ql_tokenizer_open(&t, gguf_finish(w, folder, "t.gguf"), &err);
    ck_assert(!status == !!t);
    if (out)
        *out = t;
    else
        ql_tokenizer_close(t);
    test_folder_remove(folder);
    return status;
}

/* How each pre-tokenizer cuts numbers, and whether it puts a first token in front. */
START_TEST(pre_tokenizers_by_name)
{
    static const struct {
        const char *pre, *ids;
    } known[] = {
        {"gpt-2", "0 6 7 7 10 5"},
        {"smollm", "0 6 3 3 3 3 10 5"},
        {"qwen2", "0 6 3 3 3 3 10 5"},
        {"llama-bpe", "10 0 6 8 3 10 5"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        ql_tokenizer *t;
        ql_ids ids = {0};
        size_t ends;
        gguf_writer w = {0};
        add_small(&w, known[i].pre);
        ck_assert_ok(try_open(&w, &t), &err);
        ck_assert_ok(ql_tokenizer_encode(t, "a ab1111<end>ab", 15, QL_ENCODE_SPECIALS, &ids, &err), &err);
        ck_assert_str_eq(spell_ids(ids.data, ids.count), known[i].ids);
        ck_assert(ql_tokenizer_is_end(t, 10) && ql_tokenizer_is_end(t, 11));
        ql_tokenizer_ends(t, &ends);
        ck_assert_uint_eq(ends, 2);
        ql_ids_free(&ids);
        ql_tokenizer_close(t);
    }
}
END_TEST

static void add_spm(gguf_writer *w)
{
    static const char *const tokens[] = {"<unk>", "<s>", "</s>", "<0x61>", "\xe2\x96\x81", "b",
                                         "c",     "bc",  "cb",   "bcb",    "<0x0A>"};
    static const float scores[] = {0, 0, 0, 0, -1, -2, -3, -5, -5, -4, 0};
    static const int32_t types[] = {2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 6};
    gguf_string(w, "tokenizer.ggml.model", "llama");
    gguf_strings(w, "tokenizer.ggml.tokens", tokens, 11);
    gguf_f32s(w, "tokenizer.ggml.scores", scores, 11);
    gguf_i32s(w, "tokenizer.ggml.token_type", types, 11);
}

/* "bc" and "cb" have one score: the leftmost goes first. "bcb" is better than both, once there is one of them. */
START_TEST(scores_decide_and_then_the_left)
{
    ql_tokenizer *t;
    gguf_writer w = {0};
    add_spm(&w);
    ck_assert_ok(try_open(&w, &t), &err);
    ck_assert(ql_tokenizer_adds_bos(t));
    assert_encodes(t, "cbc", QL_ENCODE_SPECIALS, "1 4 8 6");
    assert_encodes(t, "bcbc", QL_ENCODE_PLAIN, "4 9 6");
    assert_encodes(t, "bcbb", QL_ENCODE_PLAIN, "4 9 5");
    assert_encodes(t, "ab\n", QL_ENCODE_PLAIN, "4 3 5 10");
    assert_encodes(t, "b</s>", QL_ENCODE_PLAIN, "4 5 2");
    ql_tokenizer_close(t);
    add_spm(&w);
    gguf_bool(&w, "tokenizer.ggml.add_space_prefix", false);
    gguf_bool(&w, "tokenizer.ggml.add_bos_token", false);
    ck_assert_ok(try_open(&w, &t), &err);
    assert_encodes(t, "bc b", QL_ENCODE_SPECIALS, "7 4 5");
    ql_tokenizer_close(t);
}
END_TEST

START_TEST(what_is_refused)
{
    static const char *const needed[] = {"tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.pre",
                                         "tokenizer.ggml.merges"};
    for (size_t i = 0; i < 4; i++) {
        gguf_writer w = {.without = needed[i]};
        add_small(&w, "gpt-2");
        ck_assert_fails(try_open(&w, NULL), QL_ERR_FORMAT, &err, needed[i]);
    }
    gguf_writer w = {.without = "tokenizer.ggml.scores"};
    add_spm(&w);
    ck_assert_fails(try_open(&w, NULL), QL_ERR_FORMAT, &err, "scores");
    w.without = "tokenizer.ggml.scores";
    add_spm(&w);
    w.without = NULL;
    gguf_f32s(&w, "tokenizer.ggml.scores", (float[]){1, 2}, 2);
    ck_assert_fails(try_open(&w, NULL), QL_ERR_FORMAT, &err, "scores 2");
    w.without = "tokenizer.ggml.scores";
    add_spm(&w);
    w.without = NULL;
    gguf_f32s(&w, "tokenizer.ggml.scores", (float[]){0, 0, 0, 0, 0, 0, NAN, 0, 0, 0, 0}, 11);
    ck_assert_fails(try_open(&w, NULL), QL_ERR_FORMAT, &err, "token 6");
    add_small(&w, "deepseek-coder");
    ck_assert_fails(try_open(&w, NULL), QL_ERR_UNSUPPORTED, &err, "deepseek-coder");
    gguf_string(&w, "tokenizer.ggml.model", "t5");
    ck_assert_fails(try_open(&w, NULL), QL_ERR_UNSUPPORTED, &err, "t5");
    w.without = "tokenizer.ggml.eos_token_id";
    add_small(&w, "gpt-2");
    w.without = NULL;
    gguf_u32(&w, "tokenizer.ggml.eos_token_id", 12);
    ck_assert_fails(try_open(&w, NULL), QL_ERR_FORMAT, &err, "eos_token_id");
    w.without = "tokenizer.ggml.merges";
    add_small(&w, "gpt-2");
    w.without = NULL;
    gguf_strings(&w, "tokenizer.ggml.merges", (const char *[]){"a b", "a x"}, 2);
    ck_assert_fails(try_open(&w, NULL), QL_ERR_FORMAT, &err, "merges[1]");
    w.without = "tokenizer.ggml.tokens";
    add_spm(&w);
    w.without = NULL;
    gguf_strings(&w, "tokenizer.ggml.tokens",
                 (const char *[]){"a", "b", "c", "d", "e", "f", "g", "h", "i", "a", "\xff"}, 11);
    ck_assert_fails(try_open(&w, NULL), QL_ERR_FORMAT, &err, "[9]: \"a\" is there twice");
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("gguf");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, sentencepiece_by_scores);
    tcase_add_test(tcase, sentencepiece_of_llama_2);
    tcase_add_test(tcase, byte_level_of_qwen_2);
    tcase_add_test(tcase, pre_tokenizers_by_name);
    tcase_add_test(tcase, scores_decide_and_then_the_left);
    tcase_add_test(tcase, what_is_refused);
    Suite *suite = suite_create("text_gguf");
    suite_add_tcase(suite, tcase);
    return test_run(suite);
}
