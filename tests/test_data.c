/* Data sets: what is learned and what is not, packing, cutting, splitting, and files that are wrong. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/path.h"
#include "qlora/data.h"
#include "support.h"

static ql_error err;
static ql_tokenizer *tokenizer;
static char *folder;

/* A byte-level tokenizer whose tokens are single letters; 0 is BOS, 1 EOS, letters and blank follow. */
static void write_tokenizer(bool add_bos)
{
    char *path = ql_path_join(folder, "tokenizer.json");
    FILE *file = fopen(path, "w");
    fputs("{\"version\":\"1.0\",\"added_tokens\":[{\"id\":0,\"content\":\"<s>\",\"special\":true},"
          "{\"id\":1,\"content\":\"</s>\",\"special\":true},"
          "{\"id\":30,\"content\":\"<|im_start|>\",\"special\":true},"
          "{\"id\":31,\"content\":\"<|im_end|>\",\"special\":true}],\"normalizer\":null,"
          "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
          "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},"
          "\"model\":{\"type\":\"BPE\",\"vocab\":{\"<s>\":0,\"</s>\":1,\"\\u0120\":2",
          file);
    for (int i = 0; i < 26; i++)
        fprintf(file, ",\"%c\":%d", 'a' + i, 3 + i);
    fputs(",\"\\u010a\":29,\"<|im_start|>\":30,\"<|im_end|>\":31},\"merges\":[]}}", file);
    fclose(file);
    free(path);
    path = ql_path_join(folder, "tokenizer_config.json");
    file = fopen(path, "w");
    fprintf(file, "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_bos_token\":%s}", add_bos ? "true" : "false");
    fclose(file);
    free(path);
}

static void setup_with(bool add_bos)
{
    folder = test_folder();
    write_tokenizer(add_bos);
    ck_assert_ok(ql_tokenizer_open(&tokenizer, folder, &err), &err);
}

static void setup(void)
{
    setup_with(false);
}

static void teardown(void)
{
    ql_tokenizer_close(tokenizer);
    test_folder_remove(folder);
}

static ql_status open_bytes(ql_dataset **out, const char *name, const void *bytes, size_t size,
                            const ql_data_options *options)
{
    char *path = ql_path_join(folder, name);
    FILE *file = fopen(path, "wb");
    fwrite(bytes, 1, size, file);
    fclose(file);
    ql_status status = ql_dataset_open(out, path, tokenizer, options, &err);
    free(path);
    return status;
}

static ql_status open_text(ql_dataset **out, const char *name, const char *text, size_t sequence)
{
    ql_data_options options = ql_data_options_defaults();
    options.sequence = sequence;
    return open_bytes(out, name, text, strlen(text), &options);
}

/* A sample as letters, "<" for BOS, ">" for EOS; tokens that are not learned in capitals ("(" and ")" then). */
static const char *spelled(const ql_dataset *dataset, size_t index)
{
    static char text[256];
    ql_sample sample = ql_dataset_sample(dataset, index);
    for (size_t i = 0; i < sample.length; i++) {
        int id = sample.ids[i];
        const char *signs = sample.learn[i] ? "<> " : "()_";
        text[i] = id < 3 ? signs[id] : (char)((sample.learn[i] ? 'a' : 'A') + id - 3);
    }
    text[sample.length] = 0;
    return text;
}

START_TEST(text_is_packed_without_gaps)
{
    ql_dataset *d;
    ck_assert_ok(open_text(&d, "a.txt", "abcdefgh", 3), &err);
    ck_assert_uint_eq(ql_dataset_count(d), 3); /* abcd, defg, gh: each token but the first is a target once */
    ck_assert_str_eq(spelled(d, 0), "Abcd");
    ck_assert_str_eq(spelled(d, 1), "Defg");
    ck_assert_str_eq(spelled(d, 2), "Gh");
    ql_data_stats stats = ql_dataset_stats(d);
    ck_assert_uint_eq(stats.learned, 7);
    ck_assert_uint_eq(stats.longest, 4);
    ql_dataset_close(d);
}
END_TEST

