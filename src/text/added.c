#define _GNU_SOURCE
#include "text/added.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/grow.h"
#include "text/utf8.h"

size_t ql_added_reach(const ql_json_at *root)
{
    size_t reach = 0, i;
    json_t *item;
    json_array_foreach(ql_json_member(root, "added_tokens"), i, item)
    {
        json_int_t id = json_integer_value(json_object_get(item, "id"));
        if (id >= 0 && id <= QL_MAX_ID && (size_t)id >= reach)
            reach = (size_t)id + 1;
    }
    return reach;
}

static ql_status put_pattern(ql_added *added, ql_added_token *token, const ql_edits *normalizer, const char *text,
                             size_t length, ql_error *err)
{
    ql_text buffers[2] = {{0}};
    ql_status status = QL_OK;
    if (token->normalized)
        status = ql_edits_apply(normalizer, QL_PLACE_START, text, length, buffers, &text, &length, err);
    token->begin = added->patterns.length;
    token->length = length;
    if (!status && !length)
        status = ql_fail(err, QL_ERR_FORMAT, "added token %d: the normalizer leaves nothing of it", token->id);
    if (!status && !ql_text_add(&added->patterns, text, length))
        status = ql_fail(err, QL_ERR_MEMORY, "added tokens: out of memory");
    ql_text_free(&buffers[0]);
    ql_text_free(&buffers[1]);
    return status;
}

static ql_status load_token(ql_added *added, ql_vocab *vocab, const ql_edits *normalizer, const ql_json_at *item,
                            ql_error *err)
{
    const char *text = NULL;
    size_t length = 0;
    int64_t id = 0;
    ql_added_token token = {0};
    const struct {
        const char *key;
        bool *flag;
    } flags[] = {
        {"special", &token.special}, {"normalized", &token.normalized}, {"single_word", &token.single_word},
        {"lstrip", &token.lstrip},   {"rstrip", &token.rstrip},
    };
    ql_status status = ql_json_get_string(item, "content", QL_REQUIRED, &text, &length, err);
    if (!status)
        status = ql_json_get_int(item, "id", QL_REQUIRED, 0, QL_MAX_ID, &id, err);
    for (size_t i = 0; i < sizeof flags / sizeof *flags && !status; i++)
        status = ql_json_get_bool(item, flags[i].key, QL_OPTIONAL, flags[i].flag, err);
    if (status)
        return status;
    if (!length)
        return ql_json_expected(item, "a token that is not empty", err);
    token.id = (int32_t)id;
    if ((status = ql_vocab_put(vocab, text, length, id, err)))
        return ql_fail_in(err, status, "%s: %s", item->file, item->path);
    added->kinds[id] = token.special ? 2 : 1;
    status = put_pattern(added, &token, normalizer, text, length, err);
    if (!status)
        added->tokens[added->count++] = token;
    return status;
}

static int by_first_byte(const void *a, const void *b, void *patterns)
{
    const ql_added_token *x = a, *y = b;
    int first = (uint8_t)((char *)patterns)[x->begin] - (uint8_t)((char *)patterns)[y->begin];
    return first ? first : (x->length < y->length) - (x->length > y->length);
}

static void index_tokens(ql_added *added)
{
    qsort_r(added->tokens, added->count, sizeof *added->tokens, by_first_byte, added->patterns.data);
    size_t at = 0;
    for (size_t byte = 0; byte < 256; byte++) {
        added->first[byte] = at;
        while (at < added->count && (uint8_t)added->patterns.data[added->tokens[at].begin] == byte)
            at++;
    }
    added->first[256] = at;
}

ql_status ql_added_load(ql_added *added, ql_vocab *vocab, const ql_edits *normalizer, const ql_json_at *root,
                        ql_error *err)
{
    ql_json_at list;
    ql_status status = ql_json_get_array(root, "added_tokens", QL_OPTIONAL, &list, err);
    size_t count = status ? 0 : json_array_size(list.value);
    added->kinds = calloc(vocab->count, 1);
    added->tokens = calloc(count + 1, sizeof *added->tokens);
    if (!added->kinds || !added->tokens)
        return ql_fail(err, QL_ERR_MEMORY, "added tokens: out of memory");
    for (size_t i = 0; i < count && !status; i++) {
        ql_json_at item = ql_json_element(&list, i);
        status = load_token(added, vocab, normalizer, &item, err);
    }
    index_tokens(added);
    return status;
}

void ql_added_free(ql_added *added)
{
    ql_text_free(&added->patterns);
    free(added->tokens);
    free(added->kinds);
    *added = (ql_added){0};
}

static bool stands_alone(const char *text, size_t length, size_t begin, size_t end)
{
    return !(begin > 0 && ql_is_word(ql_utf8_before(text, begin))) &&
           !(end < length && ql_is_word(ql_utf8_next(text + end, length - end).code));
}

static void swallow_space(const ql_added_token *token, const char *text, size_t length, size_t floor, ql_match *match)
{
    while (token->lstrip && match->begin > floor && ql_is_space(ql_utf8_before(text, match->begin)))
        do
            match->begin--;
        while (((uint8_t)text[match->begin] & 0xc0) == 0x80);
    while (token->rstrip && match->end < length) {
        ql_utf8 c = ql_utf8_next(text + match->end, length - match->end);
        if (!ql_is_space(c.code))
            break;
        match->end += c.length;
    }
}

bool ql_added_find(const ql_added *added, bool normalized, const char *text, size_t length, size_t floor,
                   ql_literals literals, ql_match *match)
{
    for (size_t at = floor; at < length && added->count; at++) {
        size_t i = added->first[(uint8_t)text[at]], end = added->first[(uint8_t)text[at] + 1];
        for (; i < end; i++) {
            const ql_added_token *token = &added->tokens[i];
            if (token->normalized != normalized || token->length > length - at ||
                memcmp(text + at, added->patterns.data + token->begin, token->length) != 0)
                continue;
            while (literals.count && literals.spans->end <= at)
                literals.spans++, literals.count--;
            if (token->special && literals.count && literals.spans->begin <= at)
                continue;
            if (token->single_word && !stands_alone(text, length, at, at + token->length))
                continue;
            *match = (ql_match){at, at + token->length, token->id};
            swallow_space(token, text, length, floor, match);
            return true;
        }
    }
    return false;
}
