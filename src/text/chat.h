/* How the known chat templates put messages into text. */
#ifndef QL_SRC_TEXT_CHAT_H
#define QL_SRC_TEXT_CHAT_H

#include "qlora/text.h"

/* A chat being rendered. */
typedef struct ql_rendering {
    const ql_tokenizer *tokenizer;
    const char *model_template; /* "" when the model has none or another one was asked for by name */
    const ql_message *messages;
    size_t count;
    bool add_prompt;
    ql_chat *chat;
} ql_rendering;

typedef ql_status ql_template_render(ql_rendering *r, ql_error *err);

ql_template_render ql_render_chatml, ql_render_llama2, ql_render_llama3, ql_render_zephyr;

#endif
