/* Data sets from files that are wrong, damaged or too long: refused with their line, cut and counted, or warned of. */
#include "data_support.h"

/* A chat template by name whose end of a turn is no token of the model. */
START_TEST(turns_without_an_end_token_are_warned_of)
{
    ql_dataset *d;
    ql_data_options options = ql_data_options_defaults();
    const char *lines =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}";
    options.chat_template = "chatml";
    ck_assert_ok(open_bytes(&d, "a.jsonl", lines, strlen(lines), &options), &err);
    ck_assert_uint_eq(ql_dataset_warnings(d), 0);
    ql_dataset_close(d);
    teardown();
    folder = test_folder();
    char *path = ql_path_join(folder, "tokenizer.json");
    FILE *file = fopen(path, "w");
    fputs("{\"model\":{\"vocab\":{\"a\":0,\"?\":1},\"merges\":[],\"unk_token\":\"?\"}}", file);
    fclose(file);
    free(path);
    ck_assert_ok(ql_tokenizer_open(&tokenizer, folder, &err), &err);
    ck_assert_ok(open_bytes(&d, "a.jsonl", lines, strlen(lines), &options), &err);
    ck_assert_uint_eq(ql_dataset_warnings(d), 1);
    ck_assert_ptr_nonnull(strstr(ql_dataset_warning(d, 0), "no end token"));
    ql_dataset_close(d);
}
END_TEST

/* A line of 100 MB, 4 MB of them text, is read, cut and counted. */
START_TEST(huge_lines_are_cut)
{
    static const char head[] = "{\"text\":\"", middle[] = "\",\"note\":\"";
    size_t letters = 4u << 20, size = 100u << 20;
    char *line = malloc(size);
    memset(line, 'a', size);
    memcpy(line, head, sizeof head - 1);
    memcpy(line + letters, middle, sizeof middle - 1);
    memcpy(line + size - 2, "\"}", 2);
    ql_dataset *d;
    ql_data_options options = ql_data_options_defaults();
    ck_assert_ok(open_bytes(&d, "a.jsonl", line, size, &options), &err);
    ck_assert_uint_eq(ql_dataset_stats(d).longest, 513);
    ck_assert_uint_eq(ql_dataset_stats(d).truncated, 1);
    ql_dataset_close(d);
    free(line);
}
END_TEST

START_TEST(long_samples_are_cut_and_counted)
{
    const char *lines = "{\"prompt\":\"abcdef\",\"completion\":\"g\"}\n{\"prompt\":\"a\",\"completion\":\"bcdef\"}\n";
    ql_dataset *d;
    ck_assert_ok(open_text(&d, "a.jsonl", lines, 3), &err);
    ql_data_stats stats = ql_dataset_stats(d);
    ck_assert_uint_eq(stats.samples, 1);
    ck_assert_uint_eq(stats.skipped, 1);
    ck_assert_uint_eq(stats.truncated, 1);
    ck_assert_str_eq(spelled(d, 0), "Abcd");
    ck_assert_uint_eq(ql_dataset_warnings(d), 2);
    ck_assert_ptr_nonnull(strstr(ql_dataset_warning(d, 0), "cut"));
    ql_dataset_close(d);
}
END_TEST

