/* Chats: which template renders them, and what it is given. */
#define _GNU_SOURCE
#include "text/chat.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/path.h"
#include "text/grow.h"
#include "text/tokenizer.h"

bool ql_chat_answers(const char *role)
{
    return strcmp(role, "assistant") == 0 || strcmp(role, "model") == 0;
}

bool ql_tokenizer_has_chat_template(const ql_tokenizer *t)
{
    return t->chat_template;
}

static ql_status no_memory(ql_error *err)
{
    return ql_fail(err, QL_ERR_MEMORY, "chat: out of memory");
}

static ql_status parse_file(ql_jinja **out, const char *path, ql_error *err)
{
    ql_map map = {0};
    ql_status status = ql_map_open(&map, path, err);
    if (!status)
        status = ql_jinja_open(out, path, (const char *)map.data, map.size, err);
    ql_map_close(&map);
    return status;
}

/* The model's template for chats with or without tools. */
static ql_status parse_own(const ql_tokenizer *t, bool tools, ql_jinja **out, ql_error *err)
{
    const char *text = tools && t->tool_template ? t->tool_template : t->chat_template;
    if (!text)
        return ql_fail(err, QL_ERR_UNSUPPORTED,
                       "%s: the model has no chat template (tokenizer_config.json: chat_template); name one with "
                       "--chat-template: %s, or a file",
                       t->folder, ql_chat_template_names());
    char *name = NULL;
    if (asprintf(&name, "%s: chat template", t->folder) < 0)
        return no_memory(err);
    ql_status status = ql_jinja_open(out, name, text, strlen(text), err);
    free(name);
    return status;
}

static ql_status parse(const ql_tokenizer *t, const char *name, bool tools, ql_jinja **out, ql_error *err)
{
    const char *known = name ? ql_chat_template_named(name) : NULL;
    if (!name)
        return parse_own(t, tools, out, err);
    if (known)
        return ql_jinja_open(out, name, known, strlen(known), err);
    if (ql_path_is_file(name))
        return parse_file(out, name, err);
    return ql_fail(err, QL_ERR_UNSUPPORTED, "chat template \"%s\" is neither known (%s) nor a file", name,
                   ql_chat_template_names());
}

/* The template, parsed once for all chats that ask for it. */
static ql_status choose(ql_tokenizer *t, const char *name, bool tools, const ql_jinja **jinja, ql_error *err)
{
    ql_parsed_template *kept = &t->parsed[tools];
    ql_status status = QL_OK;
    bool same = kept->jinja && (name ? kept->name && strcmp(name, kept->name) == 0 : !kept->name);
    if (!same) {
        ql_jinja_close(kept->jinja);
        free(kept->name);
        *kept = (ql_parsed_template){0};
        if (name && !(kept->name = strdup(name)))
            return no_memory(err);
        status = parse(t, name, tools, &kept->jinja, err);
    }
    *jinja = kept->jinja;
    return status;
}

/* Roles are known, or the template speaks of them. */
static ql_status check_role(const ql_tokenizer *t, const char *name, const json_t *message, size_t index, ql_error *err)
{
    static const char known[] = " system developer user assistant model tool function ipython ";
    const char *role = json_string_value(json_object_get(message, "role"));
    size_t length = role ? strlen(role) : 0;
    const char *found = role && length && !strchr(role, ' ') ? strstr(known, role) : NULL;
    while (found && (found[-1] != ' ' || found[length] != ' '))
        found = strstr(found + 1, role);
    bool spoken = !name && t->chat_template && length && length < 40 &&
                  strspn(role, "abcdefghijklmnopqrstuvwxyz_-") == length && strstr(t->chat_template, role);
    if (found || spoken)
        return QL_OK;
    if (!role)
        return ql_fail(err, QL_ERR_ARG, "messages[%zu]: no role", index);
    return ql_fail(err, QL_ERR_ARG,
                   "messages[%zu]: role \"%.40s\" is not known; known: system, developer, user, assistant, tool", index,
                   role);
}