START_TEST(text_with_bos_learns_every_token)
{
    teardown();
    setup_with(true);
    ql_dataset *d;
    ck_assert_ok(open_text(&d, "a.txt", "abcdefg", 3), &err);
    ck_assert_uint_eq(ql_dataset_count(d), 3);
    ck_assert_str_eq(spelled(d, 0), "(abc");
    ck_assert_str_eq(spelled(d, 1), "(def");
    ck_assert_str_eq(spelled(d, 2), "(g");
    ql_dataset_close(d);
}
END_TEST

START_TEST(completions_are_learned_and_prompts_are_not)
{
    const char *lines = "{\"prompt\": \"ab\", \"completion\": \"cd\"}\r\n\n{\"prompt\":\"\",\"completion\":\"x\"}";
    ql_dataset *d;
    ck_assert_ok(open_text(&d, "a.jsonl", lines, 10), &err);
    ck_assert_uint_eq(ql_dataset_count(d), 2);
    ck_assert_str_eq(spelled(d, 0), "ABcd>");
    ck_assert_str_eq(spelled(d, 1), "X>"); /* nothing stands before x that could ask for it */
    ql_dataset_close(d);
    ql_data_options options = ql_data_options_defaults();
    options.mask_prompt = false;
    options.bos = QL_BOS_ALWAYS;
    ck_assert_ok(open_bytes(&d, "a.jsonl", lines, strlen(lines), &options), &err);
    ck_assert_str_eq(spelled(d, 0), "(abcd>");
    ql_dataset_close(d);
}
END_TEST

START_TEST(documents_end_in_a_learned_end_token)
{
    ql_dataset *d, *held;
    ck_assert_ok(open_text(&d, "a.jsonl", "{\"text\":\"ab</s>c\"}\n{\"text\":\"\"}\n{\"text\":\"d\"}\n", 10), &err);
    ck_assert_uint_eq(ql_dataset_count(d), 2); /* an end token alone has nothing in front of it */
    ck_assert_str_eq(spelled(d, 0), "Ab>c>");
    ck_assert_uint_eq(ql_dataset_stats(d).skipped, 1);
    ck_assert_ok(ql_dataset_split(d, 0.1, NULL, &held, &err), &err);
    ck_assert_str_eq(spelled(held, 0), "D>"); /* of lines the last ones */
    ck_assert_uint_eq(ql_dataset_count(d), 1);
    ql_dataset_close(held);
    ql_dataset_close(d);
}
END_TEST

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

static const char chat[] =
    "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},"
    "{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"}]}";

START_TEST(every_turn_of_the_assistant_is_learned)
{
    const char *model = test_data("tokenizers/qwen2.5");
    if (!model)
        return;
    ql_tokenizer_close(tokenizer);
    ck_assert_ok(ql_tokenizer_open(&tokenizer, model, &err), &err);
    ql_dataset *d;
    ck_assert_ok(open_text(&d, "chat.jsonl", chat, 200), &err);
    ql_sample sample = ql_dataset_sample(d, 0);
    int32_t end = ql_tokenizer_id(tokenizer, "<|im_end|>");
    size_t learned = 0, ends = 0;
    for (size_t i = 0; i < sample.length; i++) {
        learned += sample.learn[i];
        ends += sample.learn[i] && sample.ids[i] == end;
    }
    ck_assert_uint_eq(ends, 2);
    ck_assert_uint_eq(learned, 4); /* "b", "d" and their ends */
    ql_dataset_close(d);
}
END_TEST

START_TEST(parts_share_no_token)
{
    ql_dataset *d, *held;
    ck_assert_ok(open_text(&d, "a.txt", "abcdefghij", 4), &err);
    ck_assert_ok(ql_dataset_split(d, 0.3, NULL, &held, &err), &err);
    ck_assert_uint_eq(ql_dataset_count(d), 2);
    ck_assert_str_eq(spelled(d, 0), "Abcde");
    ck_assert_str_eq(spelled(d, 1), "Efg");
    ck_assert_uint_eq(ql_dataset_count(held), 1);
    ck_assert_str_eq(spelled(held, 0), "Hij");
    ql_dataset_close(held);
    ck_assert_fails(ql_dataset_split(d, 1.5, NULL, &held, &err), QL_ERR_ARG, &err, "1.5");
    ck_assert_fails(ql_dataset_split(d, 0.99, NULL, &held, &err), QL_ERR_ARG, &err, "leaves nothing");
    ck_assert_uint_eq(ql_dataset_count(d), 2); /* as it was */
    ql_dataset_close(d);
}
END_TEST