START_TEST(wrong_files_say_where)
{
    static const struct {
        const char *name, *text, *words;
        ql_status status;
    } wrong[] = {
        {"empty.txt", "", "empty", QL_ERR_FORMAT},
        {"empty.jsonl", "", "empty", QL_ERR_FORMAT},
        {"blank.jsonl", "\n \n\n", "no lines", QL_ERR_FORMAT},
        {"array.json", "[]", ".jsonl", QL_ERR_UNSUPPORTED},
        {"keys.jsonl", "{\"instruction\": 1, \"output\": 2}", "\"instruction\", \"output\"", QL_ERR_FORMAT},
        {"keys.jsonl", "{}", "the keys", QL_ERR_FORMAT},
        {"mixed.jsonl", "{\"text\":\"ab\"}\n{\"prompt\":\"a\"}", "mixed.jsonl:2", QL_ERR_FORMAT},
        {"type.jsonl", "{\"text\":\"ab\"}\n\n{\"text\":7}", "type.jsonl:3", QL_ERR_FORMAT},
        {"list.jsonl", "[1]", "expected an object", QL_ERR_FORMAT},
        {"cut.jsonl", "{\"text\":\"ab\"}\n{\"text\":", "cut.jsonl:2", QL_ERR_FORMAT},
        {"silent.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "no turn of the assistant",
         QL_ERR_FORMAT},
        {"none.jsonl", "{\"messages\":[]}", "none.jsonl:1", QL_ERR_ARG},
        {"turn.jsonl", "{\"messages\":[3]}", "messages[0]", QL_ERR_FORMAT},
        {"role.jsonl", "{\"messages\":[{\"content\":\"a\"}]}", "role", QL_ERR_FORMAT},
        {"template.jsonl", chat, "chatml", QL_ERR_UNSUPPORTED}, /* the tokenizer has no template */
        {"bytes.txt", "ab\nc\xff\xfe", "bytes.txt:2: byte 4 of the file (0xFF)", QL_ERR_FORMAT},
        {"bytes.txt", "\xef\xbb\xbf"
         "c\xff",
         "bytes.txt:1: byte 4 of the file (0xFF)", QL_ERR_FORMAT},
        {"blank.txt", " \n\t\n", "white space", QL_ERR_FORMAT},
        {"one.txt", "a", "nothing to learn", QL_ERR_FORMAT},
        {"tool.jsonl", "{\"messages\":[{\"role\":\"helper\",\"content\":\"a\"}]}", "role \"helper\"", QL_ERR_ARG},
        {"null.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":null}]}", "content", QL_ERR_FORMAT},
        {"bytes.jsonl", "{\"text\":\"a\xff\"}", "bytes.jsonl:1", QL_ERR_FORMAT},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        ql_dataset *d;
        ql_data_options options = ql_data_options_defaults();
        options.chat_template = wrong[i].text == chat ? NULL : "chatml";
        ck_assert_fails(open_bytes(&d, wrong[i].name, wrong[i].text, strlen(wrong[i].text), &options), wrong[i].status,
                        &err, wrong[i].words);
        ck_assert_ptr_null(d);
    }
    ql_dataset *d;
    ql_data_options options = ql_data_options_defaults();
    ck_assert_fails(ql_dataset_open(&d, "/nonexistent.txt", tokenizer, &options, &err), QL_ERR_IO, &err,
                    "/nonexistent.txt");
    options.sequence = 0;
    ck_assert_fails(ql_dataset_open(&d, "/nonexistent.txt", tokenizer, &options, &err), QL_ERR_ARG, &err, "sequence");
}
END_TEST

/* Cuts of valid lines and flipped bytes must end in a data set or an error, never in a crash. */
START_TEST(damaged_lines_do_no_harm)
{
    ql_data_options options = ql_data_options_defaults();
    options.chat_template = "chatml";
    char bytes[sizeof chat];
    uint32_t state = 1;
    for (size_t i = 0; i < 3 * sizeof chat; i++) {
        memcpy(bytes, chat, sizeof chat);
        size_t size = i < sizeof chat ? i : sizeof chat - 1;
        for (int flips = 0; i >= sizeof chat && flips < 2; flips++) {
            state = state * 1664525u + 1013904223u;
            bytes[state >> 8 & 0xffff ? (state >> 8) % (sizeof chat - 1) : 0] ^= (char)(1 << (state >> 29));
        }
        ql_dataset *d = NULL;
        ql_status status = open_bytes(&d, "a.jsonl", bytes, size, &options);
        ck_assert((status == QL_OK) == (d != NULL));
        ql_dataset_close(d);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("data_refused");
    TCase *tests = tcase_create("refused");
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, turns_without_an_end_token_are_warned_of);
    tcase_add_test(tests, huge_lines_are_cut);
    tcase_add_test(tests, long_samples_are_cut_and_counted);
    tcase_add_test(tests, wrong_files_say_where);
    tcase_add_test(tests, damaged_lines_do_no_harm);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
