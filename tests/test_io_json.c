/* JSON in: what the readers refuse and how they say it. */
#include "support.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "io/json.h"
#include "qlora/io.h"

static ql_status parse(const char *text, size_t length, ql_error *err)
{
    json_t *value;
    ql_status status = ql_json_parse(&value, "t.json", text, length, err);
    ck_assert((status == QL_OK) == (value != NULL));
    json_decref(value);
    return status;
}

START_TEST(refuses_what_is_no_json)
{
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"", "empty"},
        {" \n\t", "empty"},
        {"{\"a\": 1,\n \"a\": 2}", "t.json:2:4: duplicate object key"},
        {"{\"a\": 1} x", "end of file expected"},
        {"{\"a\": 1}{", "end of file expected"},
        {"[1, 2", "t.json:1:5: ']' expected"},
        {"{\"a\" 1}", "':' expected"},
        {"[01]", "t.json:1"},
        {"[1e999]", "real number overflow"},
        {"[NaN]", "invalid token"},
        {"[\"\\ud800\"]", "invalid Unicode"},
        {"[\"\\u12g4\"]", "invalid escape"},
        {"[\"\x80\"]", "UTF-8"},
        {"[\"\xc0\xaf\"]", "UTF-8"},
        {"[\"\xed\xa0\x80\"]", "UTF-8"},
        {"[\"a\nb\"]", "newline"},
        {"[\"abc", "t.json:1"},
        {"\xff\xfe{", "UTF-8"},
        {"'a'", "invalid token"},
        {"{\"a\\u0000b\": 1}", "NUL"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ql_error err = {0};
        ck_assert_fails(parse(cases[i].text, strlen(cases[i].text), &err), QL_ERR_FORMAT, &err, cases[i].words);
        ck_assert_ptr_null(strchr(err.message, '\n'));
    }
}
END_TEST

START_TEST(refuses_deep_nesting)
{
    size_t depth = 200000;
    char *text = malloc(depth * 5);
    ql_error err = {0};
    memset(text, '[', depth);
    ck_assert_fails(parse(text, depth, &err), QL_ERR_FORMAT, &err, "maximum parsing depth");
    for (size_t i = 0; i < depth; i++)
        memcpy(text + 5 * i, "{\"a\":", 5);
    ck_assert_fails(parse(text, depth * 5, &err), QL_ERR_FORMAT, &err, "maximum parsing depth");
    free(text);
}
END_TEST

START_TEST(accepts_what_people_write)
{
    ql_error err = {0};
    json_t *value;
    ck_assert_ok(parse("\xef\xbb\xbf{}", 5, &err), &err);
    ck_assert_ok(parse("null", 4, &err), &err);
    /* tokenizer_config.json as the transformers library writes it */
    const char *huge = "{\"model_max_length\": 1000000000000000019884624838656, \"n\": 7}";
    ck_assert_ok(ql_json_parse(&value, "t.json", huge, strlen(huge), &err), &err);
    ql_json_at root = ql_json_root("t.json", value);
    int64_t n = 0;
    ck_assert_ok(ql_json_get_int(&root, "n", QL_REQUIRED, 0, 9, &n, &err), &err);
    ck_assert_int_eq(n, 7);
    ck_assert_fails(ql_json_get_int(&root, "model_max_length", QL_REQUIRED, 0, INT64_MAX, &n, &err), QL_ERR_FORMAT,
                    &err, "model_max_length: expected an integer from 0");
    json_decref(value);
}
END_TEST

