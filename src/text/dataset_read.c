/* Files of text and JSON lines into samples. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/path.h"
#include "text/chat.h"
#include "text/dataset.h"
#include "text/grow.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

typedef struct reading {
    ql_dataset *data;
    const char *path;
    ql_tokenizer *tokenizer;
    ql_data_options options;
    int32_t bos;     /* in front of documents, -1: none */
    ql_ids ids;      /* of the line at hand */
    ql_marks learn;  /* likewise */
    bool no_end;     /* something learned has no end token behind it */
    size_t unstable; /* answers that the template shows behind another prompt than their own */
    size_t unstable_line;
} reading;

ql_data_options ql_data_options_defaults(void)
{
    return (ql_data_options){.sequence = 512, .mask_prompt = true};
}

static ql_status no_memory(ql_error *err)
{
    return ql_fail(err, QL_ERR_MEMORY, "data set: out of memory");
}

static size_t line_of(const char *text, size_t at)
{
    size_t line = 1;
    for (const char *end = text + at; (text = memchr(text, '\n', (size_t)(end - text))); text++)
        line++;
    return line;
}

static ql_status read_text(reading *r, ql_error *err)
{
    ql_map map = {0};
    ql_status status = ql_map_open(&map, r->path, err);
    if (status)
        return status;
    const char *text = (const char *)map.data;
    size_t length = map.size, valid = ql_utf8_valid(text, length), blank = 0;
    if (length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) /* a byte order mark is no text */
        text += 3, length -= 3, valid -= 3;
    while (blank < length && strchr(" \t\r\n", text[blank]) && text[blank])
        blank++;
    if (blank == length)
        status =
            ql_fail(err, QL_ERR_FORMAT, "%s: %s", r->path, map.size ? "nothing but white space" : "the file is empty");
    else if (valid < length)
        status = ql_fail(err, QL_ERR_FORMAT,
                         "%s:%zu: byte %zu of the file (0x%02X) is not UTF-8; convert it, for example "
                         "with iconv",
                         r->path, line_of(text, valid), valid + map.size - length, (uint8_t)text[valid]);
    if (!status)
        status = ql_tokenizer_encode(r->tokenizer, text, length, QL_ENCODE_PLAIN, &r->data->stream, err);
    ql_map_close(&map);
    if (status)
        return status;
    r->data->bos = r->bos;
    status = ql_dataset_pack(r->data, err);
    if (!status && !r->data->count)
        return ql_fail(err, QL_ERR_FORMAT, "%s: a text of %zu tokens has nothing to learn", r->path,
                       r->data->stream.count);
    return status;
}

static bool add_id(reading *r, int32_t id, uint8_t learn)
{
    return id < 0 || (ql_ids_add(&r->ids, &id, 1) && ql_marks_fill(&r->learn, learn, r->ids.count));
}

static bool add_end(reading *r)
{
    int32_t eos = ql_tokenizer_eos(r->tokenizer);
    r->no_end |= eos < 0;
    return add_id(r, eos, 1);
}

/* Encodes the string member `key` after what is there already. */
static ql_status add_string(reading *r, const ql_json_at *object, const char *key, uint8_t learn, ql_error *err)
{
    const char *text = NULL;
    size_t length = 0, before = r->ids.count;
    ql_status status = ql_json_get_string(object, key, QL_REQUIRED, &text, &length, err);
    if (status)
        return status;
    int32_t last = before ? r->ids.data[before - 1] : -1;
    ql_place place = !before || (before == 1 && last == r->bos) ? QL_PLACE_START
                     : r->tokenizer->added.kinds[last]          ? QL_PLACE_AFTER
                                                                : QL_PLACE_CONTINUED;
    status = ql_encode_at(r->tokenizer, place, text, length, (ql_literals){0}, &r->ids, err);
    if (status)
        return ql_fail_in(err, status, "%s:%zu: %s", object->file, object->line, key);
    return ql_marks_fill(&r->learn, learn, r->ids.count) ? QL_OK : no_memory(err);
}

