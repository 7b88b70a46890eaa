#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/grow.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

struct ql_decoder {
    const ql_tokenizer *tokenizer;
    unsigned flags;
    size_t strip;    /* leading spaces still to take away */
    char pending[4]; /* the beginning of a character */
    size_t pending_count;
};

static ql_status load_replace(ql_spelling *spelling, const ql_json_at *step, ql_error *err)
{
    ql_json_at pattern;
    if (spelling->from[0])
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: decoder: more than one Replace", step->file);
    ql_status status = ql_json_get_object(step, "pattern", QL_REQUIRED, &pattern, err);
    if (!status)
        status = ql_short_string(spelling->from, sizeof spelling->from, &pattern, "String", err);
    return status ? status : ql_short_string(spelling->to, sizeof spelling->to, step, "content", err);
}

static ql_status load_strip(ql_spelling *spelling, const ql_json_at *step, ql_error *err)
{
    char content[8];
    size_t start = 0, stop = 0;
    ql_status status = ql_short_string(content, sizeof content, step, "content", err);
    if (!status)
        status = ql_json_get_size(step, "start", QL_REQUIRED, 0, 1024, &start, err);
    if (!status)
        status = ql_json_get_size(step, "stop", QL_REQUIRED, 0, 1024, &stop, err);
    if (!status && (strcmp(content, " ") != 0 || stop))
        status = ql_fail(err, QL_ERR_UNSUPPORTED, "%s: decoder: Strip is supported for spaces at the start only",
                         step->file);
    spelling->strip = start;
    return status;
}

static ql_status load_metaspace(ql_spelling *spelling, const ql_json_at *step, ql_error *err)
{
    const char *scheme = NULL;
    bool prefix = true;
    ql_status status = ql_short_string(spelling->from, sizeof spelling->from, step, "replacement", err);
    if (!status)
        status = ql_json_get_string(step, "prepend_scheme", QL_OPTIONAL, &scheme, NULL, err);
    if (!status)
        status = ql_json_get_bool(step, "add_prefix_space", QL_OPTIONAL, &prefix, err);
    if (scheme)
        prefix = strcmp(scheme, "never") != 0;
    spelling->strip = prefix;
    strcpy(spelling->to, " ");
    return status;
}

static ql_status load_step(void *ctx, const ql_json_at *step, const char *type, ql_error *err)
{
    ql_spelling *spelling = ctx;
    if (strcmp(type, "ByteLevel") == 0)
        spelling->bytes = true;
    else if (strcmp(type, "ByteFallback") == 0)
        spelling->fallback = true;
    else if (strcmp(type, "Replace") == 0)
        return load_replace(spelling, step, err);
    else if (strcmp(type, "Strip") == 0)
        return load_strip(spelling, step, err);
    else if (strcmp(type, "Metaspace") == 0)
        return load_metaspace(spelling, step, err);
    else if (strcmp(type, "Fuse") != 0)
        return ql_fail(err, QL_ERR_UNSUPPORTED,
                       "%s: decoder %s is not supported; known: ByteLevel, ByteFallback, Replace, Fuse, Strip, "
                       "Metaspace, Sequence",
                       step->file, type);
    return QL_OK;
}

ql_status ql_spelling_load(ql_spelling *spelling, bool bytes, const ql_json_at *root, ql_error *err)
{
    ql_status status = ql_steps_load(root, "decoder", "decoders", load_step, spelling, err);
    if (!status && spelling->bytes != bytes)
        return ql_fail(err, QL_ERR_UNSUPPORTED,
                       "%s: of pre_tokenizer and decoder one is ByteLevel and the other is not", root->file);
    return status;
}

static void begin(ql_decoder *d)
{
    d->strip = d->flags & QL_DECODE_CONTINUE ? 0 : d->tokenizer->spelling.strip;
    d->pending_count = 0;
}

static bool put(ql_decoder *d, const char *text, size_t length, ql_text *out)
{
    while (d->strip && length && *text == ' ')
        text++, length--, d->strip--;
    if (length)
        d->strip = 0;
    return ql_text_add(out, text, length);
}

/* Puts out what the pending bytes decide: whole characters, and U+FFFD for what cannot become one. */
static bool settle(ql_decoder *d, bool last, ql_text *out)
{
    while (d->pending_count) {
        ql_utf8 c = ql_utf8_next(d->pending, d->pending_count);
        if (c.state == QL_UTF8_CUT && !last)
            return true;
        if (!(c.state == QL_UTF8_WHOLE ? put(d, d->pending, c.length, out) : put(d, "\xef\xbf\xbd", 3, out)))
            return false;
        d->pending_count -= c.length;
        memmove(d->pending, d->pending + c.length, d->pending_count);
    }
    return true;
}

