/* The tokenizer in a GGUF file's metadata, brought into the form of a tokenizer.json and of the files beside it. */
#include "text/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/gguf.h"
#include "qlora/io.h"
#include "text/scores.h"

#define KEY(name) "tokenizer.ggml." name

#define BYTE_DECODER "\"decoder\": {\"type\": \"ByteLevel\"}"
#define LETTERS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|"
#define MARKS "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define BYTE_LEVEL(regex) "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": " #regex "}"
#define SPLIT(pattern)                                                                                                 \
    "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"behavior\": "             \
    "\"Isolated\", \"pattern\": {\"Regex\": \"" LETTERS pattern MARKS "\"}}, " BYTE_LEVEL(false) "]}"
#define SPACE_MARK "{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\xe2\x96\x81\"}"

static const ql_gguf_kind kinds[] = {
    {"llama", NULL, true, false,
     "{\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", \"prepend\": "
     "\"\xe2\x96\x81\"}, " SPACE_MARK "]}, \"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": "
     "\"Replace\", \"pattern\": {\"String\": \"\xe2\x96\x81\"}, \"content\": \" \"}, {\"type\": \"ByteFallback\"}, "
     "{\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}]}}"},
    {"gpt2", "gpt-2", false, false, "{\"pre_tokenizer\": " BYTE_LEVEL(true) ", " BYTE_DECODER "}"},
    {"gpt2", "qwen2", false, false, "{\"normalizer\": {\"type\": \"NFC\"}, " SPLIT("\\\\p{N}") ", " BYTE_DECODER "}"},
    {"gpt2", "llama-bpe", true, true, "{" SPLIT("\\\\p{N}{1,3}") ", " BYTE_DECODER "}"},
    {"gpt2", "smollm", false, false,
     "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", "
     "\"individual_digits\": true}, " BYTE_LEVEL(true) "]}, " BYTE_DECODER "}"},
};

/* The steps of an SPM that puts no space in front. */
static const char bare_spm[] =
    "{\"normalizer\": " SPACE_MARK ", \"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", "
    "\"pattern\": {\"String\": \"\xe2\x96\x81\"}, \"content\": \" \"}, "
    "{\"type\": \"ByteFallback\"}]}}";

typedef struct source {
    const char *path;
    const ql_gguf *gguf;
    const ql_gguf_kind *kind;
    const ql_gguf_value *tokens, *types, *scores; /* types and scores may be NULL */
    ql_error *err;
} source;

static ql_status no_memory(const source *s)
{
    return ql_fail(s->err, QL_ERR_MEMORY, "%s: tokenizer: out of memory", s->path);
}

static bool is_text(const char *text, size_t length, const char *wanted)
{
    return strlen(wanted) == length && memcmp(wanted, text, length) == 0;
}

const ql_gguf_kind *ql_gguf_kind_at(size_t index)
{
    return index < sizeof kinds / sizeof *kinds ? &kinds[index] : NULL;
}

static ql_status find_kind(source *s)
{
    const char *model, *pre = "";
    size_t model_length, pre_length = 0;
    ql_status status = ql_gguf_get_string(s->gguf, KEY("model"), &model, &model_length, s->err);
    if (status)
        return status;
    bool bytes = is_text(model, model_length, "gpt2");
    if (bytes && (status = ql_gguf_get_string(s->gguf, KEY("pre"), &pre, &pre_length, s->err)))
        return status;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds && !s->kind; i++)
        if (is_text(model, model_length, kinds[i].model) && (!bytes || is_text(pre, pre_length, kinds[i].pre)))
            s->kind = &kinds[i];
    if (s->kind)
        return QL_OK;
    if (!bytes)
        return ql_fail(s->err, QL_ERR_UNSUPPORTED, "%s: " KEY("model") " \"%.*s\" is not supported; known: llama, gpt2",
                       s->path, model_length < 60 ? (int)model_length : 60, model);
    return ql_fail(s->err, QL_ERR_UNSUPPORTED,
                   "%s: " KEY("pre") " \"%.*s\" is not supported; known: gpt-2, qwen2, llama-bpe, smollm", s->path,
                   pre_length < 60 ? (int)pre_length : 60, pre);
}

static ql_status find_arrays(source *s)
{
    ql_status status = ql_gguf_get_strings(s->gguf, KEY("tokens"), &s->tokens, s->err);
    if (!status && ql_gguf_find(s->gguf, KEY("token_type")))
        status = ql_gguf_get_numbers(s->gguf, KEY("token_type"), &s->types, s->err);
    if (!status && !s->kind->pre)
        status = ql_gguf_get_numbers(s->gguf, KEY("scores"), &s->scores, s->err);
    if (status)
        return status;
    size_t count = s->tokens->count;
    if (!count || count > (size_t)QL_MAX_ID + 1)
        return ql_fail(s->err, QL_ERR_FORMAT, "%s: " KEY("tokens") " has %zu entries; 1 to %d are possible", s->path,
                       count, QL_MAX_ID + 1);
    if ((s->types && s->types->count != count) || (s->scores && s->scores->count != count))
        return ql_fail(s->err, QL_ERR_FORMAT, "%s: " KEY("tokens") " has %zu entries, " KEY("%s") " %zu", s->path,
                       count, s->types && s->types->count != count ? "token_type" : "scores",
                       s->types && s->types->count != count ? s->types->count : s->scores->count);
    return QL_OK;
}

