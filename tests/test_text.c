/* Tokenizers: ids that other programs found for the reference texts, round trips, streaming, added tokens, and files
 * that must be refused. */
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

static void assert_decodes(const ql_tokenizer *t, const int32_t *ids, size_t count, unsigned flags, const char *wanted)
{
    ql_text text = {0};
    ql_error err = {0};
    ck_assert_ok(ql_tokenizer_decode(t, ids, count, flags, &text, &err), &err);
    ck_assert_str_eq(text.data ? text.data : "", wanted);
    ql_text_free(&text);
}

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
