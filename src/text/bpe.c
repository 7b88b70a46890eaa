#include "text/bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "text/grow.h"
#include "text/utf8.h"

enum { CACHE_SLOTS = 1 << 15, CACHE_BYTES = 22, CACHE_IDS = 10 };

struct ql_bpe_cached { /* a cache line; the last word that came to the slot stays */
    uint8_t length, count;
    char word[CACHE_BYTES];
    int32_t ids[CACHE_IDS];
};

static bool printable(uint32_t byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xff && byte != 0xad);
}

/* The others follow from U+0100 on, in order: 00-20, 7F-A0, AD. */
uint32_t ql_byte_to_char(uint8_t byte)
{
    if (printable(byte))
        return byte;
    return 0x100 + (byte <= 0x20 ? byte : byte <= 0xa0 ? byte - 0x7fu + 0x21 : 0x43);
}

int ql_char_to_byte(uint32_t code)
{
    if (code < 0x100)
        return printable(code) ? (int)code : -1;
    uint32_t index = code - 0x100;
    return index <= 0x20 ? (int)index : index <= 0x42 ? (int)(index - 0x21 + 0x7f) : index == 0x43 ? 0xad : -1;
}

static ql_status need_default(const ql_json_at *model, const char *key, ql_error *err)
{
    const json_t *value = ql_json_member(model, key);
    if (!value || json_is_null(value) || (json_is_string(value) && !json_string_length(value)) ||
        (json_is_number(value) && json_number_value(value) == 0))
        return QL_OK;
    return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: model.%s is not supported", model->file, key);
}

static ql_status load_settings(ql_bpe *bpe, const ql_json_at *model, ql_error *err)
{
    const char *unk = NULL;
    ql_status status = need_default(model, "dropout", err);
    if (!status)
        status = need_default(model, "continuing_subword_prefix", err);
    if (!status)
        status = need_default(model, "end_of_word_suffix", err);
    if (!status)
        status = ql_json_get_bool(model, "fuse_unk", QL_OPTIONAL, &bpe->fuse_unk, err);
    if (!status)
        status = ql_json_get_bool(model, "byte_fallback", QL_OPTIONAL, &bpe->fallback, err);
    if (!status)
        status = ql_json_get_bool(model, "ignore_merges", QL_OPTIONAL, &bpe->ignore_merges, err);
    if (!status)
        status = ql_json_get_string(model, "unk_token", QL_OPTIONAL, &unk, NULL, err);
    if (!status && unk && (bpe->unk = ql_vocab_find(bpe->vocab, unk, strlen(unk))) < 0)
        status =
            ql_fail(err, QL_ERR_FORMAT, "%s: model.unk_token \"%.40s\" is not in the vocabulary", model->file, unk);
    return status;
}

static void find_bytes(ql_bpe *bpe)
{
    for (int byte = 0; byte < 256; byte++) {
        char text[8];
        size_t length = bpe->bytes ? ql_utf8_put(ql_byte_to_char((uint8_t)byte), text)
                                   : (size_t)snprintf(text, sizeof text, "<0x%02X>", byte);
        bpe->byte_ids[byte] = ql_vocab_find(bpe->vocab, text, length);
    }
}

ql_status ql_bpe_load(ql_bpe *bpe, const ql_vocab *vocab, bool bytes, const ql_json_at *model, ql_error *err)
{
    bpe->vocab = vocab;
    bpe->bytes = bytes;
    bpe->unk = -1;
    ql_status status = load_settings(bpe, model, err);
    if (!status)
        status = ql_merges_load(&bpe->merges, model, vocab, err);
    if (status)
        return status;
    find_bytes(bpe);
    bpe->cache = calloc(CACHE_SLOTS, sizeof *bpe->cache);
    return bpe->cache ? QL_OK : ql_fail(err, QL_ERR_MEMORY, "tokenizer: out of memory");
}

