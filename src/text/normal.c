#define _GNU_SOURCE
#include "text/normal.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/error.h"
#include "text/grow.h"

ql_status ql_short_string(char *to, size_t size, const json_t *object, const char *key, ql_error *err)
{
    const char *text = json_string_value(json_object_get(object, key));
    if (!text)
        return ql_fail(err, QL_ERR_FORMAT, "\"%s\" is missing or no string", key);
    if (strlen(text) >= size)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "\"%s\" has %zu bytes, more than %zu", key, strlen(text), size - 1);
    strcpy(to, text);
    return QL_OK;
}

ql_status ql_edits_add(ql_edits *edits, const ql_edit *edit, ql_error *err)
{
    if (edits->count == sizeof edits->list / sizeof *edits->list)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "more than %zu steps", edits->count);
    edits->list[edits->count++] = *edit;
    return QL_OK;
}

static ql_status load_replace(ql_edit *edit, const json_t *step, ql_error *err)
{
    const json_t *pattern = json_object_get(step, "pattern");
    edit->kind = QL_EDIT_REPLACE;
    if (!json_object_get(pattern, "String"))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "normalizer Replace is supported with a pattern of type String only");
    ql_status status = ql_short_string(edit->from, sizeof edit->from, pattern, "String", err);
    if (!status)
        status = ql_short_string(edit->to, sizeof edit->to, step, "content", err);
    if (!status && !edit->from[0])
        status = ql_fail(err, QL_ERR_FORMAT, "normalizer Replace: the pattern is empty");
    return status;
}

static ql_status load_step(ql_edits *edits, const json_t *step, ql_error *err)
{
    static const struct {
        const char *name;
        int form;
    } forms[] = {
        {"NFC", UTF8PROC_STABLE | UTF8PROC_COMPOSE},
        {"NFD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
        {"NFKC", UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
        {"NFKD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT},
    };
    const char *type = json_string_value(json_object_get(step, "type"));
    if (!type)
        return ql_fail(err, QL_ERR_FORMAT, "normalizer: an object without a type");
    ql_edit edit = {0};
    ql_status status = QL_OK;
    if (strcmp(type, "Prepend") == 0) {
        edit.kind = QL_EDIT_PREPEND;
        status = ql_short_string(edit.to, sizeof edit.to, step, "prepend", err);
    } else if (strcmp(type, "Replace") == 0) {
        status = load_replace(&edit, step, err);
    } else {
        for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
            if (strcmp(type, forms[i].name) == 0)
                edit.form = forms[i].form;
        if (!edit.form)
            return ql_fail(err, QL_ERR_UNSUPPORTED,
                           "normalizer %s is not supported; known: NFC, NFD, NFKC, NFKD, Prepend, Replace, Sequence", type);
    }
    return status ? status : ql_edits_add(edits, &edit, err);
}

ql_status ql_edits_load(ql_edits *edits, const json_t *normalizer, ql_error *err)
{
    if (!normalizer || json_is_null(normalizer))
        return QL_OK;
    const char *type = json_string_value(json_object_get(normalizer, "type"));
    if (!type || strcmp(type, "Sequence") != 0)
        return load_step(edits, normalizer, err);
    const json_t *steps = json_object_get(normalizer, "normalizers");
    for (size_t i = 0; i < json_array_size(steps); i++) {
        ql_status status = load_step(edits, json_array_get(steps, i), err);
        if (status)
            return status;
    }
    return QL_OK;
}

/* Below U+0300 every character is its own NFC, and nothing combines. */
static bool plainly_composed(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if ((uint8_t)text[i] >= 0xcc)
            return false;
    return true;
}

static bool apply_unicode(const ql_edit *edit, const char *text, size_t length, ql_text *out)
{
    if (edit->form == (UTF8PROC_STABLE | UTF8PROC_COMPOSE) && plainly_composed(text, length))
        return ql_text_add(out, text, length);
    utf8proc_uint8_t *mapped = NULL;
    utf8proc_ssize_t got =
        utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, &mapped, (utf8proc_option_t)edit->form);
    bool done = got >= 0 && ql_text_add(out, (const char *)mapped, (size_t)got);
    free(mapped);
    return done;
}

static bool apply_prepend(const ql_edit *edit, ql_place place, const char *text, size_t length, ql_text *out)
{
    size_t prefix = strlen(edit->to);
    bool wanted = length && place != QL_PLACE_CONTINUED && !(edit->start_only && place != QL_PLACE_START);
    if (edit->kind == QL_EDIT_PREPEND_ONCE && length >= prefix && memcmp(text, edit->to, prefix) == 0)
        wanted = false;
    return ql_text_add(out, edit->to, wanted ? prefix : 0) && ql_text_add(out, text, length);
}

static bool apply_replace(const ql_edit *edit, const char *text, size_t length, ql_text *out)
{
    size_t from = strlen(edit->from), to = strlen(edit->to), kept = 0;
    const char *end = text + length, *at = text;
    while ((at = memmem(at, (size_t)(end - at), edit->from, from))) {
        if (!ql_text_add(out, text + kept, (size_t)(at - text) - kept) || !ql_text_add(out, edit->to, to))
            return false;
        at += from;
        kept = (size_t)(at - text);
    }
    return ql_text_add(out, text + kept, length - kept);
}

ql_status ql_edits_apply(const ql_edits *edits, ql_place place, const char *text, size_t length, ql_text buffers[2],
                         const char **out, size_t *out_length, ql_error *err)
{
    *out = text;
    *out_length = length;
    for (size_t i = 0; i < edits->count; i++) {
        const ql_edit *edit = &edits->list[i];
        ql_text *into = *out == buffers[0].data ? &buffers[1] : &buffers[0];
        into->length = 0;
        bool done = edit->kind == QL_EDIT_UNICODE   ? apply_unicode(edit, *out, *out_length, into)
                    : edit->kind == QL_EDIT_REPLACE ? apply_replace(edit, *out, *out_length, into)
                                                    : apply_prepend(edit, place, *out, *out_length, into);
        if (!done)
            return ql_fail(err, QL_ERR_MEMORY, "normalizing %zu bytes: out of memory", length);
        *out = into->data;
        *out_length = into->length;
    }
    return QL_OK;
}
