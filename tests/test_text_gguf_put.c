/* Tokenizers of Hugging Face folders written into GGUF files: what llama.cpp's own converter wrote for the same models,
 * and the same ids when they are read back. */
#include "text/gguf_put.h"

#include "io/gguf.h"
#include "qlora/io.h"
#include "text/gguf.h"
#include "text_support.h"

static ql_error err;

static const char *write_gguf(const char *folder, const char *model, size_t rows)
{
    static char path[1200];
    ql_gguf_meta meta = {0};
    snprintf(path, sizeof path, "%s/t.gguf", folder);
    ck_assert_ok(ql_tokenizer_put_gguf(&meta, model, rows, &err), &err);
    ck_assert_ok(ql_gguf_write(path, &meta, NULL, 0, NULL, NULL, &err), &err);
    ql_gguf_meta_free(&meta);
    return path;
}

static const ql_gguf_value *value_of(const ql_tensors *file, const char *key)
{
    const ql_gguf_value *value = ql_gguf_find(ql_tensors_gguf(file), key);
    ck_assert_msg(value != NULL, "%s is missing", key);
    return value;
}

static void check_same_strings(const ql_tensors *a, const ql_tensors *b, const char *key)
{
    const ql_gguf_value *x = value_of(a, key), *y = value_of(b, key);
    size_t at_x = 0, at_y = 0, length_x, length_y;
    ck_assert_uint_eq(x->count, y->count);
    for (size_t i = 0; i < x->count; i++) {
        const char *s = ql_gguf_next_string(x, &at_x, &length_x), *t = ql_gguf_next_string(y, &at_y, &length_y);
        ck_assert_msg(length_x == length_y && memcmp(s, t, length_x) == 0, "%s[%zu]: \"%.*s\", wanted \"%.*s\"", key, i,
                      (int)length_x, s, (int)length_y, t);
    }
}

static void check_same_numbers(const ql_tensors *a, const ql_tensors *b, const char *key)
{
    const ql_gguf_value *x = value_of(a, key), *y = value_of(b, key);
    ck_assert_uint_eq(x->count, y->count);
    for (size_t i = 0; i < x->count; i++)
        ck_assert_msg(ql_gguf_number_at(x, i) == ql_gguf_number_at(y, i), "%s[%zu]: %g, wanted %g", key, i,
                      ql_gguf_number_at(x, i), ql_gguf_number_at(y, i));
}

static void check_text(const ql_tensors *file, const char *key, const char *wanted)
{
    const char *text;
    size_t length;
    ck_assert_ok(ql_gguf_get_string(ql_tensors_gguf(file), key, &text, &length, &err), &err);
    ck_assert_msg(length == strlen(wanted) && memcmp(text, wanted, length) == 0, "%s is %.*s", key, (int)length, text);
}

/* Both give the same ids for 200 kB of a text. */
static void check_same_ids(const char *path, const char *model, const char *corpus)
{
    ql_tokenizer *a, *b;
    ql_ids x = {0}, y = {0};
    size_t length;
    char *text = read_file(corpus, &length);
    ck_assert_ok(ql_tokenizer_open(&a, path, &err), &err);
    ck_assert_ok(ql_tokenizer_open(&b, model, &err), &err);
    length = length < 200000 ? length : 200000;
    ck_assert_ok(ql_tokenizer_encode(a, text, length, QL_ENCODE_SPECIALS, &x, &err), &err);
    ck_assert_ok(ql_tokenizer_encode(b, text, length, QL_ENCODE_SPECIALS, &y, &err), &err);
    ck_assert_uint_eq(x.count, y.count);
    ck_assert_mem_eq(x.data, y.data, x.count * sizeof *x.data);
    ck_assert_int_eq(ql_tokenizer_bos(a), ql_tokenizer_bos(b));
    ck_assert_int_eq(ql_tokenizer_eos(a), ql_tokenizer_eos(b));
    ck_assert_int_eq(ql_tokenizer_pad(a), ql_tokenizer_pad(b));
    ck_assert_int_eq(ql_tokenizer_adds_bos(a), ql_tokenizer_adds_bos(b));
    ck_assert_int_eq(a->chat_template != NULL, b->chat_template != NULL);
    if (a->chat_template)
        ck_assert_str_eq(a->chat_template, b->chat_template);
    ql_ids_free(&x);
    ql_ids_free(&y);
    ql_tokenizer_close(a);
    ql_tokenizer_close(b);
    free(text);
}

