#define _GNU_SOURCE
#include "cli/stream.h"

#include <string.h>

int cli_stream_open(cli_stream *stream, FILE *out, const ql_tokenizer *tokenizer, bool turn, const cli_list *stops)
{
    ql_error err = {0};
    unsigned flags = QL_DECODE_SKIP_SPECIALS | (turn ? 0 : QL_DECODE_CONTINUE);
    *stream = (cli_stream){.out = out, .stops = stops};
    return ql_decoder_create(&stream->decoder, tokenizer, flags, &err) ? cli_failed(&err) : CLI_OK;
}

/* Cuts the text before the first stop text in it, which may begin anywhere after what was printed. */
static void cut(cli_stream *stream)
{
    const char *first = NULL, *begin = stream->text.data + stream->printed;
    size_t length = stream->text.length - stream->printed;
    for (size_t i = 0; i < stream->stops->count; i++) {
        const char *stop = stream->stops->items[i];
        const char *found = memmem(begin, length, stop, strlen(stop));
        if (found && (!first || found < first))
            first = found;
    }
    if (!first)
        return;
    stream->stopped = true;
    stream->text.length = (size_t)(first - stream->text.data);
    stream->text.data[stream->text.length] = 0;
}

/* The longest end of the text that begins a stop text. */
static size_t held_back(const cli_stream *stream)
{
    size_t most = 0, length = stream->text.length - stream->printed;
    const char *end = stream->text.data + stream->text.length;
    for (size_t i = 0; i < stream->stops->count; i++) {
        size_t part = strlen(stream->stops->items[i]) - 1;
        for (part = part < length ? part : length; part > most; part--)
            if (memcmp(end - part, stream->stops->items[i], part) == 0)
                most = part;
    }
    return most;
}

static int print_until(cli_stream *stream, size_t end)
{
    size_t count = end - stream->printed;
    if (stream->out && count &&
        (fwrite(stream->text.data + stream->printed, 1, count, stream->out) != count || fflush(stream->out) != 0))
        return cli_failed_with("cannot write to standard output");
    stream->printed = end;
    return CLI_OK;
}

int cli_stream_push(cli_stream *stream, int32_t token)
{
    ql_error err = {0};
    if (ql_decoder_push(stream->decoder, token, &stream->text, &err))
        return cli_failed(&err);
    if (stream->text.length == stream->printed)
        return CLI_OK;
    cut(stream);
    return print_until(stream, stream->text.length - (stream->stopped ? 0 : held_back(stream)));
}

int cli_stream_finish(cli_stream *stream)
{
    ql_error err = {0};
    if (!stream->stopped && ql_decoder_finish(stream->decoder, &stream->text, &err))
        return cli_failed(&err);
    if (stream->text.length > stream->printed)
        cut(stream);
    int status = print_until(stream, stream->text.length);
    bool ended = stream->text.length && stream->text.data[stream->text.length - 1] == '\n';
    if (status == CLI_OK && stream->out && !ended && fputc('\n', stream->out) == EOF)
        return cli_failed_with("cannot write to standard output");
    return status;
}

void cli_stream_close(cli_stream *stream)
{
    ql_decoder_destroy(stream->decoder);
    ql_text_free(&stream->text);
    *stream = (cli_stream){0};
}
