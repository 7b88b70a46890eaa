/* Text on its way out, token by token: whole characters only, up to a stop text. */
#ifndef QL_SRC_CLI_STREAM_H
#define QL_SRC_CLI_STREAM_H

#include "cli/common.h"

/* Zeroed is empty; cli_stream_close() takes any state. */
typedef struct cli_stream {
    FILE *out; /* NULL: collect only */
    const cli_list *stops;
    ql_decoder *decoder;
    ql_text text;   /* all of it; ends before the stop text */
    size_t printed; /* bytes of it */
    bool stopped;   /* a stop text came */
} cli_stream;

/* `turn`: the text begins a chat turn; otherwise it goes on from other text. */
int cli_stream_open(cli_stream *stream, FILE *out, const ql_tokenizer *tokenizer, bool turn, const cli_list *stops);
int cli_stream_push(cli_stream *stream, int32_t token);
int cli_stream_finish(cli_stream *stream); /* prints what was held back, and ends the line */
void cli_stream_close(cli_stream *stream);

#endif
