#include "text/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/grow.h"
#include "text/hash.h"

enum { MAX_ID = 1 << 24 }; /* no model has so many rows of embedding */

static size_t slot_of(const ql_vocab *vocab, const char *text, size_t length)
{
    size_t slot = ql_hash(text, length) & vocab->mask;
    while (vocab->slots[slot] >= 0) {
        const ql_token *token = &vocab->tokens[vocab->slots[slot]];
        if (token->length == length && memcmp(vocab->texts.data + token->begin, text, length) == 0)
            break;
        slot = (slot + 1) & vocab->mask;
    }
    return slot;
}

int32_t ql_vocab_find(const ql_vocab *vocab, const char *text, size_t length)
{
    return vocab->slots ? vocab->slots[slot_of(vocab, text, length)] : -1;
}

const char *ql_vocab_text(const ql_vocab *vocab, int32_t id, size_t *length)
{
    if (id < 0 || (size_t)id >= vocab->count || !vocab->tokens[id].begin)
        return NULL;
    if (length)
        *length = vocab->tokens[id].length;
    return vocab->texts.data + vocab->tokens[id].begin;
}

ql_status ql_vocab_put(ql_vocab *vocab, const char *text, size_t length, int64_t id, ql_error *err)
{
    if (id < 0 || (size_t)id >= vocab->count)
        return ql_fail(err, QL_ERR_FORMAT, "token \"%.40s\": id %lld is out of range", text, (long long)id);
    size_t slot = slot_of(vocab, text, length);
    if (vocab->slots[slot] == id)
        return QL_OK;
    if (vocab->slots[slot] >= 0)
        return ql_fail(err, QL_ERR_FORMAT, "token \"%.40s\" has two ids, %d and %lld", text, vocab->slots[slot],
                       (long long)id);
    const char *other = ql_vocab_text(vocab, (int32_t)id, NULL);
    if (other)
        return ql_fail(err, QL_ERR_FORMAT, "id %lld has two tokens, \"%.40s\" and \"%.40s\"", (long long)id, other, text);
    vocab->tokens[id] = (ql_token){vocab->texts.length, length};
    vocab->slots[slot] = (int32_t)id;
    if (!ql_text_add(&vocab->texts, text, length) || !ql_text_add(&vocab->texts, "", 1))
        return ql_fail(err, QL_ERR_MEMORY, "vocabulary: out of memory");
    return QL_OK;
}

ql_status ql_vocab_load(ql_vocab *vocab, const json_t *texts, size_t least, ql_error *err)
{
    if (!json_is_object(texts) || !json_object_size(texts))
        return ql_fail(err, QL_ERR_FORMAT, "model.vocab is not an object of tokens and ids");
    size_t count = least;
    const char *text;
    json_t *id;
    json_object_foreach ((json_t *)texts, text, id) {
        json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value >= MAX_ID)
            return ql_fail(err, QL_ERR_FORMAT, "model.vocab: token \"%.40s\": its id is no integer from 0 to %d", text,
                           MAX_ID - 1);
        count = (size_t)value >= count ? (size_t)value + 1 : count;
    }
    if (count > MAX_ID)
        return ql_fail(err, QL_ERR_FORMAT, "added_tokens: an id above %d", MAX_ID - 1);
    vocab->count = count;
    vocab->mask = ql_hash_mask(count);
    vocab->tokens = calloc(count, sizeof *vocab->tokens);
    vocab->slots = malloc((vocab->mask + 1) * sizeof *vocab->slots);
    if (!vocab->tokens || !vocab->slots || !ql_text_add(&vocab->texts, "", 1)) /* begin 0 means: none */
        return ql_fail(err, QL_ERR_MEMORY, "vocabulary of %zu tokens: out of memory", count);
    memset(vocab->slots, 0xff, (vocab->mask + 1) * sizeof *vocab->slots);
    json_object_foreach ((json_t *)texts, text, id) {
        ql_status status = ql_vocab_put(vocab, text, strlen(text), json_integer_value(id), err);
        if (status)
            return ql_fail_in(err, status, "model.vocab");
    }
    return QL_OK;
}