static int type_of(const source *s, size_t id)
{
    double type = s->types ? ql_gguf_number_at(s->types, id) : QL_TOKEN_NORMAL;
    return type >= QL_TOKEN_NORMAL && type <= QL_TOKEN_BYTE ? (int)type : QL_TOKEN_NORMAL;
}

static ql_status add_token(const source *s, json_t *vocab, json_t *added, size_t id, const char *text, size_t length)
{
    int type = type_of(s, id);
    if (json_object_getn(vocab, text, length))
        return ql_fail(s->err, QL_ERR_FORMAT, "%s: " KEY("tokens") "[%zu]: \"%.*s\" is there twice", s->path, id,
                       length < 40 ? (int)length : 40, text);
    if (json_object_setn_new(vocab, text, length, json_integer((json_int_t)id)))
        return ql_fail(s->err, QL_ERR_FORMAT, "%s: " KEY("tokens") "[%zu] is not UTF-8 (or there is no memory for it)",
                       s->path, id);
    if (type != QL_TOKEN_UNKNOWN && type != QL_TOKEN_CONTROL && type != QL_TOKEN_USER_DEFINED)
        return QL_OK;
    json_t *token = json_pack("{s:I, s:o, s:b}", "id", (json_int_t)id, "content", json_stringn(text, length), "special",
                              type != QL_TOKEN_USER_DEFINED);
    return json_array_append_new(added, token) ? no_memory(s) : QL_OK;
}

static ql_status add_tokens(const source *s, json_t *vocab, json_t *added)
{
    ql_status status = vocab && added ? QL_OK : no_memory(s);
    for (size_t id = 0, at = 0, length; id < s->tokens->count && !status; id++) {
        const char *text = ql_gguf_next_string(s->tokens, &at, &length);
        status = add_token(s, vocab, added, id, text, length);
    }
    return status;
}

static ql_status add_merges(const source *s, json_t *merges)
{
    const ql_gguf_value *list = NULL;
    if (s->scores) /* they say what is merged */
        return QL_OK;
    ql_status status = ql_gguf_get_strings(s->gguf, KEY("merges"), &list, s->err);
    for (size_t i = 0, at = 0, length; !status && i < list->count; i++) {
        const char *text = ql_gguf_next_string(list, &at, &length);
        if (json_array_append_new(merges, json_stringn(text, length)))
            status = ql_fail(s->err, QL_ERR_FORMAT, "%s: " KEY("merges") "[%zu] is not UTF-8 (or there is no memory)",
                             s->path, i);
    }
    return status;
}

/* `standard` when the key is not there. */
static ql_status read_flag(const source *s, const char *key, bool standard, bool *out)
{
    *out = standard;
    return ql_gguf_find(s->gguf, key) ? ql_gguf_get_bool(s->gguf, key, out, s->err) : QL_OK;
}

/* The text of the token that a key names by its id, or that the kind is known to have; null: none. */
static ql_status read_special(const source *s, const char *key, int64_t standard, json_t **out)
{
    int64_t id = s->kind->pre ? -1 : standard;
    *out = json_null();
    if (ql_gguf_find(s->gguf, key)) {
        ql_status status = ql_gguf_get_int(s->gguf, key, 0, (int64_t)s->tokens->count - 1, &id, s->err);
        if (status)
            return status;
    }
    if (id < 0 || (size_t)id >= s->tokens->count)
        return QL_OK;
    size_t at = 0, length = 0;
    const char *text = NULL;
    for (int64_t i = 0; i <= id; i++)
        text = ql_gguf_next_string(s->tokens, &at, &length);
    *out = json_stringn(text, length);
    return *out ? QL_OK : no_memory(s);
}

/* The form of tokenizer.json. */
static ql_status make_root(const source *s, json_t **root)
{
    bool prefix = true;
    ql_status status = s->scores ? read_flag(s, KEY("add_space_prefix"), true, &prefix) : QL_OK;
    json_t *model =
        json_pack("{s:s, s:b, s:b, s:b, s:{}, s:[]}", "type", "BPE", "byte_fallback", s->scores != NULL, "fuse_unk",
                  s->scores != NULL, "ignore_merges", s->kind->ignore_merges, "vocab", "merges");
    *root = json_loads(s->scores && !prefix ? bare_spm : s->kind->steps, 0, NULL);
    if (!*root || json_object_set_new(*root, "model", model) ||
        json_object_set_new(*root, "added_tokens", json_array()))
        return no_memory(s);
    if (!status)
        status = add_tokens(s, json_object_get(model, "vocab"), json_object_get(*root, "added_tokens"));
    json_t *unknown = NULL;
    if (!status && s->scores)
        status = read_special(s, KEY("unknown_token_id"), 0, &unknown);
    if (unknown && json_object_set_new(model, "unk_token", unknown))
        status = no_memory(s);
    return status ? status : add_merges(s, json_object_get(model, "merges"));
}

