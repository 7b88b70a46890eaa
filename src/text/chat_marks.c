/* Which text of a rendered chat is learned. */
#include <string.h>

#include "text/chat.h"
#include "text/jinja_eval.h"
#include "text/tokenizer.h"

typedef struct marking {
    ql_jrun *run;
    const ql_jinja *jinja;
    const ql_tokenizer *tokenizer;
    const ql_jdict *variables;
    const ql_jlist *messages;
    ql_jtext text; /* the whole chat */
    uint8_t *learn;
    size_t unstable;
} marking;

static ql_jinja_output render(const marking *m, size_t count, bool add_prompt)
{
    ql_jlist *messages = ql_jlist_new(m->run, 0);
    ql_jdict *variables = ql_jdict_new(m->run);
    for (size_t i = 0; i < m->variables->count; i++)
        ql_jput(m->run, variables, m->variables->keys[i], m->variables->values[i]);
    messages->at = m->messages->at;
    messages->count = count;
    ql_jput(m->run, variables, ql_jtextual(ql_jstring("messages")), ql_jlisted(messages));
    ql_jput(m->run, variables, ql_jtextual(ql_jstring("add_generation_prompt")), ql_jbool(add_prompt));
    return ql_jinja_render(m->jinja, m->run, variables);
}

typedef struct prompt {
    const marking *marking;
    size_t messages;
    bool fits; /* the chat begins with it */
    size_t length;
} prompt;

static void render_prompt(ql_jrun *run, void *ctx)
{
    prompt *p = ctx;
    (void)run;
    ql_jtext text = render(p->marking, p->messages, true).text, all = p->marking->text;
    p->length = text.length;
    p->fits = text.length <= all.length && ql_jsame(text, ql_jslice(all, 0, text.length));
}

/* Where the answer to the messages before number `i` starts, if what prompts for it stands at the beginning of the
 * chat. A template that refuses the shorter chat has no such prompt. */
static bool find_start(marking *m, size_t i, size_t *start)
{
    prompt p = {m, i, false, 0};
    ql_error *err = m->run->err;
    ql_jmark before = ql_jrun_mark(m->run);
    m->run->err = NULL;
    ql_status status = ql_jinja_try(m->run, render_prompt, &p);
    m->run->err = err;
    ql_jrun_release(m->run, before);
    *start = p.length;
    return !status && p.fits;
}

/* The end of the first token in text[from, to) that ends an answer, or `from`. */
static size_t find_end(const marking *m, size_t from, size_t to)
{
    size_t best = to, end = from, count;
    const int32_t *ends = ql_tokenizer_ends(m->tokenizer, &count);
    for (size_t i = 0; i < count; i++) {
        const char *token = ql_tokenizer_token(m->tokenizer, ends[i]);
        ql_jtext part = ql_jslice(m->text, 0, to);
        size_t at = token && *token ? ql_jsearch(m->run, part, ql_jstring(token), from) : SIZE_MAX;
        if (at < best) {
            best = at;
            end = at + strlen(token);
        }
    }
    return end;
}

static void mark(marking *m, size_t begin, size_t end)
{
    if (end > begin)
        memset(m->learn + begin, 1, end - begin);
}

/* Where the words of message i stand: behind those of all earlier ones where there are any, so that a template that
 * shows them in front too does not count. false: nowhere. */
static bool find_words(const marking *m, size_t i, size_t *first, size_t *last)
{
    const uint16_t own = (uint16_t)(i + 1), *origin = m->text.origin;
    size_t length = m->text.length, from = length;
    while (from > 0 && (!origin[from - 1] || origin[from - 1] >= own))
        from--;
    for (*last = length; *last > 0 && origin[*last - 1] != own;)
        --*last;
    for (*first = *last > from ? from : 0; *first < *last && origin[*first] != own;)
        ++*first;
    return *last > 0;
}

static void mark_answer(marking *m, size_t i)
{
    const uint16_t own = (uint16_t)(i + 1), *origin = m->text.origin;
    size_t first, last, start, limit;
    bool stable = find_start(m, i, &start), words = find_words(m, i, &first, &last), foreign = false;
    if (!words)
        first = last = start;
    stable = stable && start <= first;
    if (!stable)
        m->unstable++;
    if (!stable && !words)
        return;
    for (limit = last; limit < m->text.length && !origin[limit];)
        limit++;
    size_t begin = stable ? start : first, end = find_end(m, last, limit);
    for (size_t at = begin; at < end; at++)
        foreign = foreign || (origin[at] && origin[at] != own);
    if (!foreign) {
        mark(m, begin, end);
        return;
    }
    m->unstable += stable;
    mark(m, last, end);
    for (size_t at = first; at < last; at++)
        m->learn[at] |= origin[at] == own;
}

ql_chat_marks ql_chat_mark(ql_jrun *run, const ql_jinja *jinja, const ql_tokenizer *tokenizer,
                           const ql_jdict *variables, const ql_jlist *messages, bool add_prompt)
{
    marking m = {run, jinja, tokenizer, variables, messages, {0}, NULL, 0};
    ql_chat_marks marks = {.output = render(&m, messages->count, add_prompt)};
    m.text = marks.output.text;
    m.learn = ql_jalloc(run, m.text.length + 1, 1);
    if (ql_jinja_marks_answers(jinja) && m.text.length)
        memcpy(m.learn, marks.output.answer, m.text.length);
    for (size_t i = 0; i < messages->count && !ql_jinja_marks_answers(jinja); i++) {
        const ql_jvalue *role = ql_jfind_named(run, messages->at[i].dict, "role");
        if (role && ql_chat_answers(role->text.data))
            mark_answer(&m, i);
    }
    marks.learn = m.learn;
    marks.unstable = m.unstable;
    return marks;
}