void ql_vocab_free(ql_vocab *vocab)
{
    ql_text_free(&vocab->texts);
    free(vocab->tokens);
    free(vocab->slots);
    *vocab = (ql_vocab){0};
}

static size_t merge_slot(const ql_merges *merges, int32_t left, int32_t right)
{
    size_t slot = ql_hash_mix((uint32_t)left, (uint32_t)right) & merges->mask;
    while (merges->slots[slot].left >= 0 && (merges->slots[slot].left != left || merges->slots[slot].right != right))
        slot = (slot + 1) & merges->mask;
    return slot;
}

const ql_merge *ql_merges_find(const ql_merges *merges, int32_t left, int32_t right)
{
    const ql_merge *found = &merges->slots[merge_slot(merges, left, right)];
    return found->left >= 0 ? found : NULL;
}

typedef struct span {
    const char *text;
    size_t length;
} span;

/* The two halves of a merge in either layout; false when it is neither. */
static bool halves(const json_t *item, span *left, span *right)
{
    if (json_is_string(item)) {
        const char *text = json_string_value(item), *space = strchr(text, ' ');
        if (!space || strchr(space + 1, ' '))
            return false;
        *left = (span){text, (size_t)(space - text)};
        *right = (span){space + 1, strlen(space + 1)};
        return true;
    }
    const char *a = json_string_value(json_array_get(item, 0)), *b = json_string_value(json_array_get(item, 1));
    if (json_array_size(item) != 2 || !a || !b)
        return false;
    *left = (span){a, strlen(a)};
    *right = (span){b, strlen(b)};
    return true;
}

static ql_status put_merge(ql_merges *merges, const json_t *item, uint32_t rank, const ql_vocab *vocab, ql_error *err)
{
    span left, right;
    char joined[1024];
    if (!halves(item, &left, &right))
        return ql_fail(err, QL_ERR_FORMAT, "model.merges: number %u is neither \"a b\" nor [\"a\", \"b\"]", rank);
    if (left.length + right.length > sizeof joined)
        return ql_fail(err, QL_ERR_FORMAT, "model.merges: number %u makes a token of more than %zu bytes", rank,
                       sizeof joined);
    memcpy(joined, left.text, left.length);
    memcpy(joined + left.length, right.text, right.length);
    int32_t a = ql_vocab_find(vocab, left.text, left.length), b = ql_vocab_find(vocab, right.text, right.length);
    int32_t merged = ql_vocab_find(vocab, joined, left.length + right.length);
    if (a < 0 || b < 0 || merged < 0)
        return ql_fail(err, QL_ERR_FORMAT, "model.merges: number %u (\"%.40s\"): a part or the whole is not in model.vocab",
                       rank, left.text);
    merges->slots[merge_slot(merges, a, b)] = (ql_merge){a, b, merged, rank};
    return QL_OK;
}

ql_status ql_merges_load(ql_merges *merges, const json_t *list, const ql_vocab *vocab, ql_error *err)
{
    if (!json_is_array(list))
        return ql_fail(err, QL_ERR_FORMAT, "model.merges is not an array");
    size_t count = json_array_size(list);
    if (count > UINT32_MAX / 2)
        return ql_fail(err, QL_ERR_FORMAT, "model.merges: %zu are too many", count);
    merges->mask = ql_hash_mask(count);
    merges->slots = malloc((merges->mask + 1) * sizeof *merges->slots);
    if (!merges->slots)
        return ql_fail(err, QL_ERR_MEMORY, "%zu merges: out of memory", count);
    memset(merges->slots, 0xff, (merges->mask + 1) * sizeof *merges->slots);
    for (size_t i = 0; i < count; i++) {
        ql_status status = put_merge(merges, json_array_get(list, i), (uint32_t)i, vocab, err);
        if (status)
            return status;
    }
    return QL_OK;
}

void ql_merges_free(ql_merges *merges)
{
    free(merges->slots);
    *merges = (ql_merges){0};
}