START_TEST(drawn_samples_are_held_out_once)
{
    ql_dataset *d, *held;
    ck_assert_ok(open_text(&d, "a.txt", "abcdefghijklmnopqrstu", 1), &err);
    ck_assert_uint_eq(ql_dataset_count(d), 20);
    uint64_t seed = 3;
    ck_assert_ok(ql_dataset_split(d, 0.25, &seed, &held, &err), &err);
    ck_assert_uint_eq(ql_dataset_count(d), 15);
    ck_assert_uint_eq(ql_dataset_count(held), 5);
    bool seen[32] = {false};
    for (size_t i = 0; i < 20; i++) {
        ql_sample sample = i < 15 ? ql_dataset_sample(d, i) : ql_dataset_sample(held, i - 15);
        ck_assert(!seen[sample.ids[0]]);
        seen[sample.ids[0]] = true;
    }
    ql_dataset_close(d);
    ql_dataset_close(held);
}
END_TEST

START_TEST(orders_are_permutations_of_their_own)
{
    ql_dataset *d;
    size_t order[3][20];
    ck_assert_ok(open_text(&d, "a.txt", "abcdefghijklmnopqrstu", 1), &err);
    ql_dataset_order(d, 1, 0, order[0]);
    ql_dataset_order(d, 1, 1, order[1]);
    ql_dataset_order(d, 1, 0, order[2]);
    ck_assert_mem_eq(order[0], order[2], sizeof order[0]);
    ck_assert_mem_ne(order[0], order[1], sizeof order[0]);
    unsigned seen = 0;
    for (int i = 0; i < 20; i++)
        seen |= 1u << order[0][i];
    ck_assert_uint_eq(seen, (1u << 20) - 1);
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

START_TEST(samples_of_the_callers)
{
    const int32_t ids[] = {5, 6, 7, 8};
    const uint8_t learn[] = {1, 0, 1, 1}, none[] = {1, 0, 0, 0};
    const ql_sample samples[] = {{ids, learn, 4}, {ids, none, 4}, {ids, learn, 3}};
    ql_dataset *d;
    ck_assert_ok(ql_dataset_from_samples(&d, samples, 3, &err), &err);
    ck_assert_uint_eq(ql_dataset_count(d), 2);
    ck_assert_str_eq(spelled(d, 0), "CDef");
    ck_assert_str_eq(spelled(d, 1), "CDe");
    ck_assert_uint_eq(ql_dataset_stats(d).skipped, 1);
    ql_dataset_close(d);
    ck_assert_fails(ql_dataset_from_samples(&d, samples + 1, 1, &err), QL_ERR_FORMAT, &err, "none of 1");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("data");
    TCase *tests = tcase_create("data");
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, text_is_packed_without_gaps);
    tcase_add_test(tests, text_with_bos_learns_every_token);
    tcase_add_test(tests, completions_are_learned_and_prompts_are_not);
    tcase_add_test(tests, documents_end_in_a_learned_end_token);
    tcase_add_test(tests, turns_without_an_end_token_are_warned_of);
    tcase_add_test(tests, huge_lines_are_cut);
    tcase_add_test(tests, long_samples_are_cut_and_counted);
    tcase_add_test(tests, every_turn_of_the_assistant_is_learned);
    tcase_add_test(tests, parts_share_no_token);
    tcase_add_test(tests, drawn_samples_are_held_out_once);
    tcase_add_test(tests, orders_are_permutations_of_their_own);
    tcase_add_test(tests, wrong_files_say_where);
    tcase_add_test(tests, damaged_lines_do_no_harm);
    tcase_add_test(tests, samples_of_the_callers);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