void ql_bpe_free(ql_bpe *bpe)
{
    ql_merges_free(&bpe->merges);
    ql_text_free(&bpe->spelled);
    free(bpe->cache);
    free(bpe->symbols);
    free(bpe->heap);
    *bpe = (ql_bpe){0};
}

static bool add_symbol(ql_bpe *bpe, int32_t id)
{
    size_t at = bpe->symbol_count;
    if (at >= UINT32_MAX / 2 || !ql_grow((void **)&bpe->symbols, &bpe->symbol_capacity, at, 1, sizeof *bpe->symbols))
        return false;
    bpe->symbols[bpe->symbol_count++] = (ql_bpe_symbol){id, (uint32_t)at - 1, (uint32_t)at + 1};
    return true;
}

static ql_status no_token(const char *bytes, size_t length, ql_error *err)
{
    char hex[16];
    for (size_t i = 0; i < length && i < 4; i++)
        sprintf(hex + 3 * i, " %02X", (uint8_t)bytes[i]);
    return ql_fail(err, QL_ERR_UNSUPPORTED,
                   "the vocabulary has no token for the bytes%s, nor an unknown token to stand for them", hex);
}

/* The symbols of one character that has no token of its own. */
static ql_status add_unknown(ql_bpe *bpe, const char *bytes, size_t length, ql_error *err)
{
    bool all = bpe->fallback;
    for (size_t i = 0; i < length; i++)
        all = all && bpe->byte_ids[(uint8_t)bytes[i]] >= 0;
    bool fits = true;
    if (all) {
        for (size_t i = 0; i < length; i++)
            fits = fits && add_symbol(bpe, bpe->byte_ids[(uint8_t)bytes[i]]);
    } else if (bpe->unk < 0) {
        return no_token(bytes, length, err);
    } else if (!bpe->fuse_unk || !bpe->symbol_count || bpe->symbols[bpe->symbol_count - 1].id != bpe->unk) {
        fits = add_symbol(bpe, bpe->unk);
    }
    return fits ? QL_OK : ql_fail(err, QL_ERR_MEMORY, "tokenizing: out of memory");
}

static ql_status fill_symbols(ql_bpe *bpe, const char *word, size_t length, ql_error *err)
{
    ql_status status = QL_OK;
    bpe->symbol_count = 0;
    for (size_t at = 0, size; at < length && !status; at += size) {
        size = bpe->bytes ? 1 : ql_utf8_next(word + at, length - at).length;
        int32_t id = bpe->bytes ? bpe->byte_ids[(uint8_t)word[at]] : ql_vocab_find(bpe->vocab, word + at, size);
        if (id < 0)
            status = add_unknown(bpe, word + at, size, err);
        else if (!add_symbol(bpe, id))
            status = ql_fail(err, QL_ERR_MEMORY, "tokenizing: out of memory");
    }
    return status;
}

static bool push(ql_bpe *bpe, uint64_t entry)
{
    if (!ql_grow((void **)&bpe->heap, &bpe->heap_capacity, bpe->heap_count, 1, sizeof *bpe->heap))
        return false;
    size_t at = bpe->heap_count++;
    for (size_t up; at && bpe->heap[up = (at - 1) / 2] > entry; at = up)
        bpe->heap[at] = bpe->heap[up];
    bpe->heap[at] = entry;
    return true;
}

static uint64_t pop(ql_bpe *bpe)
{
    uint64_t least = bpe->heap[0], last = bpe->heap[--bpe->heap_count];
    size_t at = 0, down;
    while ((down = 2 * at + 1) < bpe->heap_count) {
        down += down + 1 < bpe->heap_count && bpe->heap[down + 1] < bpe->heap[down];
        if (bpe->heap[down] >= last)
            break;
        bpe->heap[at] = bpe->heap[down];
        at = down;
    }
    bpe->heap[at] = last;
    return least;
}

