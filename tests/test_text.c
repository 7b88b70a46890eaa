/* Tokenizers: ids that other programs found for the reference texts, round trips, streaming. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "support.h"
#include "text_support.h"

static const struct {
    const char *folder, *vectors;
} references[] = {
    {"tokenizers/gpt2", "tokenizer-vectors/ggml-vocab-gpt-2.gguf"},
    {"tokenizers/qwen2.5", "tokenizer-vectors/ggml-vocab-qwen2.gguf"},
    {"tokenizers/tinyllama", "tokenizer-vectors/ggml-vocab-llama-spm.gguf"},
    {"tokenizer-vectors/ggml-vocab-gpt-2.gguf", "tokenizer-vectors/ggml-vocab-gpt-2.gguf"},
    {"tokenizer-vectors/ggml-vocab-llama-spm.gguf", "tokenizer-vectors/ggml-vocab-llama-spm.gguf"},
};

static void check_vector(ql_tokenizer *t, const char *text, size_t length, const char *wanted)
{
    ql_ids ids = {0};
    ql_text back = {0};
    ql_error err = {0};
    ck_assert_ok(ql_tokenizer_encode(t, text, length, QL_ENCODE_PLAIN, &ids, &err), &err);
    char trimmed[4096];
    snprintf(trimmed, sizeof trimmed, "%s", wanted + strspn(wanted, " "));
    for (size_t end = strlen(trimmed); end && trimmed[end - 1] == ' ';)
        trimmed[--end] = 0;
    ck_assert_str_eq(spell_ids(ids.data, ids.count), trimmed);
    ck_assert_ok(ql_tokenizer_decode(t, ids.data, ids.count, QL_DECODE_PLAIN, &back, &err), &err);
    ck_assert_uint_eq(back.length, length);
    ck_assert_mem_eq(back.data ? back.data : "", text, length);
    ql_ids_free(&ids);
    ql_text_free(&back);
}

START_TEST(reference_texts_give_the_reference_ids)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char name[128];
    size_t length, cases = 0;
    ql_tokenizer *t = open_reference(references[_i].folder);
    if (!t)
        return;
    snprintf(name, sizeof name, "%s.inp", references[_i].vectors);
    char *texts = read_file(test_data(name), &length);
    snprintf(name, sizeof name, "%s.out", references[_i].vectors);
    char *lines = read_file(test_data(name), &length), *line = lines;
    for (char *text = texts, *end; (end = strstr(text, separator)); text = end + sizeof separator - 1, cases++) {
        char *newline = strchr(line, '\n');
        ck_assert_ptr_nonnull(newline);
        *newline = 0;
        check_vector(t, text, (size_t)(end - text), line);
        line = newline + 1;
    }
    ck_assert_uint_eq(cases, 46);
    free(texts);
    free(lines);
    ql_tokenizer_close(t);
}
END_TEST

START_TEST(stories_begin_with_bos)
{
    ql_tokenizer *t = open_reference("models/stories260K-hf");
    if (!t)
        return;
    ck_assert(ql_tokenizer_adds_bos(t));
    assert_encodes(t, "Once upon a time", QL_ENCODE_SPECIALS, "1 403 407 261 378");
    assert_encodes(t, "Once upon a time", QL_ENCODE_PLAIN, "403 407 261 378");
    assert_encodes(t, "", QL_ENCODE_SPECIALS, "1");
    ck_assert_int_eq(ql_tokenizer_eos(t), 2);
    ck_assert_int_eq(ql_tokenizer_pad(t), -1);
    ck_assert_uint_eq(ql_tokenizer_vocab(t), 512);
    ql_tokenizer_close(t);
}
END_TEST

/* The first 16384 bytes of two corpora: how many ids, and sum (i+1) * id mod 1000003, of an independent encoder. */
START_TEST(long_texts_match_an_independent_encoder)
{
    static const struct {
        const char *name;
        size_t count, sum;
    } texts[] = {{"corpora/tinystories-excerpt.txt", 7794, 461733}, {"corpora/tinyshakespeare.txt", 10061, 204119}};
    ql_tokenizer *t = open_reference("models/stories260K-hf");
    ql_error err = {0};
    for (int i = 0; t && i < 2; i++) {
        size_t length, sum = 0;
        ql_ids ids = {0};
        char *text = read_file(test_data(texts[i].name), &length);
        ck_assert_ok(ql_tokenizer_encode(t, text, 16384, QL_ENCODE_PLAIN, &ids, &err), &err);
        for (size_t k = 0; k < ids.count; k++)
            sum = (sum + (k + 1) * (size_t)ids.data[k]) % 1000003;
        ck_assert_uint_eq(ids.count, texts[i].count);
        ck_assert_uint_eq(sum, texts[i].sum);
        ql_ids_free(&ids);
        free(text);
    }
    ql_tokenizer_close(t);
}
END_TEST

