/* Data sets: what is learned and what is not, packing, splitting, orders. */
#include "data_support.h"

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
    tcase_add_test(tests, every_turn_of_the_assistant_is_learned);
    tcase_add_test(tests, parts_share_no_token);
    tcase_add_test(tests, drawn_samples_are_held_out_once);
    tcase_add_test(tests, orders_are_permutations_of_their_own);
    tcase_add_test(tests, samples_of_the_callers);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
