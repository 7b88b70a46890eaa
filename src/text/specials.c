/* Which tokens are special to a model, and its chat template, from the files beside tokenizer.json. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/path.h"
#include "text/grow.h"
#include "text/tokenizer.h"

typedef struct config {
    char *path;
    json_t *json; /* NULL: no such file */
    ql_json_at root;
} config;

enum { TOKENIZER_CONFIG, TOKENS_MAP, GENERATION, MODEL, CONFIGS };

static ql_status read_config(config *file, const char *folder, const char *name, ql_error *err)
{
    file->path = ql_path_join(folder, name);
    if (!file->path)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", name);
    if (!ql_path_is_file(file->path))
        return QL_OK;
    ql_status status = ql_json_read(&file->json, file->path, err);
    if (status)
        return status;
    file->root = ql_json_root(file->path, file->json);
    return json_is_object(file->json) ? QL_OK : ql_json_expected(&file->root, "an object", err);
}

/* The token that the first file to speak of `key` names; a null is a word too. -2: none speaks. */
static int32_t token_named(const ql_tokenizer *t, const config *files, const char *key)
{
    for (int i = TOKENIZER_CONFIG; i <= TOKENS_MAP; i++) {
        const json_t *value = files[i].json ? json_object_get(files[i].json, key) : NULL;
        if (!value)
            continue;
        const json_t *text = json_is_object(value) ? json_object_get(value, "content") : value;
        return json_is_string(text) ? ql_vocab_find(&t->vocab, json_string_value(text), json_string_length(text)) : -1;
    }
    return -2;
}

static bool add_end(ql_tokenizer *t, int64_t id)
{
    int32_t narrow = (int32_t)id;
    return id < 0 || (size_t)id >= t->vocab.count || ql_tokenizer_is_end(t, narrow) || ql_ids_add(&t->ends, &narrow, 1);
}

/* An id, or the first of a list of ids; -1: none. */
static int32_t id_in(const ql_tokenizer *t, const config *file, const char *key)
{
    const json_t *value = file->json ? json_object_get(file->json, key) : NULL;
    value = json_is_array(value) ? json_array_get(value, 0) : value;
    json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
    return id >= 0 && (size_t)id < t->vocab.count ? (int32_t)id : -1;
}

static int32_t find_special(const ql_tokenizer *t, const config *files, const char *name, const char *id_key)
{
    int32_t id = token_named(t, files, name);
    if (id != -2)
        return id;
    id = id_in(t, &files[GENERATION], id_key);
    return id >= 0 ? id : id_in(t, &files[MODEL], id_key);
}

static ql_status find_ends(ql_tokenizer *t, const config *files, ql_error *err)
{
    static const char *const known[] = {"<|im_end|>",    "<|eot_id|>",      "<|eom_id|>", "<|end_of_text|>",
                                        "<|endoftext|>", "<end_of_turn>", "<|end|>"};
    bool fits = add_end(t, t->eos);
    for (int i = GENERATION; i <= MODEL; i++) {
        const json_t *value = files[i].json ? json_object_get(files[i].json, "eos_token_id") : NULL;
        if (json_is_integer(value))
            fits = fits && add_end(t, json_integer_value(value));
        for (size_t k = 0; k < json_array_size(value); k++)
            if (json_is_integer(json_array_get(value, k)))
                fits = fits && add_end(t, json_integer_value(json_array_get(value, k)));
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        int32_t id = ql_tokenizer_id(t, known[i]);
        if (id >= 0 && t->added.kinds[id])
            fits = fits && add_end(t, id);
    }
    return fits ? QL_OK : ql_fail(err, QL_ERR_MEMORY, "tokenizer: out of memory");
}