static ql_status read_document(reading *r, const ql_json_at *object, ql_error *err)
{
    ql_status status = add_id(r, r->bos, 0) ? add_string(r, object, "text", 1, err) : no_memory(err);
    return status ? status : add_end(r) ? QL_OK : no_memory(err);
}

static ql_status read_completion(reading *r, const ql_json_at *object, ql_error *err)
{
    uint8_t prompt = !r->options.mask_prompt;
    ql_status status = add_id(r, r->bos, 0) ? add_string(r, object, "prompt", prompt, err) : no_memory(err);
    if (!status)
        status = add_string(r, object, "completion", 1, err);
    return status ? status : add_end(r) ? QL_OK : no_memory(err);
}

/* Renders and encodes the chat; the learned tokens are the answers. */
static ql_status encode_chat(reading *r, const ql_json_at *object, const ql_chat_source *chat, ql_error *err)
{
    bool answered = !r->options.mask_prompt, ended = false;
    size_t i, before = r->unstable;
    json_t *message;
    json_array_foreach((json_t *)chat->messages, i, message) answered =
        answered || ql_chat_answers(json_string_value(json_object_get(message, "role")));
    ql_status status = ql_chat_encode_source(r->tokenizer, r->options.chat_template, chat, false, &r->ids, &r->learn,
                                             &r->unstable, err);
    if (status)
        return ql_fail_in(err, status, "%s:%zu", object->file, object->line);
    if (!answered)
        return ql_fail(err, QL_ERR_FORMAT, "%s:%zu: messages: no turn of the assistant, so nothing to learn",
                       object->file, object->line);
    if (r->unstable > before && !before)
        r->unstable_line = object->line;
    for (i = 0; i < r->ids.count && !ended; i++)
        ended = r->learn.data[i] && ql_tokenizer_is_end(r->tokenizer, r->ids.data[i]);
    r->no_end |= !ended; /* a template by name can hold marks that are no tokens of this model */
    if (!r->options.mask_prompt)
        memset(r->learn.data, 1, r->learn.count);
    return QL_OK;
}

/* A message has a role, and content: text, a list of parts, or nothing beside calls of tools and thoughts. */
static ql_status check_message(const ql_json_at *message, ql_error *err)
{
    const char *text;
    size_t length;
    const json_t *content = ql_json_member(message, "content");
    ql_status status = ql_json_get_string(message, "role", QL_REQUIRED, &text, NULL, err);
    bool calls = !status && (ql_json_member(message, "tool_calls") || ql_json_member(message, "reasoning_content"));
    if (status || json_is_array(content) || (calls && (!content || json_is_null(content))))
        return status;
    return ql_json_get_string(message, "content", QL_REQUIRED, &text, &length, err);
}

/* "tools" is a list, or a string that holds one, as data sets of mixed tools keep it. */
static ql_status read_tools(const ql_json_at *object, const json_t **tools, json_t **parsed, ql_error *err)
{
    const char *text;
    size_t length;
    ql_json_at list;
    ql_status status;
    *tools = ql_json_member(object, "tools");
    if (!json_is_string(*tools)) {
        status = ql_json_get_array(object, "tools", QL_OPTIONAL, &list, err);
        *tools = status ? NULL : list.value;
        return status;
    }
    status = ql_json_get_string(object, "tools", QL_REQUIRED, &text, &length, err);
    if (!status)
        status = ql_json_parse(parsed, "tools", text, length, err);
    *tools = *parsed;
    if (status)
        return ql_fail_in(err, status, "%s:%zu", object->file, object->line);
    return json_is_array(*parsed)
               ? QL_OK
               : ql_fail(err, QL_ERR_FORMAT, "%s:%zu: tools: a string that holds no list", object->file, object->line);
}