START_TEST(files_that_cannot_be_read)
{
    char *folder = test_folder();
    ql_error err = {0};
    json_t *value;
    char name[1024];
    snprintf(name, sizeof name, "%s/missing.json", folder);
    ck_assert_fails(ql_json_read(&value, name, &err), QL_ERR_IO, &err, "missing.json: No such file");
    ck_assert_fails(ql_json_read(&value, folder, &err), QL_ERR_IO, &err, "Is a directory");
    ck_assert_fails(ql_json_read(&value, "/dev/zero", &err), QL_ERR_IO, &err, "/dev/zero: not a regular file");
    const char *path = test_file(folder, "empty.json", "", 0);
    ck_assert_fails(ql_json_read(&value, path, &err), QL_ERR_FORMAT, &err, "empty.json: the file is empty");
    ck_assert_ptr_null(value);
    test_folder_remove(folder);
}
END_TEST

START_TEST(getters_say_where)
{
    const char *text =
        "{\"hidden_size\": \"abc\", \"neg\": -1, \"real\": 2.5, \"whole\": 64.0, \"none\": null, \"t\": true,"
        " \"sub\": {\"list\": [1, {\"x\": \"y\"}]}, \"nul\": \"a\\u0000b\", \"text\": \"hi\"}";
    json_t *value;
    ql_error err = {0};
    ck_assert_ok(ql_json_parse(&value, "c.json", text, strlen(text), &err), &err);
    ql_json_at root = ql_json_root("c.json", value), sub, list, item;
    int64_t n = 5;
    size_t size = 5, length;
    double x = 5;
    bool flag = false;
    const char *string = "before";

    ck_assert_fails(ql_json_get_size(&root, "hidden_size", QL_REQUIRED, 1, 4096, &size, &err), QL_ERR_FORMAT, &err,
                    "c.json: hidden_size: expected an integer from 1 to 4096, got \"abc\"");
    ck_assert_fails(ql_json_get_size(&root, "neg", QL_OPTIONAL, 0, 9, &size, &err), QL_ERR_FORMAT, &err, "got -1");
    ck_assert_fails(ql_json_get_int(&root, "real", QL_OPTIONAL, 0, 9, &n, &err), QL_ERR_FORMAT, &err, "got 2.5");
    ck_assert_fails(ql_json_get_int(&root, "gone", QL_REQUIRED, 0, 9, &n, &err), QL_ERR_FORMAT, &err,
                    "c.json: gone is missing");
    ck_assert_fails(ql_json_get_int(&root, "none", QL_REQUIRED, 0, 9, &n, &err), QL_ERR_FORMAT, &err, "got null");
    ck_assert_fails(ql_json_get_double(&root, "t", QL_REQUIRED, 0, 9, &x, &err), QL_ERR_FORMAT, &err, "got true");
    ck_assert_fails(ql_json_get_double(&root, "neg", QL_REQUIRED, 0, 9, &x, &err), QL_ERR_FORMAT, &err, "got -1");
    ck_assert_fails(ql_json_get_bool(&root, "neg", QL_REQUIRED, &flag, &err), QL_ERR_FORMAT, &err, "true or false");
    ck_assert_fails(ql_json_get_string(&root, "nul", QL_REQUIRED, &string, NULL, &err), QL_ERR_FORMAT, &err, "NUL");
    ck_assert_fails(ql_json_get_object(&root, "t", QL_REQUIRED, &sub, &err), QL_ERR_FORMAT, &err, "an object");
    ck_assert_ptr_null(sub.value);
    ck_assert_fails(ql_json_get_size(&root, "whole", QL_OPTIONAL, 0, 63, &size, &err), QL_ERR_FORMAT, &err, "to 63");
    ck_assert_fails(ql_json_get_int(&root, "whole", QL_OPTIONAL, 65, 99, &n, &err), QL_ERR_FORMAT, &err, "from 65");
    ck_assert_fails(ql_json_get_double(&root, "whole", QL_OPTIONAL, 0, 63.5, &x, &err), QL_ERR_FORMAT, &err, "63.5");
    ck_assert_ok(ql_json_get_int(&root, "gone", QL_OPTIONAL, 0, 9, &n, &err), &err);
    ck_assert_ok(ql_json_get_int(&root, "none", QL_OPTIONAL, 0, 9, &n, &err), &err);
    ck_assert_ok(ql_json_get_size(&root, "none", QL_OPTIONAL, 0, 9, &size, &err), &err);
    ck_assert_ok(ql_json_get_double(&root, "gone", QL_OPTIONAL, 0, 9, &x, &err), &err);
    ck_assert_ok(ql_json_get_string(&root, "gone", QL_OPTIONAL, &string, NULL, &err), &err);
    ck_assert(n == 5 && size == 5 && x == 5 && strcmp(string, "before") == 0);
    ck_assert_ptr_null(ql_json_member(&root, "gone"));
    ck_assert(json_is_null(ql_json_member(&root, "none")));

    ck_assert_ok(ql_json_get_size(&root, "whole", QL_REQUIRED, 1, 64, &size, &err), &err);
    ck_assert_ok(ql_json_get_double(&root, "neg", QL_REQUIRED, -1, 0, &x, &err), &err);
    ck_assert_ok(ql_json_get_bool(&root, "t", QL_REQUIRED, &flag, &err), &err);
    ck_assert_ok(ql_json_get_string(&root, "text", QL_REQUIRED, &string, NULL, &err), &err);
    ck_assert(size == 64 && x == -1 && flag && strcmp(string, "hi") == 0);
    ck_assert_ok(ql_json_get_string(&root, "nul", QL_REQUIRED, &string, &length, &err), &err);
    ck_assert(length == 3 && memcmp(string, "a\0b", 3) == 0);

    ck_assert_ok(ql_json_get_object(&root, "sub", QL_REQUIRED, &sub, &err), &err);
    ck_assert_ok(ql_json_get_array(&sub, "list", QL_REQUIRED, &list, &err), &err);
    ck_assert_ok(ql_json_get_size_at(&list, 0, 0, 9, &size, &err), &err);
    ck_assert_uint_eq(size, 1);
    item = ql_json_element(&list, 1);
    ck_assert_fails(ql_json_get_int(&item, "x", QL_REQUIRED, 0, 9, &n, &err), QL_ERR_FORMAT, &err,
                    "c.json: sub.list[1].x: expected an integer from 0 to 9, got \"y\"");
    ck_assert_fails(ql_json_get_size_at(&list, 2, 0, 9, &size, &err), QL_ERR_FORMAT, &err, "list[2] is missing");
    ck_assert_fails(ql_json_get_int(&list, "x", QL_OPTIONAL, 0, 9, &n, &err), QL_ERR_FORMAT, &err, "an object");
    json_decref(value);
}
END_TEST