static bool feed(ql_decoder *d, const char *bytes, size_t length, ql_text *out)
{
    while (length) {
        size_t taken = d->pending_count ? 0 : ql_utf8_valid(bytes, length);
        if (!put(d, bytes, taken, out))
            return false;
        bytes += taken, length -= taken;
        if (!length)
            break;
        d->pending[d->pending_count++] = *bytes++;
        length--;
        if (!settle(d, false, out))
            return false;
    }
    return true;
}

/* The bytes that a token of byte-level BPE spells; one with any other character (an added token) spells itself. */
static bool feed_spelled(ql_decoder *d, const char *text, size_t length, ql_text *out)
{
    for (size_t at = 0, size; at < length; at += size) {
        ql_utf8 c = ql_utf8_next(text + at, length - at);
        size = c.length;
        if (ql_char_to_byte(c.code) < 0)
            return feed(d, text, length, out);
    }
    for (size_t at = 0, size; at < length; at += size) {
        ql_utf8 c = ql_utf8_next(text + at, length - at);
        size = c.length;
        char byte = (char)ql_char_to_byte(c.code);
        if (!feed(d, &byte, 1, out))
            return false;
    }
    return true;
}

/* The value of "<0x0A>"; -1 for other texts. */
static int fallback_byte(const char *text, size_t length)
{
    static const char digits[] = "0123456789ABCDEF";
    if (length != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    const char *high = memchr(digits, text[3], 16), *low = memchr(digits, text[4], 16);
    return high && low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

static bool feed_replaced(ql_decoder *d, const char *text, size_t length, ql_text *out)
{
    const ql_spelling *spelling = &d->tokenizer->spelling;
    size_t from = strlen(spelling->from);
    const char *end = text + length, *at;
    while (from && (at = memmem(text, (size_t)(end - text), spelling->from, from))) {
        if (!feed(d, text, (size_t)(at - text), out) || !feed(d, spelling->to, strlen(spelling->to), out))
            return false;
        text = at + from;
    }
    return feed(d, text, (size_t)(end - text), out);
}

ql_status ql_decoder_push(ql_decoder *d, int32_t id, ql_text *out, ql_error *err)
{
    if (id < 0)
        return ql_fail(err, QL_ERR_ARG, "decoding: %d is not a token id", id);
    const ql_tokenizer *t = d->tokenizer;
    size_t length = 0;
    const char *text = ql_vocab_text(&t->vocab, id, &length);
    if (!text || (d->flags & QL_DECODE_SKIP_SPECIALS && t->added.kinds[id] == 2))
        return QL_OK;
    int byte = t->spelling.fallback ? fallback_byte(text, length) : -1;
    bool fits = byte >= 0           ? feed(d, &(char){(char)byte}, 1, out)
                : t->spelling.bytes ? feed_spelled(d, text, length, out)
                                    : feed_replaced(d, text, length, out);
    return fits ? QL_OK : ql_fail(err, QL_ERR_MEMORY, "decoding: out of memory");
}

ql_status ql_decoder_finish(ql_decoder *d, ql_text *out, ql_error *err)
{
    bool fits = settle(d, true, out);
    begin(d);
    return fits ? QL_OK : ql_fail(err, QL_ERR_MEMORY, "decoding: out of memory");
}

ql_status ql_decoder_create(ql_decoder **out, const ql_tokenizer *tokenizer, unsigned flags, ql_error *err)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return ql_fail(err, QL_ERR_MEMORY, "decoder: out of memory");
    **out = (ql_decoder){.tokenizer = tokenizer, .flags = flags};
    begin(*out);
    return QL_OK;
}

void ql_decoder_destroy(ql_decoder *d)
{
    free(d);
}

ql_status ql_tokenizer_decode(const ql_tokenizer *t, const int32_t *ids, size_t count, unsigned flags, ql_text *text,
                              ql_error *err)
{
    ql_decoder d = {.tokenizer = t, .flags = flags};
    begin(&d);
    ql_status status = QL_OK;
    for (size_t i = 0; i < count && !status; i++)
        status = ql_decoder_push(&d, ids[i], text, err);
    return status ? status : ql_decoder_finish(&d, text, err);
}
