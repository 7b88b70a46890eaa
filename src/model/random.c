/* A model of a given shape with random weights: benchmarks and tests need no files. */
#include <math.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/workers.h"
#include "model/model.h"
#include "quant/weight.h"

typedef struct fill {
    uint16_t *data; /* bf16 [n][k] */
    size_t k;
    uint64_t seed, stream;
} fill;

/* Sums of four uniform numbers: close to normal, the same on every machine. */
static void fill_row(void *ctx, size_t row, size_t worker)
{
    const fill *f = ctx;
    (void)worker;
    const float spread = 0.02f * 1.7320508f; /* four uniforms have variance 1/3 */
    for (size_t i = 0; i < f->k; i++) {
        uint32_t bits[4];
        ql_philox(f->seed, f->stream, row * f->k + i, bits);
        float sum = ql_uniform(bits[0]) + ql_uniform(bits[1]) + ql_uniform(bits[2]) + ql_uniform(bits[3]);
        f->data[row * f->k + i] = ql_f32_to_bf16((sum - 2.0f) * spread);
    }
}

static ql_status random_weight(ql_weight **out, ql_format format, uint16_t *buffer, uint64_t seed, uint64_t stream,
                               size_t n, size_t k, ql_workers *workers, ql_error *err)
{
    fill job = {buffer, k, seed, stream};
    ql_parallel(workers, n, fill_row, &job);
    if (format.code == QL_CODE_F32)
        format = (ql_format){.code = QL_CODE_BF16, .scale = QL_SCALE_NONE};
    return ql_weight_quantize(out, format, "random", buffer, QL_BF16, k, n, k, workers, err);
}

static void fill_ones(const float *norm, size_t n)
{
    float *w = ql_writable(norm);
    for (size_t i = 0; w && i < n; i++)
        w[i] = 1.0f;
}

static ql_status fill_model(ql_model *model, uint16_t *buffer, uint64_t seed, ql_workers *workers, ql_error *err)
{
    const ql_model_config *c = &model->config;
    const ql_format dense = {.code = QL_CODE_BF16, .scale = QL_SCALE_NONE};
    uint64_t stream = 0;
    ql_status status =
        random_weight(&model->embed, dense, buffer, seed, stream++, c->vocab_size, c->hidden_size, workers, err);
    if (!status && c->tied)
        model->head = model->embed;
    else if (!status)
        status =
            random_weight(&model->head, dense, buffer, seed, stream++, c->vocab_size, c->hidden_size, workers, err);
    fill_ones(model->final_norm, c->hidden_size);
    for (size_t i = 0; i < c->layers; i++) {
        ql_block *block = &model->blocks[i];
        fill_ones(block->input_norm, c->hidden_size);
        fill_ones(block->mlp_norm, c->hidden_size);
        fill_ones(block->att_out_norm, c->hidden_size);
        fill_ones(block->mlp_out_norm, c->hidden_size);
        fill_ones(block->q_norm, c->head_dim);
        fill_ones(block->k_norm, c->head_dim);
        for (int module = 0; module < QL_MODULES && !status; module++)
            if (ql_module_present(c, module))
                status = random_weight(&block->weight[module], model->format, buffer, seed, stream++,
                                       ql_module_outputs(c, module), ql_module_inputs(c, module), workers, err);
    }
    return status;
}

ql_status ql_model_random(ql_model **out, const ql_model_config *config, ql_format format, uint64_t seed,
                          ql_workers *workers, ql_error *err)
{
    *out = NULL;
    ql_model *model = calloc(1, sizeof *model);
    if (!model)
        return ql_fail(err, QL_ERR_MEMORY, "model: out of memory");
    model->config = *config;
    model->format = format;
    size_t largest = config->vocab_size * config->hidden_size;
    for (int module = 0; module < QL_MODULES; module++) {
        size_t count = ql_module_outputs(config, module) * ql_module_inputs(config, module);
        largest = count > largest ? count : largest;
    }
    uint16_t *buffer = malloc(largest * sizeof *buffer);
    ql_status status = buffer ? ql_model_prepare(model, err) : ql_fail(err, QL_ERR_MEMORY, "model: out of memory");
    if (!status)
        status = fill_model(model, buffer, seed, workers, err);
    free(buffer);
    if (status) {
        ql_model_destroy(model);
        return status;
    }
    ql_model_link(model, &(ql_lora_options){0}, NULL, NULL);
    *out = model;
    return QL_OK;
}
