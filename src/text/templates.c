/* The known chat templates, each as the Jinja text that models carry renders it. */
#define _GNU_SOURCE
#include <string.h>

#include "base/error.h"
#include "text/chat.h"
#include "text/grow.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

typedef enum piece_kind { READ, LEARN } piece_kind;

/* Appends text as one piece. An empty one is none. */
static bool add(ql_rendering *r, const char *text, size_t length, bool literal, piece_kind kind)
{
    ql_chat *chat = r->chat;
    size_t begin = chat->text.length;
    if (!length)
        return true;
    if (!ql_grow((void **)&chat->pieces, &chat->capacity, chat->count, 1, sizeof *chat->pieces) ||
        !ql_text_add(&chat->text, text, length))
        return false;
    chat->pieces[chat->count++] = (ql_chat_piece){begin, chat->text.length, literal, kind == LEARN};
    return true;
}

static bool markup(ql_rendering *r, const char *text, piece_kind kind)
{
    return add(r, text, strlen(text), false, kind);
}

static bool words(ql_rendering *r, ql_message m, piece_kind kind)
{
    return add(r, m.content, m.length, true, kind);
}

/* The token itself; none when the model has none. */
static bool token(ql_rendering *r, int32_t id, piece_kind kind)
{
    size_t length = 0;
    const char *text = ql_vocab_text(&r->tokenizer->vocab, id, &length);
    return add(r, text, length, false, kind);
}

static ql_status memory(bool fits, ql_error *err)
{
    return fits ? QL_OK : ql_fail(err, QL_ERR_MEMORY, "chat: out of memory");
}

static bool is(ql_message m, const char *role)
{
    return strcmp(m.role, role) == 0;
}

/* Content without white space at its end. */
static ql_message trimmed_end(ql_message m)
{
    while (m.length && ql_is_space(ql_utf8_before(m.content, m.length)))
        do
            m.length--;
        while (m.length && ((uint8_t)m.content[m.length] & 0xc0) == 0x80);
    return m;
}

/* Content without white space at either end, as Jinja's trim and Python's strip do. */
static ql_message trimmed(ql_message m)
{
    while (m.length) {
        ql_utf8 c = ql_utf8_next(m.content, m.length);
        if (c.state != QL_UTF8_WHOLE || !ql_is_space(c.code))
            break;
        m.content += c.length;
        m.length -= c.length;
    }
    return trimmed_end(m);
}

/* The default system message that a ChatML template holds as plain text between its marks. */
static bool default_system(const char *jinja, const char **text, size_t *length)
{
    static const char mark[] = "<|im_start|>system";
    for (const char *at = jinja; (at = strstr(at, mark));) {
        at += sizeof mark - 1;
        const char *begin = at[0] == '\n' ? at + 1 : at[0] == '\\' && at[1] == 'n' ? at + 2 : NULL;
        const char *end = begin ? strstr(begin, "<|im_end|>") : NULL;
        if (!end || end == begin || strcspn(begin, "'\"{}") < (size_t)(end - begin))
            continue;
        *text = begin;
        *length = (size_t)(end - begin);
        return true;
    }
    return false;
}

/* An assistant's content: what it thought, and what it says. */
typedef struct answer {
    ql_message thought, said;
} answer;

static ql_message without_first_newlines(ql_message m)
{
    for (; m.length && *m.content == '\n'; m.length--)
        m.content++;
    return m;
}

static ql_message without_newlines(ql_message m)
{
    m = without_first_newlines(m);
    while (m.length && m.content[m.length - 1] == '\n')
        m.length--;
    return m;
}

/* Splits "<think>...</think>..." as Qwen3's template does; without the marks all is said. */
static answer split_thought(ql_message m)
{
    static const char open[] = "<think>", close[] = "</think>";
    answer a = {{m.role, m.content, 0}, m};
    const char *end = m.content + m.length, *at = memmem(m.content, m.length, close, sizeof close - 1);
    if (!at)
        return a;
    a.thought.length = (size_t)(at - m.content);
    for (const char *begin; (begin = memmem(a.thought.content, a.thought.length, open, sizeof open - 1));) {
        a.thought.length -= (size_t)(begin - a.thought.content) + sizeof open - 1;
        a.thought.content = begin + sizeof open - 1;
    }
    a.thought = without_newlines(a.thought);
    for (; at; at = memmem(a.said.content, a.said.length, close, sizeof close - 1)) {
        a.said.content = at + sizeof close - 1;
        a.said.length = (size_t)(end - a.said.content);
    }
    a.said = without_first_newlines(a.said);
    return a;
}

/* Qwen3 keeps thoughts after the last question only, and gives the last answer an empty one if it has none. */
static bool qwen3_answer(ql_rendering *r, size_t i)
{
    size_t question = r->count;
    while (question-- > 0 && !is(r->messages[question], "user"))
        ;
    answer a = split_thought(r->messages[i]);
    if (question == SIZE_MAX || i < question || (i + 1 < r->count && !a.thought.length))
        return words(r, a.said, LEARN);
    return markup(r, "<think>\n", LEARN) && words(r, a.thought, LEARN) && markup(r, "\n</think>\n\n", LEARN) &&
           words(r, without_first_newlines(a.said), LEARN);
}