START_TEST(lines_with_numbers)
{
    char *folder = test_folder();
    ql_error err = {0};
    ql_jsonl lines;
    json_t *value;
    const char *text = "\xef\xbb\xbf{\"a\": 1}\r\n\r\n  \n{\"a\": \"two\"}\n[3]";
    const char *path = test_file(folder, "d.jsonl", text, strlen(text));
    ck_assert_ok(ql_jsonl_open(&lines, path, &err), &err);
    ck_assert_ok(ql_jsonl_next(&lines, &value, &err), &err);
    ck_assert_int_eq(json_integer_value(json_object_get(value, "a")), 1);
    ck_assert_uint_eq(lines.line, 1);
    json_decref(value);
    ck_assert_ok(ql_jsonl_next(&lines, &value, &err), &err);
    ck_assert_uint_eq(lines.line, 4);
    ql_json_at root = ql_jsonl_root(&lines, value);
    int64_t n;
    ck_assert_fails(ql_json_get_int(&root, "a", QL_REQUIRED, 0, 9, &n, &err), QL_ERR_FORMAT, &err,
                    "d.jsonl:4: a: expected an integer");
    json_decref(value);
    ck_assert_ok(ql_jsonl_next(&lines, &value, &err), &err);
    ck_assert(json_is_array(value) && lines.line == 5);
    json_decref(value);
    ck_assert_ok(ql_jsonl_next(&lines, &value, &err), &err);
    ck_assert_ptr_null(value);
    ql_jsonl_close(&lines);
    test_folder_remove(folder);
}
END_TEST