/* add_bos_token and add_eos_token of tokenizer_config.json overrule the post-processor. */
static ql_status overrule(ql_ids *around, int32_t id, const config *file, const char *key, ql_error *err)
{
    const json_t *value = file->json ? json_object_get(file->json, key) : NULL;
    if (!json_is_boolean(value) || id < 0)
        return QL_OK;
    size_t kept = 0;
    for (size_t i = 0; i < around->count; i++)
        if (around->data[i] != id)
            around->data[kept++] = around->data[i];
    around->count = kept;
    if (json_is_true(value) && !ql_ids_add(around, &id, 1))
        return ql_fail(err, QL_ERR_MEMORY, "tokenizer: out of memory");
    return QL_OK;
}

static char *read_text(const char *folder, const char *name, ql_status *status, ql_error *err)
{
    ql_map map = {0};
    char *path = ql_path_join(folder, name), *text = NULL;
    if (path && ql_path_is_file(path)) {
        *status = ql_map_open(&map, path, err);
        if (!*status && !(text = strndup((const char *)map.data, map.size)))
            *status = ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    }
    ql_map_close(&map);
    free(path);
    return text;
}

static bool take_template(char **out, const json_t *value)
{
    const char *text = json_string_value(value);
    return !text || *out || (*out = strdup(text));
}

/* A string, or a list of {name, template} of which "default" is meant and "tool_use" for chats with tools; or a file of
 * its own. */
static ql_status find_template(ql_tokenizer *t, const config *file, ql_error *err)
{
    ql_status status = QL_OK;
    t->chat_template = read_text(t->folder, "chat_template.jinja", &status, err);
    if (t->chat_template || status || !file->json)
        return status;
    const json_t *value = json_object_get(file->json, "chat_template");
    bool fits = take_template(&t->chat_template, value);
    size_t i;
    json_t *named;
    json_array_foreach(value, i, named)
    {
        const char *name = json_string_value(json_object_get(named, "name"));
        bool tools = name && strcmp(name, "tool_use") == 0;
        const json_t *text = json_object_get(named, "template");
        if (tools || (name && strcmp(name, "default") == 0))
            fits = fits && take_template(tools ? &t->tool_template : &t->chat_template, text);
    }
    return fits ? QL_OK : ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", file->path);
}

static ql_status set(ql_tokenizer *t, const config *files, ql_error *err)
{
    t->bos = find_special(t, files, "bos_token", "bos_token_id");
    t->eos = find_special(t, files, "eos_token", "eos_token_id");
    t->pad = find_special(t, files, "pad_token", "pad_token_id");
    t->unk = find_special(t, files, "unk_token", "unk_token_id");
    if (t->unk < 0)
        t->unk = t->bpe.unk;
    ql_status status = find_ends(t, files, err);
    if (!status)
        status = overrule(&t->before, t->bos, &files[TOKENIZER_CONFIG], "add_bos_token", err);
    if (!status)
        status = overrule(&t->after, t->eos, &files[TOKENIZER_CONFIG], "add_eos_token", err);
    return status ? status : find_template(t, &files[TOKENIZER_CONFIG], err);
}

ql_status ql_specials_load(ql_tokenizer *t, ql_error *err)
{
    static const char *const names[CONFIGS] = {"tokenizer_config.json", "special_tokens_map.json",
                                               "generation_config.json", "config.json"};
    config files[CONFIGS] = {{0}};
    ql_status status = QL_OK;
    for (int i = 0; i < CONFIGS && !status; i++)
        status = read_config(&files[i], t->folder, names[i], err);
    if (!status)
        status = set(t, files, err);
    for (int i = 0; i < CONFIGS; i++) {
        json_decref(files[i].json);
        free(files[i].path);
    }
    return status;
}

ql_status ql_specials_set(ql_tokenizer *t, const char *file, json_t *tokenizer_config, json_t *generation, ql_error *err)
{
    config files[CONFIGS] = {
        [TOKENIZER_CONFIG] = {.json = tokenizer_config, .root = ql_json_root(file, tokenizer_config)},
        [GENERATION] = {.json = generation, .root = ql_json_root(file, generation)},
    };
    return set(t, files, err);
}