ql_status ql_render_chatml(ql_rendering *r, ql_error *err)
{
    ql_message system = {"system", NULL, 0};
    bool thinks = strstr(r->model_template, "last_query_index") && strstr(r->model_template, "<think>");
    bool fits = !strstr(r->model_template, "bos_token") || token(r, r->tokenizer->bos, READ);
    if (!is(r->messages[0], "system") && default_system(r->model_template, &system.content, &system.length))
        fits = fits && markup(r, "<|im_start|>system\n", READ) && words(r, system, READ) &&
               markup(r, "<|im_end|>\n", READ);
    for (size_t i = 0; i < r->count && fits; i++) {
        ql_message m = r->messages[i];
        piece_kind kind = is(m, "assistant") ? LEARN : READ;
        fits = markup(r, "<|im_start|>", READ) && markup(r, m.role, READ) && markup(r, "\n", READ) &&
               (thinks && kind == LEARN ? qwen3_answer(r, i) : words(r, m, kind)) && markup(r, "<|im_end|>", kind) &&
               markup(r, "\n", READ);
    }
    return memory(fits && (!r->add_prompt || markup(r, "<|im_start|>assistant\n", READ)), err);
}

/* Turns of user and assistant in alternation, the user first; messages[from ..]. */
static ql_status check_alternation(const ql_rendering *r, size_t from, ql_error *err)
{
    for (size_t i = from; i < r->count; i++) {
        const char *wanted = (i - from) % 2 ? "assistant" : "user";
        if (!is(r->messages[i], wanted))
            return ql_fail(
                err, QL_ERR_ARG,
                "messages[%zu]: role \"%s\" where llama2 wants \"%s\": after an optional system message user "
                "and assistant take turns",
                i, r->messages[i].role, wanted);
    }
    return from < r->count ? QL_OK : ql_fail(err, QL_ERR_ARG, "a chat of a system message alone");
}

/* <s>[INST] <<SYS>>\nsystem\n<</SYS>>\n\nuser [/INST] assistant </s><s>[INST] ... */
ql_status ql_render_llama2(ql_rendering *r, ql_error *err)
{
    size_t from = is(r->messages[0], "system");
    ql_status status = check_alternation(r, from, err);
    bool fits = true;
    for (size_t i = from; i < r->count && fits && !status; i++) {
        ql_message m = trimmed(r->messages[i]);
        if (is(m, "assistant")) {
            fits = markup(r, " ", LEARN) && words(r, m, LEARN) && markup(r, " ", LEARN) &&
                   token(r, r->tokenizer->eos, LEARN);
            continue;
        }
        fits = token(r, r->tokenizer->bos, READ) && markup(r, "[INST] ", READ);
        if (i == from && from) { /* the template strips the two as one text */
            m = trimmed_end(r->messages[i]);
            fits = fits && markup(r, "<<SYS>>\n", READ) && words(r, r->messages[0], READ) &&
                   markup(r, "\n<</SYS>>\n\n", READ);
        }
        fits = fits && words(r, m, READ) && markup(r, " [/INST]", READ);
    }
    return status ? status : memory(fits, err);
}

static bool llama3_header(ql_rendering *r, const char *role)
{
    return markup(r, "<|start_header_id|>", READ) && markup(r, role, READ) && markup(r, "<|end_header_id|>\n\n", READ);
}

/* Llama 3.1 and later begin with a system turn that names dates; 26 Jul 2024 is the day that the template falls back
 * to without a clock, and keeps a run repeatable. */
static bool llama3_dates(ql_rendering *r)
{
    return llama3_header(r, "system") &&
           markup(r, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", READ) &&
           (!is(r->messages[0], "system") || words(r, trimmed(r->messages[0]), READ)) && markup(r, "<|eot_id|>", READ);
}

ql_status ql_render_llama3(ql_rendering *r, ql_error *err)
{
    bool dated = strstr(r->model_template, "Cutting Knowledge Date: December 2023");
    bool fits = token(r, r->tokenizer->bos, READ) && (!dated || llama3_dates(r));
    for (size_t i = dated && is(r->messages[0], "system"); i < r->count && fits; i++) {
        ql_message m = trimmed(r->messages[i]);
        piece_kind kind = is(m, "assistant") ? LEARN : READ;
        fits = llama3_header(r, m.role) && words(r, m, kind) && markup(r, "<|eot_id|>", kind);
    }
    return memory(fits && (!r->add_prompt || llama3_header(r, "assistant")), err);
}

ql_status ql_render_zephyr(ql_rendering *r, ql_error *err)
{
    bool fits = true;
    for (size_t i = 0; i < r->count && fits; i++) {
        ql_message m = r->messages[i];
        piece_kind kind = is(m, "assistant") ? LEARN : READ;
        fits = markup(r, "<|", READ) && markup(r, m.role, READ) && markup(r, "|>\n", READ) && words(r, m, kind) &&
               token(r, r->tokenizer->eos, kind) && markup(r, "\n", READ);
    }
    return memory(fits && (!r->add_prompt || markup(r, "<|assistant|>\n", READ)), err);
}