START_TEST(lines_that_are_wrong)
{
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"{}\n{\"text\": \"a\xff\"}\n", "d.jsonl:2:"},
        {"{}\n\n{\"a\": 1} {}", "d.jsonl:3:10: end of file expected"},
        {"{}\n{\"a\":\n1}", "d.jsonl:2:"},
        {"text\n", "d.jsonl:1:"},
        {"{\"a\": 1, \"a\": 1}", "duplicate"},
        {"[[[", "d.jsonl:1:"},
    };
    char *folder = test_folder();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ql_error err = {0};
        ql_jsonl lines;
        json_t *value;
        const char *path = test_file(folder, "d.jsonl", cases[i].text, strlen(cases[i].text));
        ck_assert_ok(ql_jsonl_open(&lines, path, &err), &err);
        ql_status status;
        while ((status = ql_jsonl_next(&lines, &value, &err)) == QL_OK && value)
            json_decref(value);
        ck_assert_fails(status, QL_ERR_FORMAT, &err, cases[i].words);
        ck_assert_ptr_null(value);
        ql_jsonl_close(&lines);
    }
    ql_error err = {0};
    ql_jsonl lines;
    json_t *value;
    ck_assert_ok(ql_jsonl_open(&lines, test_file(folder, "empty.jsonl", "", 0), &err), &err);
    ck_assert_ok(ql_jsonl_next(&lines, &value, &err), &err);
    ck_assert_ptr_null(value);
    ql_jsonl_close(&lines);
    ck_assert_fails(ql_jsonl_open(&lines, folder, &err), QL_ERR_IO, &err, "Is a directory");
    ql_jsonl_close(&lines);
    test_folder_remove(folder);
}
END_TEST

/* Bytes replaced at random: any answer but a crash. */
START_TEST(damaged_json_never_crashes)
{
    const char *good =
        "{\"a\": [1, -2.5e3, true, null, {\"b\": \"x\\u00e9\\n\\\\\"}], \"c\xc3\xa9\": {\"d\": [[], {}]}}";
    char text[128];
    size_t length = strlen(good);
    uint32_t draw[4];
    for (uint64_t round = 0; round < 20000; round++) {
        memcpy(text, good, length);
        ql_philox(7, 0, round, draw);
        text[draw[0] % length] = (char)draw[1];
        if (draw[2] & 1)
            text[draw[2] / 2 % length] = "[]{}\",:\\0-e"[draw[3] % 11];
        parse(text, length - (draw[3] >> 8) % 8, NULL);
    }
}
END_TEST

START_TEST(reads_every_tokenizer)
{
    static const char *const names[] = {"gpt2", "qwen2.5", "tinyllama"};
    for (size_t i = 0; i < 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "tokenizers/%s/tokenizer.json", names[i]);
        const char *path = test_data(name);
        if (!path)
            continue;
        json_t *value;
        ql_error err = {0};
        ck_assert_ok(ql_json_read(&value, path, &err), &err);
        ck_assert(json_is_object(json_object_get(json_object_get(value, "model"), "vocab")));
        json_decref(value);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("io_json");
    TCase *tests = tcase_create("json");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, refuses_what_is_no_json);
    tcase_add_test(tests, refuses_deep_nesting);
    tcase_add_test(tests, accepts_what_people_write);
    tcase_add_test(tests, files_that_cannot_be_read);
    tcase_add_test(tests, getters_say_where);
    tcase_add_test(tests, lines_with_numbers);
    tcase_add_test(tests, lines_that_are_wrong);
    tcase_add_test(tests, damaged_json_never_crashes);
    tcase_add_test(tests, reads_every_tokenizer);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