/* The merge of the symbol at `at` with the one after it; NULL: none. */
static const ql_merge *merge_at(const ql_bpe *bpe, size_t at)
{
    const ql_bpe_symbol *symbol = &bpe->symbols[at];
    if (symbol->id < 0 || symbol->next >= bpe->symbol_count)
        return NULL;
    return ql_merges_find(&bpe->merges, symbol->id, bpe->symbols[symbol->next].id);
}

static bool propose(ql_bpe *bpe, size_t at)
{
    const ql_merge *merge = merge_at(bpe, at);
    return !merge || push(bpe, (uint64_t)merge->rank << 32 | at);
}

static bool merge_all(ql_bpe *bpe)
{
    bpe->heap_count = 0;
    for (size_t at = 0; at < bpe->symbol_count; at++)
        if (!propose(bpe, at))
            return false;
    while (bpe->heap_count) {
        uint64_t entry = pop(bpe);
        size_t at = (uint32_t)entry;
        const ql_merge *merge = merge_at(bpe, at);
        if (!merge || merge->rank != entry >> 32)
            continue; /* one of the two has gone into another merge */
        ql_bpe_symbol *symbol = &bpe->symbols[at], *gone = &bpe->symbols[symbol->next];
        symbol->id = merge->merged;
        symbol->next = gone->next;
        gone->id = -1;
        if (symbol->next < bpe->symbol_count)
            bpe->symbols[symbol->next].previous = (uint32_t)at;
        if (!propose(bpe, at) || (at > 0 && !propose(bpe, symbol->previous)))
            return false;
    }
    return true;
}

/* The word as the vocabulary spells it, when that is a token; else -1. */
static int32_t whole_word(ql_bpe *bpe, const char *word, size_t length)
{
    if (!bpe->bytes)
        return ql_vocab_find(bpe->vocab, word, length);
    bpe->spelled.length = 0;
    for (size_t i = 0; i < length; i++) {
        char spelled[4];
        if (!ql_text_add(&bpe->spelled, spelled, ql_utf8_put(ql_byte_to_char((uint8_t)word[i]), spelled)))
            return -1;
    }
    return ql_vocab_find(bpe->vocab, bpe->spelled.data, bpe->spelled.length);
}

static ql_status encode(ql_bpe *bpe, const char *word, size_t length, ql_ids *ids, ql_error *err)
{
    int32_t whole = bpe->ignore_merges ? whole_word(bpe, word, length) : -1;
    bool fits = true;
    if (whole >= 0) {
        fits = ql_ids_add(ids, &whole, 1);
    } else {
        ql_status status = fill_symbols(bpe, word, length, err);
        if (status)
            return status;
        fits = merge_all(bpe);
        for (size_t at = 0; fits && at < bpe->symbol_count; at = bpe->symbols[at].next)
            fits = ql_ids_add(ids, &bpe->symbols[at].id, 1);
    }
    return fits ? QL_OK : ql_fail(err, QL_ERR_MEMORY, "tokenizing: out of memory");
}

ql_status ql_bpe_encode(ql_bpe *bpe, const char *word, size_t length, ql_ids *ids, ql_error *err)
{
    if (length > CACHE_BYTES)
        return encode(bpe, word, length, ids, err);
    ql_bpe_cached *cached = &bpe->cache[ql_hash(word, length) % CACHE_SLOTS];
    if (cached->length == length && memcmp(cached->word, word, length) == 0) {
        if (ql_ids_add(ids, cached->ids, cached->count))
            return QL_OK;
        return ql_fail(err, QL_ERR_MEMORY, "tokenizing: out of memory");
    }
    size_t before = ids->count;
    ql_status status = encode(bpe, word, length, ids, err);
    size_t made = ids->count - before;
    if (!status && made && made <= CACHE_IDS) {
        *cached = (ql_bpe_cached){.length = (uint8_t)length, .count = (uint8_t)made};
        memcpy(cached->word, word, length);
        memcpy(cached->ids, ids->data + before, made * sizeof *cached->ids);
    }
    return status;
}
