/* Which template a chat is rendered with, and its way into tokens. */
#include "text/chat.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/grow.h"
#include "text/tokenizer.h"

static const struct {
    const char *name;
    ql_template_render *render;
    const char *marks[3]; /* all of them are in a template of this kind */
    const char *never;    /* and this is not */
} templates[] = {
    {"chatml", ql_render_chatml, {"<|im_start|>", "<|im_end|>", ""}, NULL},
    {"llama2", ql_render_llama2, {"[INST]", "<<SYS>>", "[/INST]"}, NULL},
    {"llama3", ql_render_llama3, {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}, NULL},
    {"zephyr", ql_render_zephyr, {"<|user|>", "<|assistant|>", "eos_token"}, "<|end|>"},
};
enum { TEMPLATES = sizeof templates / sizeof *templates };

const char *ql_chat_template_names(void)
{
    return "chatml, llama2, llama3, zephyr";
}

static bool recognized(const char *text, size_t i)
{
    for (int m = 0; m < 3; m++)
        if (!strstr(text, templates[i].marks[m]))
            return false;
    return !templates[i].never || !strstr(text, templates[i].never);
}

static ql_status choose(const ql_tokenizer *t, const char *name, size_t *chosen, ql_error *err)
{
    for (*chosen = 0; *chosen < TEMPLATES; ++*chosen)
        if (name ? strcmp(name, templates[*chosen].name) == 0
                 : t->chat_template && recognized(t->chat_template, *chosen))
            return QL_OK;
    if (name)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "chat template \"%s\" is not known; known: %s", name,
                       ql_chat_template_names());
    return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: %s; name one with --chat-template: %s", t->folder,
                   t->chat_template ? "its chat template is none of the known ones"
                                    : "the model has no chat template (tokenizer_config.json: chat_template)",
                   ql_chat_template_names());
}

static ql_status check_messages(const ql_message *messages, size_t count, ql_error *err)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    if (!count)
        return ql_fail(err, QL_ERR_ARG, "a chat without messages");
    for (size_t i = 0; i < count; i++) {
        size_t role = 0;
        while (role < 3 && strcmp(messages[i].role, roles[role]) != 0)
            role++;
        if (role == 3)
            return ql_fail(err, QL_ERR_ARG,
                           "messages[%zu]: role \"%.40s\" is not known; known: system, user, assistant", i,
                           messages[i].role);
    }
    return QL_OK;
}

ql_status ql_chat_render(const ql_tokenizer *tokenizer, const char *name, const ql_message *messages, size_t count,
                         bool add_prompt, ql_chat *chat, ql_error *err)
{
    size_t chosen;
    ql_status status = choose(tokenizer, name, &chosen, err);
    if (!status)
        status = check_messages(messages, count, err);
    if (status)
        return status;
    bool own = tokenizer->chat_template && recognized(tokenizer->chat_template, chosen);
    ql_rendering r = {tokenizer, own ? tokenizer->chat_template : "", messages, count, add_prompt, chat};
    status = templates[chosen].render(&r, err);
    if (status)
        ql_chat_free(chat);
    return status;
}

void ql_chat_free(ql_chat *chat)
{
    ql_text_free(&chat->text);
    free(chat->pieces);
    *chat = (ql_chat){0};
}

/* The literal pieces in [first, last) as spans that count from the start of the first. */
static ql_literals literals_of(const ql_chat *chat, size_t first, size_t last, ql_span *spans)
{
    size_t count = 0, origin = chat->pieces[first].begin;
    for (size_t i = first; i < last; i++)
        if (chat->pieces[i].literal)
            spans[count++] = (ql_span){chat->pieces[i].begin - origin, chat->pieces[i].end - origin};
    return (ql_literals){spans, count};
}

/* Encodes the pieces run by run: text that is learned apart from text that is read. */
static ql_status encode_runs(ql_tokenizer *t, const ql_chat *chat, ql_span *spans, ql_ids *ids, ql_marks *learn,
                             ql_error *err)
{
    ql_place place = QL_PLACE_START;
    for (size_t first = 0, last; first < chat->count; first = last) {
        const ql_chat_piece *piece = &chat->pieces[first];
        for (last = first; last < chat->count && chat->pieces[last].learn == piece->learn;)
            last++;
        size_t end = chat->pieces[last - 1].end;
        ql_status status = ql_encode_at(t, place, chat->text.data + piece->begin, end - piece->begin,
                                        literals_of(chat, first, last, spans), ids, err);
        if (status)
            return status;
        if (learn && !ql_marks_fill(learn, piece->learn, ids->count))
            return ql_fail(err, QL_ERR_MEMORY, "chat: out of memory");
        bool after = ids->count && t->added.kinds[ids->data[ids->count - 1]];
        place = after ? QL_PLACE_AFTER : QL_PLACE_CONTINUED;
    }
    return QL_OK;
}

ql_status ql_chat_encode(ql_tokenizer *t, const char *name, const ql_message *messages, size_t count, bool add_prompt,
                         ql_ids *ids, ql_marks *learn, ql_error *err)
{
    ql_chat chat = {0};
    size_t before = ids->count;
    ql_status status = ql_chat_render(t, name, messages, count, add_prompt, &chat, err);
    if (status)
        return status;
    ql_span *spans = calloc(chat.count + 1, sizeof *spans);
    status = spans ? encode_runs(t, &chat, spans, ids, learn, err) : ql_fail(err, QL_ERR_MEMORY, "chat: out of memory");
    if (status) {
        ids->count = before;
        if (learn)
            learn->count = before;
    }
    free(spans);
    ql_chat_free(&chat);
    return status;
}
