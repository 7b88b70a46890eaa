/* Texts that the model writes before and after training, for the page of the run. */
#include "cli/finetune.h"
#include "cli/stream.h"

enum { PROMPT_TOKENS = 32, NEW_TOKENS = 128 };

/* Where a sample's first completion begins and ends; of plain text, which is learned from the start, a part of it. */
typedef struct span {
    size_t begin, end;
} span;

static span completion(ql_sample sample)
{
    span s = {0};
    while (s.begin < sample.length && !sample.learn[s.begin])
        s.begin++;
    if (s.begin <= 1)
        s.begin = sample.length / 2 < PROMPT_TOKENS ? sample.length / 2 : PROMPT_TOKENS;
    s.begin += s.begin == 0;
    for (s.end = s.begin; s.end < sample.length && sample.learn[s.end] && s.end < s.begin + NEW_TOKENS; s.end++)
        ;
    return s;
}

static ql_status decode(ql_json *json, const char *key, const ql_tokenizer *tokenizer, const int32_t *ids, size_t count,
                        unsigned more, ql_error *err)
{
    ql_text text = {0};
    ql_status status = ql_tokenizer_decode(tokenizer, ids, count, QL_DECODE_SKIP_SPECIALS | more, &text, err);
    if (!status)
        ql_json_text(json, key, text.data ? text.data : "", text.length);
    ql_text_free(&text);
    return status;
}

/* Greedy tokens into *ids until the model ends its text. */
static ql_status go_on(finetune *f, ql_sample sample, size_t prompt, int32_t ids[NEW_TOKENS], size_t *count,
                       ql_error *err)
{
    const cli_session *s = &f->session;
    const ql_sampling greedy = {.top_p = 1};
    ql_generator *generator = NULL;
    const float *logits;
    size_t room = s->config.max_positions - prompt, most = room < NEW_TOKENS ? room : NEW_TOKENS;
    ql_status status = ql_generator_create(&generator, s->model, prompt + most, s->workers, err);
    if (!status)
        status = ql_generator_feed(generator, sample.ids, prompt, &logits, err);
    for (*count = 0; !status && *count < most;) {
        int32_t token;
        status = ql_sample_token(&token, logits, s->config.vocab_size, &greedy, ql_generator_position(generator), err);
        if (status || ql_tokenizer_is_end(s->tokenizer, token))
            break;
        ids[(*count)++] = token;
        if (*count < most)
            status = ql_generator_feed(generator, &token, 1, &logits, err);
    }
    ql_generator_destroy(generator);
    return status;
}

static ql_status write_sample(finetune *f, size_t number, ql_sample sample, ql_error *err)
{
    int32_t ids[NEW_TOKENS];
    size_t count;
    span s = completion(sample);
    const ql_tokenizer *tokenizer = f->session.tokenizer;
    ql_status status = go_on(f, sample, s.begin, ids, &count, err);
    ql_json *json = status ? NULL : cli_runlog_begin(&f->log, "sample");
    if (!json)
        return status;
    ql_json_integer(json, "step", (int64_t)ql_trainer_done(f->trainer));
    ql_json_integer(json, "sample", (int64_t)number);
    status = decode(json, "prompt", tokenizer, sample.ids, s.begin, 0, err);
    if (!status)
        status = decode(json, "wanted", tokenizer, sample.ids + s.begin, s.end - s.begin, QL_DECODE_CONTINUE, err);
    if (!status)
        status = decode(json, "text", tokenizer, ids, count, QL_DECODE_CONTINUE, err);
    cli_runlog_put(&f->log);
    return status;
}

int finetune_samples(finetune *f)
{
    ql_error err = {0};
    const ql_dataset *data = f->valid ? f->valid : f->data;
    size_t all = ql_dataset_count(data), count = f->v->samples < all ? f->v->samples : all;
    for (size_t i = 0; f->v->report && i < count; i++)
        if (write_sample(f, i + 1, ql_dataset_sample(data, i * all / count), &err))
            return cli_failed(&err);
    return CLI_OK;
}