static ql_status put_bos_first(reading *r, ql_error *err)
{
    int32_t bos = ql_tokenizer_bos(r->tokenizer);
    if (r->options.bos != QL_BOS_ALWAYS || (r->ids.count && r->ids.data[0] == bos))
        return QL_OK;
    if (!add_id(r, bos, 0))
        return no_memory(err);
    memmove(r->ids.data + 1, r->ids.data, (r->ids.count - 1) * sizeof *r->ids.data);
    memmove(r->learn.data + 1, r->learn.data, r->learn.count - 1);
    r->ids.data[0] = bos;
    r->learn.data[0] = 0;
    return QL_OK;
}

static ql_status read_chat(reading *r, const ql_json_at *object, ql_error *err)
{
    ql_json_at messages, documents, settings;
    ql_chat_source chat = {0};
    json_t *parsed = NULL;
    ql_status status = ql_json_get_array(object, "messages", QL_REQUIRED, &messages, err);
    if (!status)
        status = ql_json_get_array(object, "documents", QL_OPTIONAL, &documents, err);
    if (!status)
        status = ql_json_get_object(object, "chat_template_kwargs", QL_OPTIONAL, &settings, err);
    for (size_t i = 0; !status && i < json_array_size(messages.value); i++) {
        ql_json_at item = ql_json_element(&messages, i);
        status = check_message(&item, err);
    }
    if (!status)
        status = read_tools(object, &chat.tools, &parsed, err);
    if (!status) {
        chat.messages = messages.value;
        chat.documents = documents.value;
        chat.settings = settings.value;
        status = encode_chat(r, object, &chat, err);
    }
    json_decref(parsed);
    return status ? status : put_bos_first(r, err);
}

typedef ql_status line_reader(reading *r, const ql_json_at *object, ql_error *err);

static ql_status unknown_shape(const ql_json_at *object, ql_error *err)
{
    char keys[400] = "";
    size_t used = 0;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object->value, key, value) if (used < sizeof keys - 48) used +=
        (size_t)snprintf(keys + used, sizeof keys - used, "%s\"%.40s\"", used ? ", " : "", key);
    return ql_fail(
        err, QL_ERR_FORMAT,
        "%s:%zu: an object with the keys %s; known are: \"text\"; \"prompt\" and \"completion\"; \"messages\"",
        object->file, object->line, used ? keys : "(none)");
}

/* Which kind of lines the first one says there are. */
static ql_status find_kind(line_reader **reader, const ql_json_at *object, ql_error *err)
{
    if (!json_is_object(object->value))
        return ql_json_expected(object, "an object", err);
    *reader = ql_json_member(object, "messages")                                         ? read_chat
              : ql_json_member(object, "prompt") && ql_json_member(object, "completion") ? read_completion
              : ql_json_member(object, "text")                                           ? read_document
                                                                                         : NULL;
    return *reader ? QL_OK : unknown_shape(object, err);
}

static ql_status read_line(reading *r, line_reader **reader, const ql_json_at *object, ql_error *err)
{
    r->ids.count = r->learn.count = 0;
    ql_status status = *reader ? QL_OK : find_kind(reader, object, err);
    if (!status)
        status = (*reader)(r, object, err);
    return status ? status : ql_dataset_add(r->data, r->ids.data, r->learn.data, r->ids.count, err);
}

static ql_status read_lines(reading *r, ql_error *err)
{
    ql_jsonl lines = {0};
    line_reader *reader = NULL;
    json_t *value = NULL;
    ql_status status = ql_jsonl_open(&lines, r->path, err);
    while (!status && !(status = ql_jsonl_next(&lines, &value, err)) && value) {
        ql_json_at object = ql_jsonl_root(&lines, value);
        status = read_line(r, &reader, &object, err);
        json_decref(value);
    }
    ql_jsonl_close(&lines);
    if (!status && !reader)
        return ql_fail(err, QL_ERR_FORMAT, "%s: the file holds no lines", r->path);
    if (!status && !r->data->count)
        return ql_fail(err, QL_ERR_FORMAT,
                       "%s: none of its %zu lines has anything to learn within %zu tokens; raise the sequence length",
                       r->path, r->data->skipped, r->options.sequence);
    return status;
}