/* Pushes ids one by one: what comes out is valid UTF-8 at every moment and adds up to the whole. */
static void check_streaming(const ql_tokenizer *t, const ql_ids *ids, const char *text, size_t length)
{
    ql_decoder *decoder;
    ql_text out = {0};
    ql_error err = {0};
    ck_assert_ok(ql_decoder_create(&decoder, t, QL_DECODE_PLAIN, &err), &err);
    for (size_t i = 0; i < ids->count; i++) {
        ck_assert_ok(ql_decoder_push(decoder, ids->data[i], &out, &err), &err);
        ck_assert_uint_le(out.length, length);
        ck_assert_mem_eq(out.data ? out.data : "", text, out.length);
        ck_assert(out.length == length || ((uint8_t)text[out.length] & 0xc0) != 0x80);
    }
    ck_assert_uint_eq(out.length, length);
    ck_assert_ok(ql_decoder_finish(decoder, &out, &err), &err);
    ck_assert_uint_eq(out.length, length);
    ql_text_free(&out);
    ql_decoder_destroy(decoder);
}

START_TEST(streams_whole_characters_only)
{
    static const char text[] = "The \xf0\x9f\x9a\x80 flies: \xe6\xbc\xa2\xe5\xad\x97, caf\xc3\xa9 "
                               "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7.";
    ql_tokenizer *t = open_reference(references[_i].folder);
    ql_ids ids = {0};
    ql_error err = {0};
    if (!t)
        return;
    ck_assert_ok(ql_tokenizer_encode(t, text, sizeof text - 1, QL_ENCODE_PLAIN, &ids, &err), &err);
    check_streaming(t, &ids, text, sizeof text - 1);
    ql_ids_free(&ids);
    ql_tokenizer_close(t);
}
END_TEST

START_TEST(decoding_mends_strips_and_skips)
{
    ql_tokenizer *t = open_reference("tokenizers/tinyllama");
    ql_error err = {0};
    ql_text text = {0};
    if (!t)
        return;
    const int32_t hello[] = {1, 22172, 2},
                  bytes[] = {3 + 0xe6, 3 + 0xbc, 22172, 3 + 0xff, 3 + 0xc3, 3 + 0xa9, 3 + 0xc3};
    assert_decodes(t, hello, 3, QL_DECODE_PLAIN, "<s> hello</s>");
    assert_decodes(t, hello, 3, QL_DECODE_SKIP_SPECIALS, "hello");
    assert_decodes(t, hello, 3, QL_DECODE_SKIP_SPECIALS | QL_DECODE_CONTINUE, " hello");
    assert_decodes(t, bytes, 7, QL_DECODE_PLAIN, "\xef\xbf\xbd hello\xef\xbf\xbd\xc3\xa9\xef\xbf\xbd");
    assert_decodes(t, (const int32_t[]){32000, 22172}, 2, QL_DECODE_PLAIN, "hello"); /* beyond the vocabulary */
    ck_assert_fails(ql_tokenizer_decode(t, (const int32_t[]){-1}, 1, 0, &text, &err), QL_ERR_ARG, &err, "-1");
    ql_tokenizer_close(t);
}
END_TEST