/* The form of tokenizer_config.json. */
static ql_status make_config(const source *s, json_t *config)
{
    static const struct {
        const char *key, *name;
        int64_t standard; /* in SentencePiece models */
    } specials[] = {
        {KEY("bos_token_id"), "bos_token", 1},
        {KEY("eos_token_id"), "eos_token", 2},
        {KEY("unknown_token_id"), "unk_token", 0},
        {KEY("padding_token_id"), "pad_token", -1},
    };
    ql_status status = QL_OK;
    for (size_t i = 0; i < sizeof specials / sizeof *specials && !status; i++) {
        json_t *token;
        status = read_special(s, specials[i].key, specials[i].standard, &token);
        if (!status && json_object_set_new(config, specials[i].name, token))
            status = no_memory(s);
    }
    bool bos = false, eos = false;
    if (!status)
        status = read_flag(s, KEY("add_bos_token"), s->kind->adds_bos, &bos);
    if (!status)
        status = read_flag(s, KEY("add_eos_token"), false, &eos);
    if (!status && (json_object_set_new(config, "add_bos_token", json_boolean(bos)) ||
                    json_object_set_new(config, "add_eos_token", json_boolean(eos))))
        status = no_memory(s);
    const char *text;
    size_t length;
    if (status || !ql_gguf_find(s->gguf, "tokenizer.chat_template"))
        return status;
    status = ql_gguf_get_string(s->gguf, "tokenizer.chat_template", &text, &length, s->err);
    if (!status && json_object_set_new(config, "chat_template", json_stringn(text, length)))
        status = ql_fail(s->err, QL_ERR_FORMAT, "%s: tokenizer.chat_template is not UTF-8", s->path);
    return status;
}

/* The form of generation_config.json: the ids that end a text or a turn. */
static ql_status make_ends(const source *s, json_t *generation)
{
    static const char *const keys[] = {KEY("eos_token_id"), KEY("eot_token_id"), KEY("eom_token_id")};
    json_t *ends = json_array();
    ql_status status = json_object_set_new(generation, "eos_token_id", ends) ? no_memory(s) : QL_OK;
    for (size_t i = 0; i < sizeof keys / sizeof *keys && !status; i++) {
        int64_t id;
        if (!ql_gguf_find(s->gguf, keys[i]))
            continue;
        status = ql_gguf_get_int(s->gguf, keys[i], 0, (int64_t)s->tokens->count - 1, &id, s->err);
        if (!status && json_array_append_new(ends, json_integer(id)))
            status = no_memory(s);
    }
    return status;
}

/* Of an SPM's tokens those that text is merged to have scores; the others never come of text. */
static ql_status merge_by_scores(const source *s, ql_tokenizer *t)
{
    double *scores = malloc(t->vocab.count * sizeof *scores);
    if (!scores)
        return no_memory(s);
    for (size_t id = 0; id < t->vocab.count; id++)
        scores[id] = type_of(s, id) == QL_TOKEN_NORMAL ? ql_gguf_number_at(s->scores, id) : QL_NO_SCORE;
    ql_status status = ql_merges_by_score(&t->bpe.merges, &t->vocab, scores, s->err);
    free(scores);
    return status ? ql_fail_in(s->err, status, "%s", s->path) : QL_OK;
}

static ql_status load(ql_tokenizer *t, source *s)
{
    json_t *root = NULL, *config = json_object(), *generation = json_object();
    ql_status status = make_root(s, &root);
    if (!status) {
        ql_json_at at = ql_json_root(s->path, root);
        status = ql_tokenizer_load(t, &at, s->err);
    }
    if (!status && s->scores)
        status = merge_by_scores(s, t);
    if (!status)
        status = make_config(s, config);
    if (!status)
        status = make_ends(s, generation);
    if (!status)
        status = ql_specials_set(t, s->path, config, generation, s->err);
    json_decref(root);
    json_decref(config);
    json_decref(generation);
    return status;
}

ql_status ql_tokenizer_from_gguf(ql_tokenizer *t, const char *path, ql_error *err)
{
    ql_tensors *file;
    ql_status status = ql_tensors_open(&file, path, err);
    if (status)
        return status;
    source s = {.path = path, .gguf = ql_tensors_gguf(file), .err = err};
    status = find_kind(&s);
    if (!status)
        status = find_arrays(&s);
    if (!status)
        status = load(t, &s);
    ql_tensors_close(file);
    return status;
}
