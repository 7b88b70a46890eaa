#include "text/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "text/grow.h"

enum { MOST_HOLES = 64 }; /* ids for each token: what a file makes us allocate goes by its size */

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
        return ql_fail(err, QL_ERR_FORMAT, "id %lld has two tokens, \"%.40s\" and \"%.40s\"", (long long)id, other,
                       text);
    vocab->tokens[id] = (ql_token){vocab->texts.length, length};
    vocab->slots[slot] = (int32_t)id;
    if (!ql_text_add(&vocab->texts, text, length) || !ql_text_add(&vocab->texts, "", 1))
        return ql_fail(err, QL_ERR_MEMORY, "vocabulary: out of memory");
    return QL_OK;
}

static ql_status allocate(ql_vocab *vocab, size_t count, ql_error *err)
{
    vocab->count = count;
    vocab->mask = ql_hash_mask(count);
    vocab->tokens = calloc(count, sizeof *vocab->tokens);
    vocab->slots = malloc((vocab->mask + 1) * sizeof *vocab->slots);
    if (!vocab->tokens || !vocab->slots || !ql_text_add(&vocab->texts, "", 1)) /* begin 0 means: none */
        return ql_fail(err, QL_ERR_MEMORY, "vocabulary of %zu tokens: out of memory", count);
    memset(vocab->slots, 0xff, (vocab->mask + 1) * sizeof *vocab->slots);
    return QL_OK;
}

ql_status ql_vocab_load(ql_vocab *vocab, const ql_json_at *model, size_t least, size_t added, ql_error *err)
{
    ql_json_at texts;
    ql_status status = ql_json_get_object(model, "vocab", QL_REQUIRED, &texts, err);
    if (status)
        return status;
    size_t count = least, length;
    const char *text;
    json_t *id;
    json_object_keylen_foreach((json_t *)texts.value, text, length, id)
    {
        json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value > QL_MAX_ID)
            return ql_fail(err, QL_ERR_FORMAT, "%s: model.vocab: the id of \"%.40s\" is no integer from 0 to %d",
                           model->file, text, QL_MAX_ID);
        count = (size_t)value >= count ? (size_t)value + 1 : count;
    }
    if (!count)
        return ql_json_expected(&texts, "tokens and ids", err);
    if (count / MOST_HOLES > json_object_size(texts.value) + added + 1024)
        return ql_fail(err, QL_ERR_FORMAT, "%s: model.vocab: %zu tokens with ids up to %zu: this is no vocabulary",
                       model->file, json_object_size(texts.value) + added, count - 1);
    if ((status = allocate(vocab, count, err)))
        return status;
    json_object_keylen_foreach((json_t *)texts.value, text, length, id)
    {
        if ((status = ql_vocab_put(vocab, text, length, json_integer_value(id), err)))
            return ql_fail_in(err, status, "%s: model.vocab", model->file);
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
        *right = (span){space + 1, json_string_length(item) - left->length - 1};
        return true;
    }
    const json_t *a = json_array_get(item, 0), *b = json_array_get(item, 1);
    if (json_array_size(item) != 2 || !json_is_string(a) || !json_is_string(b))
        return false;
    *left = (span){json_string_value(a), json_string_length(a)};
    *right = (span){json_string_value(b), json_string_length(b)};
    return true;
}

ql_status ql_merges_reserve(ql_merges *merges, size_t count, ql_error *err)
{
    merges->mask = ql_hash_mask(count);
    merges->slots = count < UINT32_MAX ? malloc((merges->mask + 1) * sizeof *merges->slots) : NULL;
    if (!merges->slots)
        return ql_fail(err, QL_ERR_MEMORY, "%zu merges: out of memory", count);
    memset(merges->slots, 0xff, (merges->mask + 1) * sizeof *merges->slots);
    return QL_OK;
}

void ql_merges_put(ql_merges *merges, ql_merge merge)
{
    merges->slots[merge_slot(merges, merge.left, merge.right)] = merge;
}

static ql_status put_merge(ql_merges *merges, const json_t *item, uint32_t rank, const ql_vocab *vocab, ql_error *err)
{
    span left, right;
    char joined[1024];
    if (!halves(item, &left, &right))
        return ql_fail(err, QL_ERR_FORMAT, "neither \"a b\" nor [\"a\", \"b\"]");
    if (left.length > sizeof joined || right.length > sizeof joined - left.length)
        return ql_fail(err, QL_ERR_FORMAT, "a token of more than %zu bytes", sizeof joined);
    memcpy(joined, left.text, left.length);
    memcpy(joined + left.length, right.text, right.length);
    int32_t a = ql_vocab_find(vocab, left.text, left.length), b = ql_vocab_find(vocab, right.text, right.length);
    int32_t merged = ql_vocab_find(vocab, joined, left.length + right.length);
    if (a < 0 || b < 0 || merged < 0)
        return ql_fail(err, QL_ERR_FORMAT, "model.vocab lacks a part of it or the whole");
    ql_merges_put(merges, (ql_merge){a, b, merged, rank});
    return QL_OK;
}

ql_status ql_merges_load(ql_merges *merges, const ql_json_at *model, const ql_vocab *vocab, ql_error *err)
{
    ql_json_at list;
    ql_status status = ql_json_get_array(model, "merges", QL_REQUIRED, &list, err);
    if (status)
        return status;
    size_t count = json_array_size(list.value);
    status = ql_merges_reserve(merges, count, err);
    for (size_t i = 0; i < count && !status; i++) {
        status = put_merge(merges, json_array_get(list.value, i), (uint32_t)i, vocab, err);
        if (status)
            ql_fail_in(err, status, "%s: model.merges[%zu]", model->file, i);
    }
    return status;
}

void ql_merges_free(ql_merges *merges)
{
    free(merges->slots);
    *merges = (ql_merges){0};
}
