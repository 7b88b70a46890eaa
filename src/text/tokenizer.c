#include "text/jinja.h"
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/gguf.h"
#include "io/path.h"
#include "text/gguf.h"
#include "text/grow.h"
#include "text/utf8.h"

/* A special token of a TemplateProcessing: its ids stand in the template's table. */
static ql_status add_template_token(ql_ids *ids, const ql_json_at *processor, const ql_json_at *token, ql_error *err)
{
    const char *name = NULL;
    ql_json_at table, entry, list;
    ql_status status = ql_json_get_string(token, "id", QL_REQUIRED, &name, NULL, err);
    if (!status)
        status = ql_json_get_object(processor, "special_tokens", QL_REQUIRED, &table, err);
    if (!status)
        status = ql_json_get_object(&table, name, QL_REQUIRED, &entry, err);
    if (!status)
        status = ql_json_get_array(&entry, "ids", QL_REQUIRED, &list, err);
    for (size_t i = 0; !status && i < json_array_size(list.value); i++) {
        ql_json_at item = ql_json_element(&list, i);
        json_int_t id = json_integer_value(item.value);
        int32_t narrow = (int32_t)id;
        if (!json_is_integer(item.value) || id < 0 || id > QL_MAX_ID)
            status = ql_json_expected(&item, "a token id", err);
        else if (!ql_ids_add(ids, &narrow, 1))
            status = ql_fail(err, QL_ERR_MEMORY, "post_processor: out of memory");
    }
    return status;
}

static ql_status load_template(ql_tokenizer *t, const ql_json_at *processor, ql_error *err)
{
    ql_json_at single;
    bool seen = false;
    ql_status status = ql_json_get_array(processor, "single", QL_REQUIRED, &single, err);
    for (size_t i = 0; !status && i < json_array_size(single.value); i++) {
        ql_json_at item = ql_json_element(&single, i), token;
        if (ql_json_member(&item, "Sequence")) {
            seen = true;
            continue;
        }
        status = ql_json_get_object(&item, "SpecialToken", QL_REQUIRED, &token, err);
        if (!status)
            status = add_template_token(seen ? &t->after : &t->before, processor, &token, err);
    }
    return status;
}

static ql_status load_processor(void *ctx, const ql_json_at *step, const char *type, ql_error *err)
{
    if (strcmp(type, "ByteLevel") == 0)
        return QL_OK; /* moves offsets only */
    if (strcmp(type, "TemplateProcessing") == 0)
        return load_template(ctx, step, err);
    return ql_fail(err, QL_ERR_UNSUPPORTED,
                   "%s: post_processor %s is not supported; known: TemplateProcessing, ByteLevel, Sequence", step->file,
                   type);
}

/* Without a pre-tokenizer a SentencePiece-style BPE sees the whole text as one word. Where no token goes on over a
 * space mark, words that begin at one give the same ids, and they can be cached. */
static void split_at_marks(ql_tokenizer *t)
{
    static const char mark[] = "\xe2\x96\x81"; /* U+2581 */
    if (t->splits.count || t->splits.bytes || ql_vocab_find(&t->vocab, mark, 3) < 0)
        return;
    for (size_t id = 0; id < t->vocab.count; id++) {
        size_t length = 0;
        const char *text = ql_vocab_text(&t->vocab, (int32_t)id, &length);
        for (size_t i = 1; text && i + 3 <= length; i++)
            if (memcmp(text + i, mark, 3) == 0 && (i < 3 || memcmp(text + i - 3, mark, 3) != 0))
                return;
    }
    ql_splits_add_runs(&t->splits, mark);
}

