#include "fuzz.h"

static void feed(const ql_model *model)
{
    enum { TOKENS = 3 };
    const ql_model_config *c = ql_model_shape(model);
    const int32_t last = (int32_t)c->vocab_size - 1, ids[TOKENS] = {0, last / 2, last};
    ql_generator *generator;
    ql_error err = {0};
    ql_sampling sampling = ql_sampling_defaults();
    size_t room = c->max_positions < 2 * TOKENS ? c->max_positions : 2 * TOKENS;
    if (!fuzz_went_well(ql_generator_create(&generator, model, room, fuzz_workers(), &err), &err))
        return;
    for (size_t position = 0, count; position < room; position += count) {
        const float *logits;
        int32_t next;
        count = room - position < TOKENS ? room - position : TOKENS;
        FUZZ_CHECK(ql_generator_feed(generator, ids, count, &logits, &err) == QL_OK);
        if (fuzz_went_well(ql_sample_token(&next, logits, c->vocab_size, &sampling, position, &err), &err))
            FUZZ_CHECK(next >= 0 && (size_t)next < c->vocab_size);
    }
    ql_generator_destroy(generator);
}

void fuzz_use_model(ql_model *model)
{
    ql_lora_options options = ql_lora_options_defaults();
    ql_error err = {0};
    options.rank = 2;
    feed(model);
    if (fuzz_went_well(ql_model_attach(model, &options, &err), &err))
        feed(model);
}