static ql_status find_format(reading *r, ql_error *err)
{
    ql_data_format *format = &r->options.format;
    if (*format != QL_DATA_AUTO)
        return QL_OK;
    if (ql_path_ends_in(r->path, ".json"))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: a .json file; write one object a line and call it .jsonl",
                       r->path);
    if (ql_path_ends_in(r->path, ".txt") || ql_path_ends_in(r->path, ".jsonl") || ql_path_ends_in(r->path, ".ndjson")) {
        *format = ql_path_ends_in(r->path, ".txt") ? QL_DATA_TEXT : QL_DATA_JSONL;
        return QL_OK;
    }
    ql_map map = {0};
    ql_status status = ql_map_open(&map, r->path, err);
    if (status)
        return status;
    *format = map.size && map.data[0] == '{' ? QL_DATA_JSONL : QL_DATA_TEXT;
    ql_map_close(&map);
    return QL_OK;
}

static ql_status find_bos(reading *r, ql_error *err)
{
    int32_t bos = ql_tokenizer_bos(r->tokenizer);
    if (r->options.bos == QL_BOS_ALWAYS && bos < 0)
        return ql_fail(err, QL_ERR_ARG, "a BOS is asked for, and the tokenizer has none");
    bool wanted =
        r->options.bos == QL_BOS_ALWAYS || (r->options.bos == QL_BOS_AUTO && ql_tokenizer_adds_bos(r->tokenizer));
    r->bos = wanted ? bos : -1;
    return QL_OK;
}

static bool warn(ql_dataset *d, const char *format, size_t count, size_t most)
{
    char **warning = &d->warnings[d->warning_count];
    if (asprintf(warning, format, count, most) < 0)
        return false;
    d->warning_count++;
    return true;
}

static ql_status add_warnings(const reading *r, ql_error *err)
{
    ql_dataset *d = r->data;
    size_t truncated = ql_dataset_stats(d).truncated;
    bool fits = true;
    if (truncated)
        fits = warn(d, "%zu samples have more than %zu targets and were cut", truncated, r->options.sequence);
    if (d->skipped && fits)
        fits = warn(d,
                    r->options.sequence < INT32_MAX
                        ? "%zu lines were skipped: nothing to learn in their first %zu tokens"
                        : "%zu lines were skipped: nothing to learn in them",
                    d->skipped, r->options.sequence);
    if (r->no_end && fits)
        fits = warn(d, "no end token stands behind the answers: the model will not learn to stop", 0, 0);
    if (r->unstable && fits)
        fits = warn(
            d,
            "the chat template is not prefix-stable: %zu answers, the first on line %zu, stand behind another text "
            "than their prompt (thoughts dropped, tools moved); their words are learned all the same",
            r->unstable, r->unstable_line);
    return fits ? QL_OK : no_memory(err);
}

ql_status ql_dataset_open(ql_dataset **out, const char *path, ql_tokenizer *tokenizer, const ql_data_options *options,
                          ql_error *err)
{
    *out = NULL;
    if (!path || !tokenizer || !options)
        return ql_fail(err, QL_ERR_ARG, "data set: a path, a tokenizer and options are needed");
    if (!options->sequence || options->sequence > INT32_MAX)
        return ql_fail(err, QL_ERR_ARG, "sequence length %zu: give one from 1 to %d", options->sequence, INT32_MAX);
    reading r = {.path = path, .tokenizer = tokenizer, .options = *options, .data = calloc(1, sizeof *r.data)};
    ql_status status = r.data ? find_format(&r, err) : no_memory(err);
    if (!status)
        status = find_bos(&r, err);
    if (!status) {
        r.data->sequence = options->sequence;
        r.data->bos = -1;
        status = r.options.format == QL_DATA_TEXT ? read_text(&r, err) : read_lines(&r, err);
    }
    if (!status)
        status = add_warnings(&r, err);
    ql_ids_free(&r.ids);
    ql_marks_free(&r.learn);
    if (status)
        ql_dataset_close(r.data);
    else
        *out = r.data;
    return status;
}