START_TEST(specials_are_parsed_or_literal)
{
    ql_tokenizer *t = open_reference("tokenizers/qwen2.5");
    if (!t)
        return;
    assert_encodes(t, "a<|im_end|>b", QL_ENCODE_PLAIN, "64 151645 65");
    assert_encodes(t, "a<|im_end|>b", QL_ENCODE_LITERAL, "64 27 91 318 6213 91 29 65");
    assert_encodes(t, "a<tool_call>b", QL_ENCODE_LITERAL, "64 151657 65"); /* added, not special */
    assert_encodes(t, "e\xcc\x81", QL_ENCODE_PLAIN, "963");                /* NFC: one letter */
    ck_assert_int_eq(ql_tokenizer_bos(t), -1);                             /* a null in tokenizer_config.json */
    ck_assert_int_eq(ql_tokenizer_eos(t), 151645);
    ck_assert_int_eq(ql_tokenizer_pad(t), 151643);
    ck_assert(ql_tokenizer_is_end(t, 151645) && ql_tokenizer_is_end(t, 151643) && !ql_tokenizer_is_end(t, 151644));
    ck_assert_str_eq(ql_tokenizer_token(t, 151644), "<|im_start|>");
    ck_assert_int_eq(ql_tokenizer_id(t, "<|im_start|>"), 151644);
    ck_assert_ptr_null(ql_tokenizer_token(t, 151665));
    ck_assert_int_eq(ql_tokenizer_id(t, "no such token"), -1);
    ql_tokenizer_close(t);
}
END_TEST

START_TEST(text_that_goes_on_has_no_dummy_space)
{
    ql_tokenizer *t = open_reference("tokenizers/tinyllama");
    if (!t)
        return;
    assert_encodes(t, "hello", QL_ENCODE_PLAIN, "22172");
    assert_encodes(t, "hello", QL_ENCODE_CONTINUE, "12199");
    assert_encodes(t, " hello", QL_ENCODE_CONTINUE, "22172");
    ql_tokenizer_close(t);
}
END_TEST

/* A word of a million letters must not take quadratic time, and the file's truncation must not cut it. */
START_TEST(long_words_are_fast_and_whole)
{
    ql_tokenizer *t = open_reference(references[_i].folder);
    ql_error err = {0};
    ql_ids ids = {0};
    ql_text back = {0};
    size_t length = 1000000;
    if (!t)
        return;
    char *text = malloc(length);
    for (size_t i = 0; i < length; i++)
        text[i] = (char)('a' + i * i % 26);
    clock_t start = clock();
    ck_assert_ok(ql_tokenizer_encode(t, text, length, QL_ENCODE_PLAIN, &ids, &err), &err);
    ck_assert_double_lt((double)(clock() - start) / CLOCKS_PER_SEC, 30); /* a quadratic one takes hours */
    ck_assert_ok(ql_tokenizer_decode(t, ids.data, ids.count, QL_DECODE_PLAIN, &back, &err), &err);
    ck_assert_uint_eq(back.length, length);
    ck_assert_mem_eq(back.data, text, length);
    free(text);
    ql_ids_free(&ids);
    ql_text_free(&back);
    ql_tokenizer_close(t);
}
END_TEST

START_TEST(broken_text_is_an_error_with_its_place)
{
    ql_tokenizer *t = open_reference("tokenizers/gpt2");
    static const struct {
        const char *text;
        size_t length;
        const char *words;
    } cases[] = {
        {"abc\xff", 4, "byte 3 (0xFF)"}, {"12345678\xc0\x80", 10, "byte 8 (0xC0)"},
        {"\xed\xa0\x80", 3, "byte 0"},   {"a\xf4\x90\x80\x80", 5, "byte 1"},
        {"ab\xe2\x82", 4, "byte 2"},
    };
    for (size_t i = 0; t && i < sizeof cases / sizeof *cases; i++) {
        ql_error err = {0};
        ql_ids ids = {0};
        ck_assert_fails(ql_tokenizer_encode(t, cases[i].text, cases[i].length, QL_ENCODE_SPECIALS, &ids, &err),
                        QL_ERR_FORMAT, &err, cases[i].words);
        ck_assert_uint_eq(ids.count, 0);
        ql_ids_free(&ids);
    }
    ql_tokenizer_close(t);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("text");
    TCase *tests = tcase_create("text");
    tcase_set_timeout(tests, 300);
    tcase_add_loop_test(tests, reference_texts_give_the_reference_ids, 0, 5);
    tcase_add_test(tests, stories_begin_with_bos);
    tcase_add_test(tests, long_texts_match_an_independent_encoder);
    tcase_add_loop_test(tests, streams_whole_characters_only, 0, 5);
    tcase_add_test(tests, decoding_mends_strips_and_skips);
    tcase_add_test(tests, specials_are_parsed_or_literal);
    tcase_add_test(tests, text_that_goes_on_has_no_dummy_space);
    tcase_add_loop_test(tests, long_words_are_fast_and_whole, 0, 5);
    tcase_add_test(tests, broken_text_is_an_error_with_its_place);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
