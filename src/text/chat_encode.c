/* Rendered chats into tokens. */
#include <stdlib.h>

#include "base/error.h"
#include "text/chat.h"
#include "text/grow.h"
#include "text/tokenizer.h"

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

ql_status ql_chat_encode_source(ql_tokenizer *t, const char *name, const ql_chat_source *source, bool add_prompt,
                                ql_ids *ids, ql_marks *learn, size_t *unstable, ql_error *err)
{
    ql_chat chat = {0};
    size_t before = ids->count;
    ql_status status = ql_chat_render_source(t, name, source, add_prompt, &chat, err);
    if (status)
        return status;
    ql_span *spans = calloc(chat.count + 1, sizeof *spans);
    status = spans ? encode_runs(t, &chat, spans, ids, learn, err) : ql_fail(err, QL_ERR_MEMORY, "chat: out of memory");
    if (status) {
        ids->count = before;
        if (learn)
            learn->count = before;
    }
    if (unstable)
        *unstable += chat.unstable;
    free(spans);
    ql_chat_free(&chat);
    return status;
}
