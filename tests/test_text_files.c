/* The files of a tokenizer: layouts, added tokens and templates that are honoured, and files that must be refused. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"
#include "text_support.h"

/* Opens a tokenizer.json of the small byte-level vocabulary and the given fields. */
static ql_status open_small(ql_tokenizer **t, const char *fields, const char *model, ql_error *err)
{
    char *folder = test_folder(), json[8192];
    snprintf(json, sizeof json, "{%s%s\"model\":{\"type\":\"BPE\",\"vocab\":{%s},%s}}", fields, *fields ? "," : "",
             BYTE_VOCAB, model);
    write_string(folder, "tokenizer.json", json);
    ql_status status = ql_tokenizer_open(t, folder, err);
    test_folder_remove(folder);
    return status;
}

#define BYTE_LEVEL                                                                                                     \
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":\"ByteLevel\"}"
#define SPLIT_DIGITS                                                                                                   \
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"          \
    "\"\\\\p{N}{1,3}|\\\\p{L}+|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false},"                                 \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},\"decoder\":{\"type\":\"ByteLevel\"}"

START_TEST(both_layouts_of_merges_agree)
{
    static const char *const layouts[] = {
        "\"merges\":[\"h e\",\"t h\",\"t he\",\"\\u0120 t\"]",
        "\"merges\":[[\"h\",\"e\"],[\"t\",\"h\"],[\"t\",\"he\"],[\"\\u0120\",\"t\"]]"};
    for (int i = 0; i < 2; i++) {
        ql_tokenizer *t;
        ql_error err = {0};
        ck_assert_ok(open_small(&t, BYTE_LEVEL, layouts[i], &err), &err);
        /* "h e" comes before "t h", so that "t he" makes "the"; and all of them before the space's. */
        assert_encodes(t, "the th he t", QL_ENCODE_PLAIN, "70 66 68 66 69 71");
        assert_encodes(t, " the", QL_ENCODE_PLAIN, "66 70");
        ql_tokenizer_close(t);
    }
}
END_TEST

START_TEST(ignored_merges_prefer_whole_words)
{
    ql_tokenizer *t;
    ql_error err = {0};
    ck_assert_ok(open_small(&t, SPLIT_DIGITS, "\"ignore_merges\":true,\"merges\":[\"t h\"]", &err), &err);
    assert_encodes(t, "the1234thex", QL_ENCODE_PLAIN, "70 16 17 18 19 68 44 63");
    ql_tokenizer_close(t);
}
END_TEST

START_TEST(templates_put_specials_around)
{
    ql_tokenizer *t;
    ql_error err = {0};
    const char *fields =
        "\"added_tokens\":[{\"id\":90,\"content\":\"<s>\",\"special\":true},{\"id\":91,\"content\":\"</"
        "s>\",\"special\":"
        "true}],\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":"
        "\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":"
        "\"A\","
        "\"type_id\":0}},{\"SpecialToken\":{\"id\":\"</"
        "s>\",\"type_id\":0}}],\"special_tokens\":{\"<s>\":{\"ids\":[90]},"
        "\"</s>\":{\"ids\":[91]}}}]}," BYTE_LEVEL;
    ck_assert_ok(open_small(&t, fields, "\"merges\":[]", &err), &err);
    assert_encodes(t, "ab", QL_ENCODE_SPECIALS, "90 40 41 91");
    assert_encodes(t, "ab", QL_ENCODE_PLAIN, "40 41");
    ck_assert_uint_eq(ql_tokenizer_vocab(t), 92);
    ql_tokenizer_close(t);
}
END_TEST

START_TEST(added_tokens_keep_their_manners)
{
    ql_tokenizer *t;
    ql_error err = {0};
    const char *fields =
        "\"added_tokens\":[{\"id\":80,\"content\":\"abc\",\"single_word\":true},{\"id\":81,\"content\":\"<l>"
        "\",\"lstrip\":true},{\"id\":82,\"content\":\"<r>\",\"rstrip\":true},{\"id\":83,\"content\":\"<r>>\"}]"
        "," BYTE_LEVEL;
    ck_assert_ok(open_small(&t, fields, "\"merges\":[]", &err), &err);
    assert_encodes(t, "xabc abc", QL_ENCODE_PLAIN, "63 40 41 42 66 80");
    assert_encodes(t, "a  <l> b", QL_ENCODE_PLAIN, "40 81 66 41");
    assert_encodes(t, "a <r>\n b", QL_ENCODE_PLAIN, "40 66 82 41");
    assert_encodes(t, "a<r>>b", QL_ENCODE_PLAIN, "40 83 41"); /* the longest */
    assert_encodes(t, "<r> <l>", QL_ENCODE_PLAIN, "82 81");   /* the space is spent once */
    ql_tokenizer_close(t);
}
END_TEST

