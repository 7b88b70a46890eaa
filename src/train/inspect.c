/* Which kind of file it is, and what files of every kind say of themselves. */
#define _GNU_SOURCE
#include "train/inspect.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/grow.h"
#include "io/gguf.h"
#include "io/json.h"
#include "io/path.h"

static void note(ql_inspection *in, ql_facts *facts, const char *name, char *text, double number)
{
    char *copy = strdup(name);
    if (!copy || !ql_grow((void **)&facts->at, &facts->capacity, facts->count, 1, sizeof *facts->at)) {
        free(copy);
        free(text);
        in->failed = true;
        return;
    }
    facts->at[facts->count++] = (ql_fact){copy, text, number};
}

void ql_note(ql_inspection *in, const char *name, const char *format, ...)
{
    char *text;
    va_list args;
    va_start(args, format);
    int length = vasprintf(&text, format, args);
    va_end(args);
    if (length < 0)
        in->failed = true;
    else
        note(in, &in->facts, name, text, 0);
}

void ql_note_number(ql_inspection *in, const char *name, double number)
{
    note(in, &in->facts, name, NULL, number);
}

void ql_inspect_find(ql_inspection *in, bool fault, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    in->failed = !ql_found_with(&in->findings, fault, format, args) || in->failed;
    va_end(args);
}

void ql_inspect_fault(ql_inspection *in, const ql_error *err)
{
    ql_inspect_find(in, true, "%s", err->message);
}

enum { SHOWN = 160 }; /* bytes of a text in the metadata */

static char *shortened(const char *text, size_t length)
{
    size_t kept = length;
    char *out;
    if (length > SHOWN)
        for (kept = SHOWN; kept && ((unsigned char)text[kept] & 0xc0) == 0x80;)
            kept--;
    int made = kept < length ? asprintf(&out, "%.*s... (%zu bytes)", (int)kept, text, length)
                             : asprintf(&out, "%.*s", (int)kept, text);
    return made < 0 ? NULL : out;
}

static void note_gguf(ql_inspection *in, const ql_gguf_value *value, const ql_gguf *gguf)
{
    const char *text;
    char *words = NULL;
    size_t length;
    double number = 0;
    bool flag, is_text = value->type == QL_GGUF_STRING;
    if (is_text && ql_gguf_get_string(gguf, value->key, &text, &length, NULL) == QL_OK)
        words = shortened(text, length);
    else if (value->type == QL_GGUF_BOOL && ql_gguf_get_bool(gguf, value->key, &flag, NULL) == QL_OK)
        words = strdup(flag ? "true" : "false");
    else if (value->type == QL_GGUF_ARRAY) {
        const char *what = value->element == QL_GGUF_STRING ? "strings"
                           : value->element == QL_GGUF_BOOL ? "booleans"
                                                            : "numbers";
        if (asprintf(&words, "[%zu %s]", value->count, what) < 0)
            words = NULL;
    } else if (ql_gguf_get_double(gguf, value->key, -1e300, 1e300, &number, NULL) != QL_OK)
        words = strdup("not a number");
    in->failed = in->failed || (is_text && !words);
    note(in, &in->metadata, value->key, words, number);
}

void ql_note_metadata(ql_inspection *in)
{
    const ql_gguf *gguf = ql_tensors_gguf(in->tensors);
    const char *key, *value;
    for (size_t i = 0; gguf && i < ql_gguf_count(gguf); i++)
        note_gguf(in, ql_gguf_at(gguf, i), gguf);
    for (size_t i = 0; !gguf && (value = ql_tensors_metadata_at(in->tensors, i, &key)); i++) {
        char *words = shortened(value, strlen(value));
        in->failed = in->failed || !words;
        note(in, &in->metadata, key, words, 0);
    }
}

static bool open_tensors(ql_inspection *in, const char *path)
{
    ql_error err = {0};
    if (ql_tensors_open(&in->tensors, path, &err))
        ql_inspect_fault(in, &err);
    else
        ql_note_metadata(in);
    return in->tensors;
}

/* A file of tensors that is no model: any names, any shapes. */
static void inspect_tensors(ql_inspection *in)
{
    in->kind = "safetensors";
    if (!open_tensors(in, in->path))
        return;
    const char *format = ql_tensors_metadata(in->tensors, "format");
    if (format && strncmp(format, "qlora checkpoint", 16) == 0)
        in->kind = "checkpoint";
    for (size_t i = 0; i < ql_tensors_count(in->tensors); i++) {
        const ql_tensor *t = ql_tensors_at(in->tensors, i);
        if (t->foreign)
            ql_inspect_find(in, false, "tensor %s is %s: that type is not read here", t->name, t->dtype_name);
    }
    if (!ql_tensors_count(in->tensors))
        ql_inspect_find(in, true, "%s: no tensors", in->path);
}

static void inspect_gguf(ql_inspection *in)
{
    const char *text;
    size_t length;
    in->kind = "gguf";
    if (!open_tensors(in, in->path))
        return;
    const ql_gguf *gguf = ql_tensors_gguf(in->tensors);
    if (!gguf) {
        ql_inspect_find(in, true, "%s: a safetensors file, whatever its name says", in->path);
        return;
    }
    bool adapter = ql_gguf_get_string(gguf, "general.type", &text, &length, NULL) == QL_OK && length == 7 &&
                   memcmp(text, "adapter", 7) == 0;
    if (adapter)
        ql_note(in, "type", "adapter");
    else if (ql_tensors_count(in->tensors))
        ql_inspect_model(in, in->path);
    else {
        ql_inspect_find(in, false, "%s: no tensors: metadata alone, or a vocabulary", in->path);
        ql_inspect_tokenizer(in, in->path, 0);
    }
}

