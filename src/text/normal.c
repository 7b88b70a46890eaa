#define _GNU_SOURCE
#include "text/normal.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/error.h"
#include "text/grow.h"

enum { MOST_GROWTH = 64 }; /* of a text: a file of a few replacements must not ask for all memory */

ql_status ql_short_string(char *to, size_t size, const ql_json_at *object, const char *key, ql_error *err)
{
    const char *text = NULL;
    ql_status status = ql_json_get_string(object, key, QL_REQUIRED, &text, NULL, err);
    if (status)
        return status;
    if (strlen(text) >= size)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: %s.%s: \"%.40s\" has more than %zu bytes", object->file,
                       object->path, key, text, size - 1);
    strcpy(to, text);
    return QL_OK;
}

/* How many times longer a text can become by it. */
static size_t growth(const ql_edit *edit)
{
    size_t from = strlen(edit->from), to = strlen(edit->to);
    return edit->kind == QL_EDIT_REPLACE && to > from ? (to + from - 1) / from : 1;
}

bool ql_edits_add(ql_edits *edits, const ql_edit *edit)
{
    size_t all = growth(edit);
    for (size_t i = 0; i < edits->count; i++)
        all *= growth(&edits->list[i]);
    if (edits->count == sizeof edits->list / sizeof *edits->list || all > MOST_GROWTH)
        return false;
    edits->list[edits->count++] = *edit;
    return true;
}

static ql_status load_replace(ql_edit *edit, const ql_json_at *step, ql_error *err)
{
    ql_json_at pattern;
    edit->kind = QL_EDIT_REPLACE;
    ql_status status = ql_json_get_object(step, "pattern", QL_REQUIRED, &pattern, err);
    if (!status && !ql_json_member(&pattern, "String"))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: %s: Replace is supported with a pattern of type String only",
                       step->file, step->path);
    if (!status)
        status = ql_short_string(edit->from, sizeof edit->from, &pattern, "String", err);
    if (!status)
        status = ql_short_string(edit->to, sizeof edit->to, step, "content", err);
    if (!status && !edit->from[0])
        status = ql_fail(err, QL_ERR_FORMAT, "%s: %s: the pattern of Replace is empty", step->file, step->path);
    return status;
}

static int unicode_form(const char *type)
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
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (strcmp(type, forms[i].name) == 0)
            return forms[i].form;
    return 0;
}

static ql_status load_step(void *ctx, const ql_json_at *step, const char *type, ql_error *err)
{
    ql_edits *edits = ctx;
    ql_edit edit = {.form = unicode_form(type)};
    ql_status status = QL_OK;
    if (strcmp(type, "Prepend") == 0) {
        edit.kind = QL_EDIT_PREPEND;
        status = ql_short_string(edit.to, sizeof edit.to, step, "prepend", err);
    } else if (strcmp(type, "Replace") == 0) {
        status = load_replace(&edit, step, err);
    } else if (!edit.form) {
        return ql_fail(err, QL_ERR_UNSUPPORTED,
                       "%s: normalizer %s is not supported; known: NFC, NFD, NFKC, NFKD, Prepend, Replace, Sequence",
                       step->file, type);
    }
    if (!status && !ql_edits_add(edits, &edit))
        status = ql_fail(err, QL_ERR_UNSUPPORTED, "%s: normalizer: more than %zu steps, or steps that make a text longer than %d times", step->file,
                         sizeof edits->list / sizeof *edits->list, MOST_GROWTH);
    return status;
}

ql_status ql_steps_load(const ql_json_at *root, const char *key, const char *list, ql_step_load *load, void *ctx,
                        ql_error *err)
{
    ql_json_at component, steps;
    const char *type = NULL;
    ql_status status = ql_json_get_object(root, key, QL_OPTIONAL, &component, err);
    if (status || !component.value)
        return status;
    if ((status = ql_json_get_string(&component, "type", QL_REQUIRED, &type, NULL, err)))
        return status;
    if (strcmp(type, "Sequence") != 0)
        return load(ctx, &component, type, err);
    if ((status = ql_json_get_array(&component, list, QL_REQUIRED, &steps, err)))
        return status;
    for (size_t i = 0; i < json_array_size(steps.value) && !status; i++) {
        ql_json_at step = ql_json_element(&steps, i);
        status = ql_json_get_string(&step, "type", QL_REQUIRED, &type, NULL, err);
        if (!status)
            status = load(ctx, &step, type, err);
    }
    return status;
}

ql_status ql_edits_load(ql_edits *edits, const ql_json_at *root, ql_error *err)
{
    return ql_steps_load(root, "normalizer", "normalizers", load_step, edits, err);
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