ql_status ql_tokenizer_load(ql_tokenizer *t, const ql_json_at *root, ql_error *err)
{
    ql_json_at model;
    ql_status status = ql_json_get_object(root, "model", QL_REQUIRED, &model, err);
    const char *type = "BPE";
    if (!status)
        status = ql_json_get_string(&model, "type", QL_OPTIONAL, &type, NULL, err);
    if (!status && strcmp(type, "BPE") != 0)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: model.type %s is not supported; known: BPE", root->file, type);
    if (!status)
        status = ql_vocab_load(&t->vocab, &model, ql_added_reach(root),
                               json_array_size(ql_json_member(root, "added_tokens")), err);
    if (!status)
        status = ql_edits_load(&t->normalizer, root, err);
    if (!status)
        status = ql_added_load(&t->added, &t->vocab, &t->normalizer, root, err);
    if (!status)
        status = ql_splits_load(&t->splits, &t->prefixes, root, err);
    if (!status)
        status = ql_bpe_load(&t->bpe, &t->vocab, t->splits.bytes, &model, err);
    if (!status)
        status = ql_spelling_load(&t->spelling, t->splits.bytes, root, err);
    if (!status)
        status = ql_steps_load(root, "post_processor", "processors", load_processor, t, err);
    if (!status)
        split_at_marks(t);
    return status;
}

static ql_status open_folder(ql_tokenizer *t, const char *dir, ql_error *err)
{
    json_t *json = NULL;
    char *path = ql_path_join(dir, "tokenizer.json");
    ql_status status = path ? ql_json_read(&json, path, err) : ql_fail(err, QL_ERR_MEMORY, "tokenizer: out of memory");
    if (!status) {
        ql_json_at root = ql_json_root(path, json);
        status = ql_tokenizer_load(t, &root, err);
    }
    if (!status)
        status = ql_specials_load(t, err);
    json_decref(json);
    free(path);
    return status;
}

ql_status ql_tokenizer_open(ql_tokenizer **out, const char *model, ql_error *err)
{
    *out = NULL;
    if (!model)
        return ql_fail(err, QL_ERR_ARG, "tokenizer: no model folder given");
    ql_tokenizer *t = calloc(1, sizeof *t);
    ql_status status = t && (t->folder = strdup(model)) ? QL_OK : ql_fail(err, QL_ERR_MEMORY, "tokenizer: out of memory");
    if (!status)
        status = ql_path_is_gguf(model) ? ql_tokenizer_from_gguf(t, model, err) : open_folder(t, model, err);
    if (status)
        ql_tokenizer_close(t);
    else
        *out = t;
    return status;
}

void ql_tokenizer_close(ql_tokenizer *t)
{
    if (!t)
        return;
    ql_bpe_free(&t->bpe);
    ql_splits_free(&t->splits);
    ql_added_free(&t->added);
    ql_vocab_free(&t->vocab);
    ql_ids_free(&t->before);
    ql_ids_free(&t->after);
    ql_ids_free(&t->ends);
    for (int i = 0; i < 2; i++) {
        ql_text_free(&t->normal[i]);
        ql_text_free(&t->prefixed[i]);
    }
    free(t->chat_template);
    free(t->tool_template);
    for (int i = 0; i < 2; i++) {
        free(t->parsed[i].name);
        ql_jinja_close(t->parsed[i].jinja);
    }
    free(t->folder);
    free(t);
}

typedef struct encoding {
    ql_tokenizer *t;
    ql_ids *ids;
} encoding;

static ql_status encode_word(void *ctx, const char *word, size_t length, ql_error *err)
{
    encoding *e = ctx;
    return ql_bpe_encode(&e->t->bpe, word, length, e->ids, err);
}

static ql_status encode_words(encoding *e, ql_place place, const char *text, size_t length, ql_error *err)
{
    ql_status status = ql_edits_apply(&e->t->prefixes, place, text, length, e->t->prefixed, &text, &length, err);
    return status ? status : ql_splits_apply(&e->t->splits, text, length, encode_word, e, err);
}

static ql_status encode_between(encoding *e, bool normalized, ql_place place, const char *text, size_t length,
                                ql_literals literals, ql_error *err);

/* Text between added tokens: on to the next pass, which is over the normalized text, or into words. */
static ql_status encode_stretch(encoding *e, bool normalized, ql_place place, const char *text, size_t length,
                                ql_literals literals, ql_error *err)
{
    if (!length)
        return QL_OK;
    if (normalized)
        return encode_words(e, place, text, length, err);
    ql_status status = ql_edits_apply(&e->t->normalizer, place, text, length, e->t->normal, &text, &length, err);
    /* Positions have moved: where any part is literal, special tokens are not looked for in this pass. */
    ql_span all = {0, length};
    return status ? status : encode_between(e, true, place, text, length, (ql_literals){&all, literals.count > 0}, err);
}

