/* qlora inspect of data: samples as the model meets them. */
#include <string.h>

#include "cli/inspect.h"

typedef struct data_view {
    const inspect_values *v;
    ql_tokenizer *tokenizer;
    ql_dataset *data;
    ql_data_review review;
    ql_findings findings;
    bool color;
} data_view;

enum { READ, LEARNED, CUT };

/* Of a token: neighbours of a kind differ a little, so that one sees where they meet. */
static const char *const colors[][2] = {
    [READ] = {"\x1b[90m", "\x1b[37m"}, [LEARNED] = {"\x1b[32m", "\x1b[1;32m"}, [CUT] = {"\x1b[9;31m", "\x1b[9;91m"}};

static void put_token(const data_view *d, const ql_text *text, int kind, size_t i)
{
    if (d->color)
        fputs(colors[kind][i % 2], stdout);
    inspect_put(text->data ? text->data : "", text->length);
    if (d->color)
        fputs("\x1b[0m", stdout);
}

/* What marks the step from one kind of token to the next where there is no colour. */
static const char *bridge(int from, int to)
{
    if (from == to)
        return "|";
    if (to == CUT)
        return from == LEARNED ? "]] [cut: " : " [cut: ";
    return to == LEARNED ? "[[" : "]]";
}

static int put_sample(const data_view *d, ql_sample s)
{
    ql_decoder *decoder;
    ql_error err = {0};
    ql_text text = {0};
    int kind = READ;
    size_t shown = s.length < d->v->tokens ? s.length : d->v->tokens;
    if (ql_decoder_create(&decoder, d->tokenizer, QL_DECODE_CONTINUE, &err))
        return cli_failed(&err);
    ql_status status = QL_OK;
    for (size_t i = 0; i < shown && !status; i++) {
        int next = i > d->review.sequence ? CUT : s.learn[i] ? LEARNED : READ;
        text.length = 0;
        status = ql_decoder_push(decoder, s.ids[i], &text, &err);
        if (i && !d->color)
            fputs(bridge(kind, next), stdout);
        kind = next;
        put_token(d, &text, kind, i);
    }
    text.length = 0;
    if (!status)
        status = ql_decoder_finish(decoder, &text, &err);
    put_token(d, &text, kind, shown);
    printf("%s\n", d->color || kind == READ ? "" : kind == CUT ? "]" : "]]");
    if (shown < s.length)
        printf("... and %zu tokens more\n", s.length - shown);
    ql_text_free(&text);
    ql_decoder_destroy(decoder);
    return status ? cli_failed(&err) : CLI_OK;
}

static size_t count_learned(ql_sample s)
{
    size_t learned = 0;
    for (size_t i = 0; i < s.length; i++)
        learned += s.learn[i];
    return learned;
}

static int put_samples(const data_view *d)
{
    int status = CLI_OK;
    for (size_t i = 0; i < d->review.samples && i < d->v->samples && status == CLI_OK; i++) {
        ql_sample s = ql_dataset_sample(d->data, i);
        cli_text tokens, learned;
        printf("\n%sSample %zu: %s tokens, %s learned%s\n", d->color ? "\x1b[1m" : "", i + 1,
               cli_count(s.length, tokens), cli_count(count_learned(s), learned), d->color ? "\x1b[0m" : "");
        status = put_sample(d, s);
    }
    return status;
}

static void put_lengths(const ql_data_review *r)
{
    size_t most = 1, last = 0;
    for (size_t i = 0; i < QL_REVIEW_BINS; i++) {
        most = r->bins[i] > most ? r->bins[i] : most;
        last = r->bins[i] ? i : last;
    }
    printf("Lengths     %zu to %zu tokens; half up to %zu, 90 %% up to %zu, 99 %% up to %zu\n", r->shortest, r->longest,
           r->median, r->p90, r->p99);
    for (size_t i = 0; i <= last; i++) {
        int bar = (int)((r->bins[i] * 40 + most - 1) / most);
        if (r->bins[i])
            printf("  %10zu+ %-40.*s %zu\n", (size_t)1 << i, bar, "########################################",
                   r->bins[i]);
    }
}