static const struct {
    const char *model, *reference, *kind, *pre; /* reference NULL: none */
    size_t rows;
} cases[] = {
    {"tokenizers/tinyllama", "tokenizer-vectors/ggml-vocab-llama-spm.gguf", "llama", "default", 32000},
    {"models/stories260K-hf", "models/gguf/stories260K-q8_0.gguf", "llama", "default", 512},
    {"tokenizers/gpt2", "tokenizer-vectors/ggml-vocab-gpt-2.gguf", "gpt2", "gpt-2", 50257},
    {"tokenizers/qwen2.5", NULL, "gpt2", "qwen2", 151936},
};

/* Scores differ by what is added to all: their order is what counts. */
static void check_order(const ql_tensors *a, const ql_tensors *b)
{
    const ql_gguf_value *x = value_of(a, "tokenizer.ggml.scores"), *y = value_of(b, "tokenizer.ggml.scores");
    const ql_gguf_value *types = value_of(b, "tokenizer.ggml.token_type");
    ck_assert_uint_eq(x->count, y->count);
    for (size_t i = 1; i < x->count; i++) {
        double ours = ql_gguf_number_at(x, i) - ql_gguf_number_at(x, i - 1);
        double theirs = ql_gguf_number_at(y, i) - ql_gguf_number_at(y, i - 1);
        bool normal =
            ql_gguf_number_at(types, i) == QL_TOKEN_NORMAL && ql_gguf_number_at(types, i - 1) == QL_TOKEN_NORMAL;
        ck_assert_msg(!normal || ours == 0 || (ours < 0) == (theirs < 0), "scores %zu and %zu", i - 1, i);
    }
}

START_TEST(as_the_reference_has_it)
{
    const char *model = test_data(cases[_i].model), *corpus = test_data("corpora/tinyshakespeare.txt");
    const char *reference = cases[_i].reference ? test_data(cases[_i].reference) : NULL;
    if (!model || !corpus || (cases[_i].reference && !reference))
        return;
    char *folder = test_folder();
    const char *path = write_gguf(folder, model, cases[_i].rows);
    ql_tensors *ours, *theirs;
    ck_assert_ok(ql_tensors_open(&ours, path, &err), &err);
    check_text(ours, "tokenizer.ggml.model", cases[_i].kind);
    check_text(ours, "tokenizer.ggml.pre", cases[_i].pre);
    ck_assert_uint_eq(value_of(ours, "tokenizer.ggml.tokens")->count, cases[_i].rows);
    if (reference) {
        ck_assert_ok(ql_tensors_open(&theirs, reference, &err), &err);
        check_same_strings(ours, theirs, "tokenizer.ggml.tokens");
        check_same_numbers(ours, theirs, "tokenizer.ggml.token_type");
        if (strcmp(cases[_i].kind, "gpt2") == 0)
            check_same_strings(ours, theirs, "tokenizer.ggml.merges");
        else
            check_order(ours, theirs);
        ql_tensors_close(theirs);
    }
    ql_tensors_close(ours);
    check_same_ids(path, model, corpus);
    test_folder_remove(folder);
}
END_TEST

/* ---- small vocabularies ---- */

/* Byte-level, with a pre-tokenizer to be filled in; token 5 is missing. */
static const char small[] =
    "{\"added_tokens\": [{\"id\": 6, \"content\": \"<end>\", \"special\": true}, "
    "{\"id\": 7, \"content\": \"<tool>\", \"special\": false}], \"pre_tokenizer\": %s, \"decoder\": {\"type\": "
    "\"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"ignore_merges\": %s, \"vocab\": {\"a\": 0, \"b\": 1, \"1\": 2, "
    "\"11\": 3, \"ab\": 4}, \"merges\": [\"1 1\", \"a b\"]}}";
static const char byte_level[] = "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}";
static const char smollm[] =
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", \"individual_digits\": "
    "true}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}]}";
static const char llama_3[] =
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": "
    "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+"
    "[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}, \"behavior\": \"Isolated\", \"invert\": false}, "
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": false}]}";

