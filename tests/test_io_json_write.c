/* JSON out: that what the emitter writes reads back, and its bytes. */
#include "support.h"

#include <float.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "qlora/io.h"

START_TEST(emitter_escapes_nuls)
{
    ql_json json = {0};
    ql_json_text(&json, NULL, "a\0\xc3\xa9\0", 5);
    ck_assert_str_eq(json.text, "\"a\\u0000\xc3\xa9\\u0000\"");
    ql_json_free(&json);
}
END_TEST

START_TEST(emitter_reads_back)
{
    ql_json json = {.pretty = true};
    static const double numbers[] = {0.1, 1e-300, 5e-324, DBL_MAX, -1.5, 1.0 / 3, 0.05, 2e-4, 123456789012345680.0};
    const size_t count = sizeof numbers / sizeof *numbers;
    ql_error err = {0};
    char *folder = test_folder(), path[1024];
    ql_json_object(&json, NULL);
    ql_json_string(&json, "text \"quoted\" \\", "tab\t line\n bell\x07 \xc3\xa9 \xf0\x9f\x98\x80 /");
    ql_json_string(&json, "invalid",
                   "a\xff"
                   "b\xc3");
    ql_json_string(&json, "none", NULL);
    ql_json_integer(&json, "least", INT64_MIN);
    ql_json_bool(&json, "yes", true);
    ql_json_number(&json, "nan", NAN);
    ql_json_number(&json, "inf", -INFINITY);
    ql_json_array(&json, "numbers");
    for (size_t i = 0; i < count; i++)
        ql_json_number(&json, NULL, numbers[i]);
    ql_json_end(&json);
    ql_json_object(&json, "empty");
    ql_json_end(&json);
    ql_json_end(&json);
    snprintf(path, sizeof path, "%s/out.json", folder);
    ck_assert_ok(ql_json_write(&json, path, &err), &err);

    json_t *value;
    ck_assert_ok(ql_json_read(&value, path, &err), &err);
    ck_assert_str_eq(json_string_value(json_object_get(value, "text \"quoted\" \\")),
                     "tab\t line\n bell\x07 \xc3\xa9 \xf0\x9f\x98\x80 /");
    ck_assert_str_eq(json_string_value(json_object_get(value, "invalid")), "a\xef\xbf\xbd"
                                                                           "b\xef\xbf\xbd");
    ck_assert(json_is_null(json_object_get(value, "none")) && json_is_null(json_object_get(value, "nan")));
    ck_assert(json_is_null(json_object_get(value, "inf")) && json_is_true(json_object_get(value, "yes")));
    ck_assert(json_integer_value(json_object_get(value, "least")) == INT64_MIN);
    for (size_t i = 0; i < count; i++)
        ck_assert(json_number_value(json_array_get(json_object_get(value, "numbers"), i)) == numbers[i]);
    ck_assert(json_is_object(json_object_get(value, "empty")));
    json_decref(value);
    ql_json_free(&json);
    test_folder_remove(folder);
}
END_TEST

START_TEST(emitter_writes_these_bytes)
{
    ql_json json = {0};
    char *text = NULL;
    size_t size;
    ql_error err = {0};
    FILE *file = open_memstream(&text, &size);
    setlocale(LC_ALL, "de_DE.UTF-8"); /* a decimal comma, where the locale is installed */
    ql_json_object(&json, NULL);
    ql_json_integer(&json, "step", 3);
    ql_json_number(&json, "loss", 2.25);
    ql_json_array(&json, "ids");
    ql_json_integer(&json, NULL, 1);
    ql_json_integer(&json, NULL, -2);
    ql_json_end(&json);
    ql_json_end(&json);
    ck_assert_ok(ql_json_line(&json, file, "log", &err), &err);
    json.pretty = true;
    ql_json_object(&json, NULL);
    ql_json_array(&json, "a");
    ql_json_null(&json, NULL);
    ql_json_end(&json);
    ql_json_end(&json);
    ck_assert_ok(ql_json_line(&json, file, "log", &err), &err);
    fclose(file);
    ck_assert_str_eq(text, "{\"step\":3,\"loss\":2.25,\"ids\":[1,-2]}\n{\n  \"a\": [\n    null\n  ]\n}\n");
    free(text);
    ql_json_free(&json);
}
END_TEST

START_TEST(emitter_refuses_wrong_nesting)
{
    ql_error err = {0};
    for (int kind = 0; kind < 6; kind++) {
        ql_json json = {0};
        if (kind != 5)
            ql_json_object(&json, NULL);
        if (kind == 0)
            ql_json_integer(&json, NULL, 1); /* no key in an object */
        if (kind == 1)
            ql_json_array(&json, "a"), ql_json_null(&json, "b"), ql_json_end(&json); /* a key in an array */
        if (kind != 2 && kind != 5)
            ql_json_end(&json); /* 2: never closed, 5: nothing at all */
        if (kind == 3)
            ql_json_end(&json); /* closed twice */
        if (kind == 4)
            ql_json_null(&json, NULL); /* a second value */
        ck_assert_fails(ql_json_line(&json, stdout, "log", &err), QL_ERR_ARG, &err, "log: ");
        ql_json_free(&json);
    }
    ql_json deep = {0};
    for (int i = 0; i < 65; i++)
        ql_json_array(&deep, NULL);
    ck_assert_int_eq(deep.status, QL_ERR_ARG);
    ql_json_free(&deep);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("io_json_write");
    TCase *tests = tcase_create("json");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, emitter_escapes_nuls);
    tcase_add_test(tests, emitter_reads_back);
    tcase_add_test(tests, emitter_writes_these_bytes);
    tcase_add_test(tests, emitter_refuses_wrong_nesting);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