static ql_status encode_between(encoding *e, bool normalized, ql_place place, const char *text, size_t length,
                                ql_literals literals, ql_error *err)
{
    size_t at = 0;
    ql_match match;
    ql_status status = QL_OK;
    while (!status && ql_added_find(&e->t->added, normalized, text, length, at, literals, &match)) {
        status = encode_stretch(e, normalized, place, text + at, match.begin - at, literals, err);
        if (!status && !ql_ids_add(e->ids, &match.id, 1))
            status = ql_fail(err, QL_ERR_MEMORY, "tokenizing: out of memory");
        at = match.end;
        place = QL_PLACE_AFTER;
    }
    return status ? status : encode_stretch(e, normalized, place, text + at, length - at, literals, err);
}

ql_status ql_encode_at(ql_tokenizer *t, ql_place place, const char *text, size_t length, ql_literals literals,
                       ql_ids *ids, ql_error *err)
{
    size_t before = ids->count, valid = ql_utf8_valid(text, length);
    if (valid < length)
        return ql_fail(err, QL_ERR_FORMAT, "byte %zu (0x%02X) is not UTF-8", valid, (uint8_t)text[valid]);
    encoding e = {t, ids};
    ql_status status = encode_between(&e, false, place, text, length, literals, err);
    if (status)
        ids->count = before;
    return status;
}

ql_status ql_tokenizer_encode(ql_tokenizer *t, const char *text, size_t length, unsigned flags, ql_ids *ids,
                              ql_error *err)
{
    ql_span all = {0, length};
    ql_literals literals = {&all, flags & QL_ENCODE_LITERAL ? 1 : 0};
    ql_place place = flags & QL_ENCODE_CONTINUE ? QL_PLACE_CONTINUED : QL_PLACE_START;
    bool specials = flags & QL_ENCODE_SPECIALS;
    size_t before = ids->count;
    ql_status status = QL_OK;
    if (specials && !ql_ids_add(ids, t->before.data, t->before.count))
        status = ql_fail(err, QL_ERR_MEMORY, "tokenizing: out of memory");
    if (!status)
        status = ql_encode_at(t, place, text, length, literals, ids, err);
    if (!status && specials && !ql_ids_add(ids, t->after.data, t->after.count))
        status = ql_fail(err, QL_ERR_MEMORY, "tokenizing: out of memory");
    if (status)
        ids->count = before;
    return status;
}

size_t ql_tokenizer_vocab(const ql_tokenizer *t)
{
    return t->vocab.count;
}

int32_t ql_tokenizer_bos(const ql_tokenizer *t)
{
    return t->bos;
}

int32_t ql_tokenizer_eos(const ql_tokenizer *t)
{
    return t->eos;
}

int32_t ql_tokenizer_pad(const ql_tokenizer *t)
{
    return t->pad;
}

int32_t ql_tokenizer_unk(const ql_tokenizer *t)
{
    return t->unk;
}

bool ql_tokenizer_adds_bos(const ql_tokenizer *t)
{
    return t->bos >= 0 && t->before.count && t->before.data[0] == t->bos;
}

const char *ql_tokenizer_token(const ql_tokenizer *t, int32_t id)
{
    return ql_vocab_text(&t->vocab, id, NULL);
}

int32_t ql_tokenizer_id(const ql_tokenizer *t, const char *token)
{
    return ql_vocab_find(&t->vocab, token, strlen(token));
}

const int32_t *ql_tokenizer_ends(const ql_tokenizer *t, size_t *count)
{
    *count = t->ends.count;
    return t->ends.data;
}

bool ql_tokenizer_is_end(const ql_tokenizer *t, int32_t id)
{
    for (size_t i = 0; i < t->ends.count; i++)
        if (t->ends.data[i] == id)
            return true;
    return false;
}
