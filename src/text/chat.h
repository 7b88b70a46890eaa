/* Chats as JSON, rendered by a Jinja template, and what of them is learned. */
#ifndef QL_SRC_TEXT_CHAT_H
#define QL_SRC_TEXT_CHAT_H

#include "io/json.h"
#include "qlora/text.h"
#include "text/jinja.h"

/* The text of a template known by name, or NULL. */
const char *ql_chat_template_named(const char *name);

/* A chat as a line of data has it. All but the messages may be NULL. */
typedef struct ql_chat_source {
    const json_t *messages;  /* array of objects with at least a role */
    const json_t *tools;     /* array */
    const json_t *documents; /* array */
    const json_t *settings;  /* object: more variables of the template ("enable_thinking") */
} ql_chat_source;

/* As ql_chat_render and ql_chat_encode. *unstable grows by the answers that the template shows after another text than
 * the one that it would have prompted with; it may be NULL. */
ql_status ql_chat_render_source(ql_tokenizer *tokenizer, const char *name, const ql_chat_source *source,
                                bool add_prompt, ql_chat *chat, ql_error *err);
ql_status ql_chat_encode_source(ql_tokenizer *tokenizer, const char *name, const ql_chat_source *source,
                                bool add_prompt, ql_ids *ids, ql_marks *learn, size_t *unstable, ql_error *err);

/* Whether messages of that role are answers. */
bool ql_chat_answers(const char *role);

/* A rendered chat with a mark on each byte that is learned. */
typedef struct ql_chat_marks {
    ql_jinja_output output;
    uint8_t *learn;  /* [length] */
    size_t unstable; /* answers */
} ql_chat_marks;

/* Renders inside of a run, with `variables` beside messages and add_generation_prompt, and marks the answers: by the
 * template's own {% generation %}, or from where the prompt for the answer ends to the first token that ends it. */
ql_chat_marks ql_chat_mark(ql_jrun *run, const ql_jinja *jinja, const ql_tokenizer *tokenizer,
                           const ql_jdict *variables, const ql_jlist *messages, bool add_prompt);

#endif