static bool has(const char *folder, const char *name)
{
    char *path = ql_path_join(folder, name);
    bool there = path && ql_path_is_file(path);
    free(path);
    return there;
}

static ql_status inspect_folder(ql_inspection *in, ql_error *err)
{
    if (has(in->path, "adapter_config.json")) {
        in->kind = "adapter";
        ql_inspect_adapter(in, in->path);
        if (has(in->path, "checkpoint.safetensors"))
            ql_note(in, "checkpoint", "checkpoint.safetensors: a run that can be resumed");
    } else if (has(in->path, "config.json")) {
        in->kind = "model";
        open_tensors(in, in->path);
        ql_inspect_model(in, in->path);
    } else if (has(in->path, "tokenizer.json")) {
        in->kind = "tokenizer";
        ql_inspect_tokenizer(in, in->path, 0);
    } else if (has(in->path, "model.safetensors") || has(in->path, "model.safetensors.index.json")) {
        inspect_tensors(in);
        ql_inspect_find(in, true, "%s: config.json is missing", in->path);
    } else {
        return ql_fail(err, QL_ERR_UNSUPPORTED,
                       "%s: a folder without config.json, adapter_config.json, tokenizer.json or model.safetensors",
                       in->path);
    }
    return QL_OK;
}

/* The folder of a file; free() it. */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == path ? strdup("/") : slash ? strndup(path, (size_t)(slash - path)) : strdup(".");
}

static ql_status inspect_json(ql_inspection *in, ql_error *err)
{
    json_t *json = NULL;
    ql_error damage = {0};
    if (ql_json_read(&json, in->path, &damage)) {
        in->kind = "json";
        ql_inspect_fault(in, &damage);
        return QL_OK;
    }
    ql_status status = QL_OK;
    if (json_object_get(json, "model_type")) {
        in->kind = "config";
        ql_inspect_config(in, in->path);
    } else if (json_object_get(json, "weight_map")) {
        inspect_tensors(in);
    } else if (json_is_object(json_object_get(json, "model")) || json_object_get(json, "peft_type")) {
        char *folder = folder_of(in->path);
        bool adapter = json_object_get(json, "peft_type");
        in->kind = adapter ? "adapter" : "tokenizer";
        if (folder && adapter)
            ql_inspect_adapter(in, folder);
        else if (folder)
            ql_inspect_tokenizer(in, folder, 0);
        in->failed = in->failed || !folder;
        free(folder);
    } else {
        status = ql_fail(err, QL_ERR_UNSUPPORTED,
                         "%s: neither a config.json, a tokenizer.json, an adapter_config.json nor an index of tensors",
                         in->path);
    }
    json_decref(json);
    return status;
}

static ql_status inspect(ql_inspection *in, ql_error *err)
{
    if (ql_path_is_folder(in->path))
        return inspect_folder(in, err);
    if (!ql_path_is_file(in->path))
        return ql_fail(err, QL_ERR_IO, "%s: no such file or folder", in->path);
    if (ql_path_is_gguf(in->path) || ql_path_ends_in(in->path, ".gguf"))
        inspect_gguf(in);
    else if (ql_path_ends_in(in->path, ".json"))
        return inspect_json(in, err);
    else if (ql_path_ends_in(in->path, ".safetensors"))
        inspect_tensors(in);
    else
        return ql_fail(err, QL_ERR_UNSUPPORTED,
                       "%s: neither .safetensors, .gguf nor .json; with a model, data can be looked at too", in->path);
    return QL_OK;
}

ql_status ql_inspect(ql_inspection **out, const char *path, const ql_inspect_options *options, ql_error *err)
{
    *out = NULL;
    ql_inspection *in = calloc(1, sizeof *in);
    if (!in)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    in->path = path;
    ql_status status = ql_workers_create(&in->workers, options->threads, err);
    if (!status)
        status = inspect(in, err);
    if (!status && options->values && in->tensors)
        ql_inspect_values(in);
    if (!status && in->failed)
        status = ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    if (status)
        ql_inspection_close(in);
    else
        *out = in;
    return status;
}

static void free_facts(ql_facts *facts)
{
    for (size_t i = 0; i < facts->count; i++) {
        free(facts->at[i].name);
        free(facts->at[i].text);
    }
    free(facts->at);
}

void ql_inspection_close(ql_inspection *in)
{
    if (!in)
        return;
    free_facts(&in->facts);
    free_facts(&in->metadata);
    ql_findings_free(&in->findings);
    ql_tensors_close(in->tensors);
    ql_workers_destroy(in->workers);
    free(in);
}

const char *ql_inspection_kind(const ql_inspection *in)
{
    return in->kind;
}

const ql_facts *ql_inspection_facts(const ql_inspection *in)
{
    return &in->facts;
}

const ql_facts *ql_inspection_metadata(const ql_inspection *in)
{
    return &in->metadata;
}

const ql_findings *ql_inspection_findings(const ql_inspection *in)
{
    return &in->findings;
}

const ql_tensors *ql_inspection_tensors(const ql_inspection *in)
{
    return in->tensors;
}
