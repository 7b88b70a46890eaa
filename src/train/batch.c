#include "train/batch.h"

#include <stdlib.h>

#include "base/arena.h"
#include "base/error.h"

static ql_status check_data(const ql_dataset *data, const ql_model_config *config, size_t *longest, ql_error *err)
{
    *longest = 0;
    for (size_t i = 0; i < ql_dataset_count(data); i++) {
        ql_sample sample = ql_dataset_sample(data, i);
        for (size_t j = 0; j < sample.length; j++)
            if (sample.ids[j] < 0 || (size_t)sample.ids[j] >= config->vocab_size)
                return ql_fail(err, QL_ERR_SHAPE,
                               "sample %zu has token id %d, the model's vocabulary ends at %zu: "
                               "is the tokenizer that of the model?",
                               i, (int)sample.ids[j], config->vocab_size - 1);
        *longest = sample.length - 1 > *longest ? sample.length - 1 : *longest;
    }
    if (*longest > config->max_positions)
        return ql_fail(err, QL_ERR_SHAPE, "a sample has %zu tokens, the model has %zu positions: use sequences of %zu",
                       *longest, config->max_positions, config->max_positions);
    return *longest ? QL_OK : ql_fail(err, QL_ERR_SHAPE, "the data set is empty");
}

static void list_arrays(ql_batcher *b, ql_arena *arena)
{
    b->ids = ql_take(arena, b->tokens, int32_t);
    b->target = ql_take(arena, b->tokens, int32_t);
    b->position = ql_take(arena, b->tokens, uint32_t);
    b->start = ql_take(arena, b->samples + 1, size_t);
}

size_t ql_batcher_bytes(size_t samples, size_t longest)
{
    ql_arena plan = {0};
    list_arrays(&(ql_batcher){.samples = samples, .tokens = samples * longest}, &plan);
    return plan.used;
}

ql_status ql_batcher_init(ql_batcher *batcher, const ql_dataset *data, size_t samples, const ql_model_config *config,
                          ql_error *err)
{
    *batcher = (ql_batcher){.data = data};
    size_t count = ql_dataset_count(data);
    batcher->samples = samples < count ? samples : count;
    ql_status status = check_data(data, config, &batcher->longest, err);
    if (status)
        return status;
    batcher->tokens = batcher->samples * batcher->longest;
    batcher->memory = ql_alloc(ql_batcher_bytes(batcher->samples, batcher->longest));
    if (!batcher->memory)
        return ql_fail(err, QL_ERR_MEMORY, "a batch of %zu samples: out of memory", batcher->samples);
    ql_arena real = {.base = batcher->memory};
    list_arrays(batcher, &real);
    return QL_OK;
}

void ql_batcher_free(ql_batcher *batcher)
{
    free(batcher->memory);
    *batcher = (ql_batcher){0};
}

ql_batch ql_batcher_fill(ql_batcher *b, const size_t *order, size_t first, size_t count)
{
    size_t tokens = 0;
    for (size_t i = 0; i < count; i++) {
        ql_sample sample = ql_dataset_sample(b->data, order ? order[first + i] : first + i);
        b->start[i] = tokens;
        for (size_t j = 0; j + 1 < sample.length; j++, tokens++) {
            b->ids[tokens] = sample.ids[j];
            b->target[tokens] = sample.learn[j + 1] ? sample.ids[j + 1] : -1;
            b->position[tokens] = (uint32_t)j;
        }
    }
    b->start[count] = tokens;
    return (ql_batch){
        .tokens = tokens,
        .sequences = count,
        .ids = b->ids,
        .target = b->target,
        .position = b->position,
        .start = b->start,
    };
}

size_t ql_batcher_learned(const ql_batcher *b, const size_t *order, size_t first, size_t count)
{
    size_t learned = 0;
    for (size_t i = 0; i < count; i++) {
        ql_sample sample = ql_dataset_sample(b->data, order ? order[first + i] : first + i);
        for (size_t j = 1; j < sample.length; j++)
            learned += sample.learn[j] != 0;
    }
    return learned;
}
