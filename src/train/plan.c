/* What a run will take, and how it is made to take less. */
#include <stdlib.h>

#include "base/error.h"
#include "base/workers.h"
#include "qlora/train.h"
#include "quant/weight.h"
#include "train/batch.h"

enum { MAPPED_AT_ONCE = 1 << 16 }; /* bytes around an address that a read maps: Linux's fault_around_bytes */
enum { GOOD_TOKENS = 512 }; /* of a micro-batch: with fewer the products share the decoding of weights less well */

ql_train_shape ql_train_shape_of(const ql_dataset *data)
{
    ql_data_stats stats = ql_dataset_stats(data);
    return (ql_train_shape){stats.samples, stats.longest, stats.tokens, data};
}

/* Pages of the embedding that the words of the data lie in; all of it when memory is too short to tell. */
static size_t touched(const ql_weight *embed, const ql_dataset *data)
{
    size_t row = embed->view.row_bytes, all = ql_weight_rows(embed) * row, windows = (all - 1) / MAPPED_AT_ONCE + 1, used = 0;
    bool *seen = calloc(windows, 1);
    if (!seen)
        return all;
    for (size_t i = 0; i < ql_dataset_count(data); i++) {
        ql_sample sample = ql_dataset_sample(data, i);
        for (size_t j = 0; j < sample.length; j++) {
            size_t at = (size_t)sample.ids[j] * row, last = at + row - 1;
            for (size_t w = at / MAPPED_AT_ONCE; w <= last / MAPPED_AT_ONCE && w < windows; w++) {
                used += !seen[w];
                seen[w] = true;
            }
        }
    }
    free(seen);
    return used * MAPPED_AT_ONCE < all ? used * MAPPED_AT_ONCE : all;
}

ql_model_bytes ql_train_model_bytes(const ql_model *model, ql_train_shape data)
{
    ql_model_bytes bytes = ql_model_memory(model);
    if (data.data && model->head != model->embed && !ql_weight_bytes(model->embed)) /* no bytes of its own: mapped */
        bytes.mapped -= ql_weight_rows(model->embed) * model->embed->view.row_bytes - touched(model->embed, data.data);
    return bytes;
}

static ql_status check(const ql_model *model, ql_train_shape data, const ql_train_options *options, ql_error *err)
{
    if (!ql_model_adapter_parameters(model))
        return ql_fail(err, QL_ERR_ARG, "the model has no trainable adapter: attach one first");
    if (!data.samples || data.longest < 2)
        return ql_fail(err, QL_ERR_ARG, "plan: %zu samples of up to %zu tokens: nothing to train on", data.samples,
                       data.longest);
    if (!options->batch_size || !options->grad_accum)
        return ql_fail(err, QL_ERR_ARG, "plan: batches of %zu, %zu a step: must be at least 1", options->batch_size,
                       options->grad_accum);
    return QL_OK;
}

static ql_trainer_bytes measure(const ql_model *model, ql_train_shape data, const ql_train_options *options,
                                size_t threads)
{
    size_t count = ql_model_adapter_parameters(model), longest = data.longest - 1;
    size_t samples = options->batch_size < data.samples ? options->batch_size : data.samples;
    const ql_pass_kind kind = {true, options->bf16_activations, options->recompute_blocks};
    ql_scratch need;
    ql_trainer_bytes bytes = {
        .adapters = count * (sizeof(uint16_t) + sizeof(float)) + model->adapters->dora_bytes + model->start_bytes,
        .gradients = count * sizeof(float),
        .optimizer = ql_adamw_bytes(options->optim, count),
        .activations = ql_pass_measure(model, samples * longest, longest, kind, threads, &need),
    };
    bytes.workspace =
        ql_scratch_bytes(need, threads) + ql_batcher_bytes(samples, longest) + data.samples * sizeof(size_t);
    return bytes;
}

ql_status ql_train_plan(ql_trainer_bytes *out, const ql_model *model, ql_train_shape data,
                        const ql_train_options *options, size_t threads, ql_error *err)
{
    *out = (ql_trainer_bytes){0};
    ql_status status = check(model, data, options, err);
    if (!status)
        *out = measure(model, data, options, threads);
    return status;
}

static size_t total(const ql_model *model, ql_train_shape data, const ql_train_options *options, size_t threads)
{
    ql_model_bytes m = ql_train_model_bytes(model, data);
    ql_trainer_bytes t = measure(model, data, options, threads);
    return m.codes + m.scales + m.dense + m.mapped + t.adapters + t.gradients + t.optimizer + t.activations +
           t.workspace;
}

/* The largest micro-batch of `least` to `most` samples that fits and divides the one that was asked for. */
static bool shrink(ql_train_options *o, const ql_model *model, ql_train_shape data, size_t most, size_t least,
                   size_t threads, size_t budget)
{
    const ql_train_options asked = *o;
    for (size_t samples = most; samples >= least && samples > 0; samples--) {
        if (asked.batch_size % samples)
            continue;
        o->batch_size = samples;
        o->grad_accum = asked.grad_accum * (asked.batch_size / samples);
        if (total(model, data, o, threads) <= budget)
            return true;
    }
    *o = asked;
    return false;
}

/* In the order of what a step loses by it: next to nothing while micro-batches keep the products fast; a forward pass
 * of each block that is recomputed; and every product is slower in batches below that. */
ql_status ql_train_fit(ql_train_options *options, const ql_model *model, ql_train_shape data, size_t threads,
                       size_t other, size_t budget, ql_error *err)
{
    ql_status status = check(model, data, options, err);
    if (status)
        return status;
    size_t left = budget > other ? budget - other : 0, good = (GOOD_TOKENS + data.longest - 2) / (data.longest - 1);
    size_t asked = options->recompute_blocks, most = model->config.layers - 1;
    if (good > options->batch_size)
        good = options->batch_size;
    while (options->batch_size % good)
        good++;
    if (shrink(options, model, data, options->batch_size, good, threads, left))
        return QL_OK;
    options->recompute_blocks = most;
    if (shrink(options, model, data, good, 1, threads, left)) {
        options->recompute_blocks = asked < most ? asked : most;
        while (total(model, data, options, threads) > left)
            options->recompute_blocks++;
        return QL_OK;
    }
    options->grad_accum *= options->batch_size;
    options->batch_size = 1;
    size_t need = total(model, data, options, threads) + other;
    return ql_fail(err, QL_ERR_MEMORY,
                   "%zu bytes are not enough: with recomputation of all blocks and micro-batches of one sample the run needs %zu; "
                   "shorter sequences, a lower rank or a smaller base format would need less",
                   budget, need);
}