static char *small_folder(const char *steps, bool ignore_merges)
{
    char text[4096], *folder = test_folder();
    snprintf(text, sizeof text, small, steps, ignore_merges ? "true" : "false");
    write_string(folder, "tokenizer.json", text);
    write_string(folder, "tokenizer_config.json", "{\"eos_token\": \"<end>\", \"chat_template\": \"{{ x }}\"}");
    return folder;
}

START_TEST(kinds_are_told_by_how_they_split)
{
    const struct {
        const char *steps, *pre;
        bool ignore_merges;
    } kinds[] = {{byte_level, "gpt-2", false}, {smollm, "smollm", false}, {llama_3, "llama-bpe", true}};
    for (size_t i = 0; i < 3; i++) {
        char *folder = small_folder(kinds[i].steps, kinds[i].ignore_merges);
        ql_tensors *file;
        ck_assert_ok(ql_tensors_open(&file, write_gguf(folder, folder, 10), &err), &err);
        check_text(file, "tokenizer.ggml.pre", kinds[i].pre);
        check_text(file, "tokenizer.chat_template", "{{ x }}");
        static const int types[10] = {1, 1, 1, 1, 1, 5, 3, 4, 5, 5}; /* unused: 5, and those beyond the vocabulary */
        for (size_t id = 0; id < 10; id++)
            ck_assert_double_eq(ql_gguf_number_at(value_of(file, "tokenizer.ggml.token_type"), id), types[id]);
        int64_t eos;
        ck_assert_ok(ql_gguf_get_int(ql_tensors_gguf(file), "tokenizer.ggml.eos_token_id", 0, 9, &eos, &err), &err);
        ck_assert_int_eq(eos, 6);
        ck_assert_ptr_null(ql_gguf_find(ql_tensors_gguf(file), "tokenizer.ggml.bos_token_id"));
        ql_tensors_close(file);
        test_folder_remove(folder);
    }
}
END_TEST

/* SentencePiece: "ab" and "abc" follow from scores with these merges, and not with the others. */
static const char fallback[] =
    "{\"added_tokens\": [{\"id\": 0, \"content\": \"<unk>\", \"special\": true}], \"normalizer\": {\"type\": "
    "\"Prepend\", \"prepend\": \"_\"}, \"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"unk_token\": "
    "\"<unk>\", "
    "\"vocab\": {\"<unk>\": 0, \"a\": 1, \"b\": 2, \"c\": 3, \"ab\": 4, \"bc\": 5, \"abc\": 6, \"<0x41>\": 7}, "
    "\"merges\": [%s]}}";

START_TEST(what_is_refused)
{
    ql_gguf_meta meta = {0};
    char *folder = small_folder(llama_3, false), text[1024];
    ck_assert_fails(ql_tokenizer_put_gguf(&meta, folder, 10, &err), QL_ERR_UNSUPPORTED, &err, "pre-tokenizer");
    test_folder_remove(folder);
    folder = small_folder(byte_level, false);
    ck_assert_fails(ql_tokenizer_put_gguf(&meta, folder, 7, &err), QL_ERR_FORMAT, &err, "8 tokens");
    const struct {
        const char *merges, *message;
    } lists[] = {{"\"a b\", \"b c\", \"ab c\", \"a bc\"", NULL},
                 {"\"a b\", \"b c\", \"ab c\"", "token 6"},                /* scores would merge a bc too */
                 {"\"ab c\", \"a b\", \"a bc\", \"b c\"", "token 6"}}; /* two places among the others */
    for (size_t i = 0; i < 3; i++) {
        snprintf(text, sizeof text, fallback, lists[i].merges);
        write_string(folder, "tokenizer.json", text);
        write_string(folder, "tokenizer_config.json", "{}");
        if (lists[i].message)
            ck_assert_fails(ql_tokenizer_put_gguf(&meta, folder, 8, &err), QL_ERR_UNSUPPORTED, &err, lists[i].message);
        else
            ck_assert_ok(ql_tokenizer_put_gguf(&meta, folder, 8, &err), &err);
    }
    ql_gguf_meta_free(&meta);
    test_folder_remove(folder);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("gguf_put");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, as_the_reference_has_it, 0, sizeof cases / sizeof *cases);
    tcase_add_test(tcase, kinds_are_told_by_how_they_split);
    tcase_add_test(tcase, what_is_refused);
    Suite *suite = suite_create("text_gguf_put");
    suite_add_tcase(suite, tcase);
    return test_run(suite);
}