static ql_status check_messages(const ql_tokenizer *t, const char *name, const json_t *messages, ql_error *err)
{
    size_t count = json_array_size(messages);
    ql_status status = QL_OK;
    if (!count)
        return ql_fail(err, QL_ERR_ARG, "a chat without messages");
    if (count > QL_J_MAX_MESSAGES)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "a chat of %zu messages; the most are %d", count, QL_J_MAX_MESSAGES);
    for (size_t i = 0; i < count && !status; i++)
        status = check_role(t, name, json_array_get(messages, i), i, err);
    return status;
}

/* A message as templates see it: its role is no words of somebody, and thoughts go by all of their names. */
static ql_jvalue message_of(ql_jrun *run, const json_t *json, size_t index)
{
    static const char *const thoughts[] = {"reasoning_content", "thinking", "reasoning"};
    ql_jvalue message = ql_jvalue_of_json(run, json, (uint16_t)(index + 1));
    ql_jvalue role = ql_jvalue_of_json(run, json_object_get(json, "role"), 0);
    const ql_jvalue *thought = NULL;
    ql_jput(run, message.dict, ql_jtextual(ql_jstring("role")), role);
    for (size_t i = 0; i < 3 && !thought; i++) {
        thought = ql_jfind_named(run, message.dict, thoughts[i]);
        thought = thought && thought->kind == QL_J_NONE ? NULL : thought;
    }
    if (!thought)
        return message;
    ql_jvalue value = *thought;
    ql_jput(run, message.dict, ql_jtextual(ql_jstring("reasoning_content")), value);
    if (!ql_jfind_named(run, message.dict, "thinking"))
        ql_jput(run, message.dict, ql_jtextual(ql_jstring("thinking")), value);
    return message;
}

typedef struct rendering {
    const ql_tokenizer *tokenizer;
    const ql_jinja *jinja;
    const ql_chat_source *source;
    bool add_prompt;
    ql_chat *chat;
} rendering;

static void put_token(ql_jrun *run, const rendering *r, ql_jdict *variables, const char *name, int32_t id)
{
    const char *text = ql_tokenizer_token(r->tokenizer, id);
    if (text)
        ql_jput(run, variables, ql_jtextual(ql_jstring(name)), ql_jtextual(ql_jstring(text)));
}

static ql_jdict *variables_of(ql_jrun *run, const rendering *r)
{
    ql_jdict *variables = ql_jdict_new(run);
    const ql_tokenizer *t = r->tokenizer;
    const char *key;
    json_t *value;
    put_token(run, r, variables, "bos_token", t->bos);
    put_token(run, r, variables, "eos_token", t->eos);
    put_token(run, r, variables, "pad_token", t->pad);
    put_token(run, r, variables, "unk_token", t->unk);
    ql_jput(run, variables, ql_jtextual(ql_jstring("tools")), ql_jvalue_of_json(run, r->source->tools, QL_J_DATA));
    ql_jput(run, variables, ql_jtextual(ql_jstring("documents")),
            ql_jvalue_of_json(run, r->source->documents, QL_J_DATA));
    json_object_foreach((json_t *)r->source->settings, key, value)
        ql_jput(run, variables, ql_jtextual(ql_jstring(key)), ql_jvalue_of_json(run, value, QL_J_DATA));
    return variables;
}

/* Cuts the text into pieces where who wrote it or what is learned changes. */
static bool cut(const ql_chat_marks *marks, ql_chat *chat)
{
    ql_jtext text = marks->output.text;
    if (!ql_text_add(&chat->text, text.data, text.length))
        return false;
    for (size_t at = 0, end; at < text.length; at = end) {
        ql_chat_piece piece = {at, 0, text.origin[at] != 0, marks->learn[at]};
        for (end = at;
             end < text.length && (text.origin[end] != 0) == piece.literal && marks->learn[end] == piece.learn;)
            end++;
        piece.end = end;
        if (!ql_grow((void **)&chat->pieces, &chat->capacity, chat->count, 1, sizeof piece))
            return false;
        chat->pieces[chat->count++] = piece;
    }
    return true;
}

