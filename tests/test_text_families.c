/* Small tokenizers built as those of Gemma, Phi-3, Mistral and SmolLM3 are, against the ids and texts that Hugging Face's
 * tokenizers found (tools/make_tokenizer_references.py wrote tests/data/tokenizers). */
#include "io/json.h"
#include "text_support.h"

static const char *const families[] = {"gemma",      "phi3",         "mistral-v1", "mistral-v3",
                                       "mistral-nemo", "merged", "smollm3"};
enum { FAMILIES = sizeof families / sizeof *families };

static void check_ids(ql_tokenizer *t, const char *text, unsigned flags, const json_t *wanted)
{
    ql_ids ids = {0};
    ql_error err;
    ck_assert_ok(ql_tokenizer_encode(t, text, strlen(text), flags, &ids, &err), &err);
    ck_assert_msg(ids.count == json_array_size(wanted), "%s: %s", text, spell_ids(ids.data, ids.count));
    for (size_t i = 0; i < ids.count; i++)
        ck_assert_msg(ids.data[i] == json_integer_value(json_array_get(wanted, i)), "\"%s\", token %zu: %s", text, i,
                      spell_ids(ids.data, ids.count));
    ql_ids_free(&ids);
}

static void check_decoded(ql_tokenizer *t, const json_t *ids, const char *wanted)
{
    int32_t list[512];
    ql_text text = {0};
    ql_error err;
    size_t count = json_array_size(ids);
    ck_assert_uint_le(count, 512);
    for (size_t i = 0; i < count; i++)
        list[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    ck_assert_ok(ql_tokenizer_decode(t, list, count, QL_DECODE_PLAIN, &text, &err), &err);
    ck_assert_str_eq(text.data ? text.data : "", wanted);
    ql_text_free(&text);
}

START_TEST(agrees_with_hugging_face)
{
    char folder[512], path[600];
    const char *root = getenv("QLORA_SOURCE_ROOT");
    snprintf(folder, sizeof folder, "%s/tests/data/tokenizers/%s", root ? root : ".", families[_i]);
    snprintf(path, sizeof path, "%s/vectors.json", folder);
    ql_tokenizer *t;
    json_t *vectors;
    ql_error err;
    ck_assert_ok(ql_tokenizer_open(&t, folder, &err), &err);
    ck_assert_ok(ql_json_read(&vectors, path, &err), &err);
    ck_assert_uint_eq(json_array_size(vectors), 24);
    for (size_t i = 0; i < json_array_size(vectors); i++) {
        const json_t *v = json_array_get(vectors, i), *ids = json_object_get(v, "ids");
        const char *text = json_string_value(json_object_get(v, "text"));
        check_ids(t, text, QL_ENCODE_PLAIN, ids);
        check_ids(t, text, QL_ENCODE_SPECIALS, json_object_get(v, "with_specials"));
        check_decoded(t, ids, json_string_value(json_object_get(v, "decoded")));
    }
    json_decref(vectors);
    ql_tokenizer_close(t);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("text_families");
    TCase *tests = tcase_create("families");
    tcase_add_loop_test(tests, agrees_with_hugging_face, 0, FAMILIES);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