START_TEST(unknown_components_are_named)
{
    static const struct {
        const char *fields, *model;
        ql_status status;
        const char *words;
    } cases[] = {
        {"\"normalizer\":{\"type\":\"Lowercase\"}," BYTE_LEVEL, "\"merges\":[]", QL_ERR_UNSUPPORTED,
         "normalizer Lowercase"},
        {"\"pre_tokenizer\":{\"type\":\"Whitespace\"}", "\"merges\":[]", QL_ERR_UNSUPPORTED,
         "pre_tokenizer Whitespace"},
        {"\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}",
         "\"merges\":[]", QL_ERR_UNSUPPORTED, "the pattern ("},
        {"\"post_processor\":{\"type\":\"BertProcessing\"}," BYTE_LEVEL, "\"merges\":[]", QL_ERR_UNSUPPORTED,
         "BertProcessing"},
        {"\"decoder\":{\"type\":\"WordPiece\"}", "\"merges\":[]", QL_ERR_UNSUPPORTED, "decoder WordPiece"},
        {BYTE_LEVEL, "\"dropout\":0.1,\"merges\":[]", QL_ERR_UNSUPPORTED, "dropout"},
        {BYTE_LEVEL, "\"merges\":[\"h e\",\"q z\"]", QL_ERR_FORMAT, "merges[1]"},
        {BYTE_LEVEL, "\"merges\":[\"h e\",7]", QL_ERR_FORMAT, "merges[1]"},
        {BYTE_LEVEL, "\"merges\":{}", QL_ERR_FORMAT, "merges"},
        {BYTE_LEVEL, "\"unk_token\":\"<unk>\",\"merges\":[]", QL_ERR_FORMAT, "<unk>"},
        {"\"added_tokens\":[{\"id\":3,\"content\":\"<s>\"}]," BYTE_LEVEL, "\"merges\":[]", QL_ERR_FORMAT, "id 3"},
        {"\"added_tokens\":[{\"id\":99999999999,\"content\":\"<s>\"}]," BYTE_LEVEL, "\"merges\":[]", QL_ERR_FORMAT,
         "added_tokens[0]"},
        {"\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\"}", "\"merges\":[]", QL_ERR_FORMAT,
         "Metaspace"},
        {"\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"~\"},\"content\":\"\"},\"added_tokens\":[{"
         "\"id\":"
         "90,\"content\":\"~\",\"normalized\":true}]," BYTE_LEVEL,
         "\"merges\":[]", QL_ERR_FORMAT, "leaves nothing"},
        {"\"added_tokens\":[{\"id\":90,\"content\":\"\"}]," BYTE_LEVEL, "\"merges\":[]", QL_ERR_FORMAT,
         "added_tokens[0]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) { /* the last three would match everywhere for ever */
        ql_tokenizer *t;
        ql_error err = {0};
        ck_assert_fails(open_small(&t, cases[i].fields, cases[i].model, &err), cases[i].status, &err, cases[i].words);
        ck_assert_ptr_null(t);
    }
}
END_TEST

START_TEST(other_files_are_refused)
{
    static const struct {
        const char *json;
        ql_status status;
        const char *words;
    } cases[] = {
        {"", QL_ERR_FORMAT, "tokenizer.json"},
        {"[]", QL_ERR_FORMAT, "tokenizer.json"},
        {"{\"model\":{\"type\":\"WordPiece\"}}", QL_ERR_UNSUPPORTED, "model.type WordPiece"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", QL_ERR_UNSUPPORTED, "model.type Unigram"},
        {"{\"model\":{\"vocab\":{},\"merges\":[]}}", QL_ERR_FORMAT, "vocab"},
        {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", QL_ERR_FORMAT, "vocab"},
        {"{\"model\":{\"vocab\":{\"a\":1e9},\"merges\":[]}}", QL_ERR_FORMAT, "vocab"},
        {"{\"model\":{\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}}", QL_ERR_FORMAT, "id 1"},
    };
    char *folder = test_folder();
    ql_tokenizer *t;
    ql_error err = {0};
    ck_assert_fails(ql_tokenizer_open(&t, folder, &err), QL_ERR_IO, &err, "tokenizer.json");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_string(folder, "tokenizer.json", cases[i].json);
        ck_assert_fails(ql_tokenizer_open(&t, folder, &err), cases[i].status, &err, cases[i].words);
        ck_assert_ptr_null(t);
    }
    test_folder_remove(folder);
}
END_TEST

START_TEST(characters_without_tokens)
{
    ql_tokenizer *t;
    ql_error err = {0};
    ql_ids ids = {0};
    ck_assert_ok(open_small(&t, BYTE_LEVEL, "\"merges\":[]", &err), &err);
    ck_assert_fails(ql_tokenizer_encode(t, "a\xc3\xa9", 3, 0, &ids, &err), QL_ERR_UNSUPPORTED, &err, "C3");
    ck_assert_uint_eq(ids.count, 0);
    ql_tokenizer_close(t);
    ck_assert_ok(open_small(&t, "", "\"unk_token\":\"@\",\"fuse_unk\":true,\"merges\":[]", &err), &err);
    assert_encodes(t, "a\xc3\xa9\xc3\xa9z", QL_ENCODE_PLAIN, "40 31 65");
    ql_tokenizer_close(t);
    ck_assert_ok(open_small(&t, "", "\"unk_token\":\"@\",\"merges\":[]", &err), &err);
    assert_encodes(t, "a\xc3\xa9\xc3\xa9z", QL_ENCODE_PLAIN, "40 31 31 65");
    ql_tokenizer_close(t);
    ql_ids_free(&ids);
}
END_TEST

/* A token may go on over a space mark: then the whole text is one word. */
START_TEST(marks_inside_tokens_are_honoured)
{
    char *folder = test_folder();
    ql_tokenizer *t;
    ql_error err = {0};
    write_string(
        folder, "tokenizer.json",
        "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"},\"decoder\":{"
        "\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":\"never\"},\"model\":{\"vocab\":{"
        "\"a\":0,\"b\":1,\"\\u2581\":2,\"a\\u2581\":3,\"\\u2581b\":4},\"merges\":[\"a \\u2581\",\"\\u2581 b\"]}}");
    ck_assert_ok(ql_tokenizer_open(&t, folder, &err), &err);
    assert_encodes(t, "a b", QL_ENCODE_PLAIN, "3 1");
    assert_encodes(t, "b b", QL_ENCODE_PLAIN, "1 4");
    assert_decodes(t, (const int32_t[]){3, 1}, 2, QL_DECODE_PLAIN, "a b");
    ql_tokenizer_close(t);
    test_folder_remove(folder);
}
END_TEST

/* Which file speaks of a special token, and which one is asked first. */
START_TEST(specials_come_from_the_files_beside)
{
    char *folder = test_folder(), json[8192];
    ql_tokenizer *t;
    ql_error err = {0};
    snprintf(json, sizeof json, "{" BYTE_LEVEL ",\"model\":{\"vocab\":{%s},\"merges\":[]}}", BYTE_VOCAB);
    write_string(folder, "tokenizer.json", json);
    write_string(folder, "config.json", "{\"bos_token_id\":40,\"eos_token_id\":[41,42],\"pad_token_id\":null}");
    ck_assert_ok(ql_tokenizer_open(&t, folder, &err), &err);
    ck_assert_int_eq(ql_tokenizer_bos(t), 40);
    ck_assert_int_eq(ql_tokenizer_eos(t), 41);
    ck_assert(ql_tokenizer_is_end(t, 41) && ql_tokenizer_is_end(t, 42) && !ql_tokenizer_is_end(t, 43));
    ck_assert(!ql_tokenizer_adds_bos(t));
    ql_tokenizer_close(t);
    write_string(
        folder, "tokenizer_config.json",
        "{\"bos_token\":null,\"eos_token\":{\"content\":\"the\"},\"add_bos_token\":true,\"add_eos_token\":true}");
    ck_assert_ok(ql_tokenizer_open(&t, folder, &err), &err);
    ck_assert_int_eq(ql_tokenizer_bos(t), -1);
    ck_assert_int_eq(ql_tokenizer_eos(t), 70);
    assert_encodes(t, "a", QL_ENCODE_SPECIALS, "40 70");
    ql_tokenizer_close(t);
    write_string(folder, "tokenizer_config.json", "[1]");
    ck_assert_fails(ql_tokenizer_open(&t, folder, &err), QL_ERR_FORMAT, &err, "tokenizer_config.json");
    test_folder_remove(folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("text_files");
    TCase *tests = tcase_create("files");
    tcase_set_timeout(tests, 300);
    tcase_add_test(tests, both_layouts_of_merges_agree);
    tcase_add_test(tests, ignored_merges_prefer_whole_words);
    tcase_add_test(tests, templates_put_specials_around);
    tcase_add_test(tests, added_tokens_keep_their_manners);
    tcase_add_test(tests, unknown_components_are_named);
    tcase_add_test(tests, other_files_are_refused);
    tcase_add_test(tests, characters_without_tokens);
    tcase_add_test(tests, marks_inside_tokens_are_honoured);
    tcase_add_test(tests, specials_come_from_the_files_beside);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