static int tell(const data_view *d)
{
    const ql_data_review *r = &d->review;
    cli_text samples, tokens, learned;
    int status = CLI_OK;
    if (!d->v->common.quiet) {
        status = put_samples(d);
        printf("\nData        %s%s\n", d->v->file, r->packed ? ", one text cut into samples" : "");
        printf("Samples     %s; %s tokens, %s of them learned (%.1f %%)\n", cli_count(r->samples, samples),
               cli_count(r->tokens, tokens), cli_count(r->learned, learned),
               r->tokens ? 100 * (double)r->learned / (double)r->tokens : 0);
        put_lengths(r);
    }
    inspect_tell_findings(&d->findings, d->color);
    return status;
}

static void json_sample(ql_json *json, const data_view *d, ql_sample s)
{
    size_t shown = s.length < d->v->tokens ? s.length : d->v->tokens;
    ql_json_object(json, NULL);
    ql_json_integer(json, "length", (int64_t)s.length);
    ql_json_integer(json, "learned", (int64_t)count_learned(s));
    ql_json_array(json, "ids");
    for (size_t i = 0; i < shown; i++)
        ql_json_integer(json, NULL, s.ids[i]);
    ql_json_end(json);
    ql_json_array(json, "learn");
    for (size_t i = 0; i < shown; i++)
        ql_json_integer(json, NULL, s.learn[i]);
    ql_json_end(json);
    ql_json_array(json, "tokens");
    for (size_t i = 0; i < shown; i++)
        ql_json_string(json, NULL, ql_tokenizer_token(d->tokenizer, s.ids[i]));
    ql_json_end(json);
    ql_json_end(json);
}

static int tell_json(const data_view *d)
{
    const ql_data_review *r = &d->review;
    const struct {
        const char *name;
        size_t value;
    } numbers[] = {
        {"samples", r->samples},   {"tokens", r->tokens},   {"learned", r->learned},   {"seq_len", r->sequence},
        {"shortest", r->shortest}, {"median", r->median},   {"p90", r->p90},           {"p99", r->p99},
        {"longest", r->longest},   {"skipped", r->skipped}, {"too_long", r->too_long}, {"lost", r->lost},
        {"emptied", r->emptied},   {"no_end", r->no_end},   {"empty", r->empty},       {"double_bos", r->double_bos},
        {"unknown", r->unknown},   {"twice", r->twice},
    };
    ql_json json = {.pretty = false};
    ql_json_object(&json, NULL);
    ql_json_string(&json, "command", "inspect");
    ql_json_string(&json, "kind", "data");
    ql_json_string(&json, "path", d->v->file);
    ql_json_string(&json, "model", d->v->common.model);
    ql_json_bool(&json, "packed", r->packed);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        ql_json_integer(&json, numbers[i].name, (int64_t)numbers[i].value);
    ql_json_object(&json, "lengths");
    for (size_t i = 0; i < QL_REVIEW_BINS; i++) {
        cli_text from;
        snprintf(from, sizeof from, "%zu", (size_t)1 << i);
        if (r->bins[i])
            ql_json_integer(&json, from, (int64_t)r->bins[i]);
    }
    ql_json_end(&json);
    ql_json_array(&json, "shown");
    for (size_t i = 0; i < r->samples && i < d->v->samples; i++)
        json_sample(&json, d, ql_dataset_sample(d->data, i));
    ql_json_end(&json);
    inspect_json_findings(&json, &d->findings);
    return cli_json_print(&json);
}

int inspect_data(const cli_args *args)
{
    ql_error err = {0};
    const inspect_values *v = args->values;
    data_view d = {.v = v, .color = inspect_color(v)};
    ql_data_options options = ql_data_options_defaults();
    options.sequence = v->common.seq_len;
    options.chat_template = v->common.chat_template;
    options.mask_prompt = !v->common.train_on_inputs;
    int status;
    if (ql_tokenizer_open(&d.tokenizer, v->common.model, &err) ||
        ql_data_review_open(&d.data, &d.review, &d.findings, v->file, d.tokenizer, &options, &err))
        status = cli_failed(&err);
    else
        status = v->common.json ? tell_json(&d) : tell(&d);
    ql_findings_free(&d.findings);
    ql_dataset_close(d.data);
    ql_tokenizer_close(d.tokenizer);
    return status;
}
