#include <string.h>

#include "fuzz.h"

static void decode(const ql_tokenizer *tokenizer, const ql_ids *ids)
{
    ql_text whole = {0}, pieces = {0};
    ql_decoder *decoder;
    ql_error err = {0};
    for (unsigned flags = 0; flags < 4; flags++) {
        whole.length = pieces.length = 0;
        FUZZ_CHECK(ql_tokenizer_decode(tokenizer, ids->data, ids->count, flags, &whole, &err) == QL_OK);
        FUZZ_CHECK(ql_decoder_create(&decoder, tokenizer, flags, &err) == QL_OK);
        for (size_t i = 0; i < ids->count; i++)
            FUZZ_CHECK(ql_decoder_push(decoder, ids->data[i], &pieces, &err) == QL_OK);
        FUZZ_CHECK(ql_decoder_finish(decoder, &pieces, &err) == QL_OK);
        FUZZ_CHECK(whole.length == pieces.length && (!whole.length || !memcmp(whole.data, pieces.data, whole.length)));
        ql_decoder_destroy(decoder);
    }
    ql_text_free(&whole);
    ql_text_free(&pieces);
}

static void encode(ql_tokenizer *tokenizer, fuzz_part text)
{
    ql_ids ids = {0};
    ql_error err = {0};
    size_t vocab = ql_tokenizer_vocab(tokenizer);
    for (unsigned flags = 0; flags < 8; flags++) {
        ids.count = 0;
        if (!fuzz_went_well(
                ql_tokenizer_encode(tokenizer, (const char *)text.data, text.size, flags, &ids, &err), &err))
            continue;
        for (size_t i = 0; i < ids.count; i++)
            FUZZ_CHECK(ids.data[i] >= 0 && (size_t)ids.data[i] < vocab);
        if (flags < 2)
            decode(tokenizer, &ids);
    }
    ql_ids_free(&ids);
}

static void chat(ql_tokenizer *tokenizer, const char *name, fuzz_part text)
{
    const char *content = (const char *)text.data;
    const ql_message messages[] = {
        {"system", "Be brief.", 9}, {"user", content, text.size}, {"assistant", content, text.size / 2}, {"user", "?", 1}};
    ql_error err = {0};
    for (size_t first = 0; first < 2; first++) {
        ql_ids ids = {0};
        ql_marks learn = {0};
        size_t count = sizeof messages / sizeof *messages - first;
        if (fuzz_went_well(
                ql_chat_encode(tokenizer, name, messages + first, count - first, first, &ids, &learn, &err), &err))
            FUZZ_CHECK(ids.count == learn.count);
        ql_ids_free(&ids);
        ql_marks_free(&learn);
    }
}

/* The highest id stands at the end of the vocabulary's table. */
static void look_up(const ql_tokenizer *tokenizer)
{
    size_t vocab = ql_tokenizer_vocab(tokenizer), ends;
    const int32_t specials[] = {ql_tokenizer_bos(tokenizer), ql_tokenizer_eos(tokenizer), ql_tokenizer_pad(tokenizer),
                                ql_tokenizer_unk(tokenizer), (int32_t)vocab - 1, (int32_t)vocab};
    for (size_t i = 0; i < sizeof specials / sizeof *specials; i++) {
        const char *token = ql_tokenizer_token(tokenizer, specials[i]);
        FUZZ_CHECK(specials[i] >= -1 && specials[i] <= (int32_t)vocab);
        if (token && *token) /* a token may hold NUL, and is then another's name */
            FUZZ_CHECK(ql_tokenizer_id(tokenizer, token) >= -1);
        ql_tokenizer_is_end(tokenizer, specials[i]);
    }
    ql_tokenizer_ends(tokenizer, &ends);
}

void fuzz_use_tokenizer(ql_tokenizer *tokenizer, fuzz_part text)
{
    look_up(tokenizer);
    encode(tokenizer, text);
    chat(tokenizer, NULL, text);
    chat(tokenizer, "llama2", text);
}