static void render(ql_jrun *run, void *ctx)
{
    rendering *r = ctx;
    size_t count = json_array_size(r->source->messages);
    ql_jlist *messages = ql_jlist_new(run, count);
    for (size_t i = 0; i < count; i++)
        ql_jappend(run, messages, message_of(run, json_array_get(r->source->messages, i), i));
    ql_chat_marks marks = ql_chat_mark(run, r->jinja, r->tokenizer, variables_of(run, r), messages, r->add_prompt);
    r->chat->unstable = marks.unstable;
    if (!cut(&marks, r->chat))
        ql_jfail(run, QL_ERR_MEMORY, "out of memory");
}

/* About the bytes that a value holds. */
static size_t weigh(const json_t *json)
{
    size_t sum = 64 + json_string_length(json), i;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)json, key, value) sum += strlen(key) + weigh(value);
    json_array_foreach((json_t *)json, i, value) sum += weigh(value);
    return sum;
}

ql_status ql_chat_render_source(ql_tokenizer *t, const char *name, const ql_chat_source *source, bool add_prompt,
                                ql_chat *chat, ql_error *err)
{
    rendering r = {t, NULL, source, add_prompt, chat};
    ql_jrun run;
    ql_status status = choose(t, name, json_array_size(source->tools) > 0, &r.jinja, err);
    if (!status)
        status = check_messages(t, name, source->messages, err);
    if (status)
        return status;
    ql_jrun_start(&run, ql_jinja_name(r.jinja),
                  weigh(source->messages) + weigh(source->tools) + weigh(source->documents), err);
    status = ql_jinja_try(&run, render, &r);
    ql_jrun_end(&run);
    if (status)
        ql_chat_free(chat);
    return status;
}

/* The messages as JSON; NULL when a text is not UTF-8, its number in *bad, or when there is no memory. */
static json_t *json_of(const ql_message *messages, size_t count, size_t *bad)
{
    json_t *list = json_array();
    for (*bad = 0; list && *bad < count; ++*bad) {
        const ql_message *m = &messages[*bad];
        json_t *text = m->content || !m->length ? json_stringn(m->content ? m->content : "", m->length) : NULL;
        json_t *message = text ? json_pack("{s:s, s:o}", "role", m->role, "content", text) : NULL;
        if (message && json_array_append_new(list, message) == 0)
            continue;
        json_decref(list);
        return NULL;
    }
    return list;
}

static ql_status convert(const ql_message *messages, size_t count, json_t **out, ql_error *err)
{
    size_t bad;
    *out = json_of(messages, count, &bad);
    return *out ? QL_OK : ql_fail(err, QL_ERR_FORMAT, "messages[%zu] is not UTF-8 (or there is no memory for it)", bad);
}

ql_status ql_chat_render(ql_tokenizer *t, const char *name, const ql_message *messages, size_t count, bool add_prompt,
                         ql_chat *chat, ql_error *err)
{
    json_t *list;
    ql_status status = convert(messages, count, &list, err);
    ql_chat_source source = {.messages = list};
    if (!status)
        status = ql_chat_render_source(t, name, &source, add_prompt, chat, err);
    json_decref(list);
    return status;
}

ql_status ql_chat_encode(ql_tokenizer *t, const char *name, const ql_message *messages, size_t count, bool add_prompt,
                         ql_ids *ids, ql_marks *learn, ql_error *err)
{
    json_t *list;
    ql_status status = convert(messages, count, &list, err);
    ql_chat_source source = {.messages = list};
    if (!status)
        status = ql_chat_encode_source(t, name, &source, add_prompt, ids, learn, NULL, err);
    json_decref(list);
    return status;
}
