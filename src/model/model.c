/* Putting a model together, and its adapters. */
#include "model/start.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/workers.h"
#include "quant/weight.h"

/* ---- memory ---- */

void ql_model_list_dense(ql_model *model, ql_arena *arena)
{
    const ql_model_config *c = &model->config;
    model->final_norm = ql_take(arena, c->hidden_size, float);
    if (model->divided)
        model->rope_divisors = ql_take(arena, c->head_dim / 2, float);
    for (size_t i = 0; i < c->layers; i++) {
        ql_block *block = &model->blocks[i];
        block->input_norm = ql_take(arena, c->hidden_size, float);
        block->mlp_norm = ql_take(arena, c->hidden_size, float);
        if (c->out_norms) {
            block->att_out_norm = ql_take(arena, c->hidden_size, float);
            block->mlp_out_norm = ql_take(arena, c->hidden_size, float);
        }
        if (c->qk_norm) {
            block->q_norm = ql_take(arena, c->head_dim, float);
            block->k_norm = ql_take(arena, c->head_dim, float);
        }
        for (int module = 0; module < QL_MODULES; module++)
            if (ql_module_has_bias(c, module))
                block->bias[module] = ql_take(arena, ql_module_outputs(c, module), float);
    }
}

ql_rope_config ql_model_rope(const ql_model *model, bool local)
{
    const ql_model_config *c = &model->config;
    size_t rotated = c->rotated ? c->rotated : c->head_dim;
    if (local && c->local_rope_theta > 0)
        return (ql_rope_config){.head_dim = rotated, .theta = c->local_rope_theta};
    bool llama3 = c->rope_scaling.high_freq_factor > 0;
    return (ql_rope_config){
        .head_dim = rotated,
        .theta = c->rope_theta,
        .linear = llama3 ? 0 : c->rope_scaling.factor,
        .llama3 = llama3,
        .factor = c->rope_scaling.factor,
        .low_freq_factor = c->rope_scaling.low_freq_factor,
        .high_freq_factor = c->rope_scaling.high_freq_factor,
        .original_max_positions = (double)c->rope_scaling.original_max_positions,
        .divisors = c->rope_scaling.gain > 0 ? c->rope_scaling.divisors : model->rope_divisors,
        .gain = c->rope_scaling.gain,
    };
}

/* Bytes of norms and biases that a model of these files can have: in fp32 they take twice what they do in the files at
 * most, and each begins at a multiple of QL_ALIGN. What a configuration alone says must not be allocated. */
static size_t most_dense(const ql_model *model)
{
    size_t most = 0;
    for (size_t i = 0; i < ql_tensors_count(model->files); i++)
        most += 2 * ql_tensors_at(model->files, i)->bytes + QL_ALIGN;
    return most;
}

ql_status ql_model_prepare(ql_model *model, ql_error *err)
{
    model->blocks = calloc(model->config.layers, sizeof *model->blocks);
    if (!model->blocks)
        return ql_fail(err, QL_ERR_MEMORY, "%zu blocks: out of memory", model->config.layers);
    ql_arena plan = {0};
    ql_model_list_dense(model, &plan);
    if (model->files && plan.used > most_dense(model))
        return ql_fail(err, QL_ERR_FORMAT, "norms and biases of %zu layers would take %zu bytes: more than there can be "
                       "in these files; is the configuration of another model?", model->config.layers, plan.used);
    model->dense = ql_alloc(plan.used);
    if (!model->dense)
        return ql_fail(err, QL_ERR_MEMORY, "norms and biases: %zu bytes are not to be had", plan.used);
    model->dense_bytes = plan.used;
    ql_arena real = {.base = (char *)model->dense};
    ql_model_list_dense(model, &real);
    return QL_OK;
}

void ql_model_destroy(ql_model *model)
{
    if (!model)
        return;
    for (size_t i = 0; model->blocks && i < model->config.layers; i++)
        for (int module = 0; module < QL_MODULES; module++)
            ql_weight_destroy(model->blocks[i].weight[module]);
    if (model->head != model->embed)
        ql_weight_destroy(model->head);
    ql_weight_destroy(model->embed);
    ql_adapters_destroy(model->adapters);
    free(model->start);
    free(model->blocks);
    free(model->dense);
    ql_tensors_close(model->files);
    ql_tensors_close(model->packed);
    free(model);
}

static void allow_rounding(ql_model *model, bool allow, void (*of_weight)(ql_weight *w, bool allow))
{
    model->bf16 = allow;
    for (size_t i = 0; i < model->config.layers * QL_MODULES; i++)
        if (model->blocks[i / QL_MODULES].weight[i % QL_MODULES])
            of_weight(model->blocks[i / QL_MODULES].weight[i % QL_MODULES], allow);
    of_weight(model->embed, allow);
    of_weight(model->head, allow);
}

void ql_model_allow_bf16(ql_model *model, bool allow)
{
    allow_rounding(model, allow, ql_weight_allow_bf16);
}

void ql_model_allow_int8(ql_model *model, bool allow)
{
    allow_rounding(model, allow, ql_weight_allow_int8);
}

const ql_model_config *ql_model_shape(const ql_model *model)
{
    return &model->config;
}

ql_format ql_model_format(const ql_model *model)
{
    return model->format;
}

static void add_quantized(ql_model_bytes *bytes, const ql_weight *w)
{
    ql_weight_size size = {0};
    if (w && ql_weight_bytes(w) > 0)
        ql_format_size(&size, ql_weight_format(w), ql_weight_rows(w), ql_weight_cols(w), NULL);
    bytes->codes += size.codes;
    bytes->scales += size.scales;
}

ql_model_bytes ql_model_memory(const ql_model *model)
{
    const ql_model_config *c = &model->config;
    ql_model_bytes bytes = {.mapped = model->mapped_bytes};
    bytes.dense = model->dense_bytes + ql_weight_bytes(model->embed);
    if (model->head != model->embed && ql_code_is_dense(ql_weight_format(model->head).code))
        bytes.dense += ql_weight_bytes(model->head);
    else if (model->head != model->embed)
        add_quantized(&bytes, model->head);
    for (size_t i = 0; i < c->layers * QL_MODULES; i++)
        add_quantized(&bytes, model->blocks[i / QL_MODULES].weight[i % QL_MODULES]);
    return bytes;
}

void ql_model_settle_format(ql_model *model)
{
    size_t most = 0, elements[QL_CODE_Q6_K + 1] = {0};
    for (size_t i = 0; i < model->config.layers * QL_MODULES; i++) {
        const ql_weight *w = model->blocks[i / QL_MODULES].weight[i % QL_MODULES];
        if (!w)
            continue;
        ql_format format = ql_weight_format(w);
        elements[format.code] += ql_weight_rows(w) * ql_weight_cols(w);
        if (!ql_code_is_dense(format.code) && elements[format.code] > most) {
            most = elements[format.code];
            model->format = format;
        }
    }
}

/* ---- adapters ---- */

void ql_model_link(ql_model *model, const ql_lora_options *options, const ql_adapter_shape *shapes,
                   ql_adapters *adapters)
{
    ql_adapters_destroy(model->adapters);
    free(model->start);
    model->start = NULL;
    model->start_bytes = 0;
    model->adapters = adapters;
    model->lora = *options;
    size_t next = 0;
    for (size_t i = 0; i < model->config.layers; i++) {
        ql_block *block = &model->blocks[i];
        for (int module = 0; module < QL_MODULES; module++) {
            bool adapted = adapters && shapes[i * QL_MODULES + module].rank;
            block->linear[module] = (ql_linear){
                .base = block->weight[module],
                .bias = block->bias[module],
                .adapter = adapted ? &adapters->layer[next++] : NULL,
            };
        }
    }
}

ql_lora_options ql_lora_options_defaults(void)
{
    return (ql_lora_options){.rank = 8, .alpha = 16, .modules = QL_ALL_LINEAR, .loftq_steps = 5};
}

static ql_status check_lora(const ql_lora_options *o, ql_error *err)
{
    if (!o->rank || o->rank > 4096)
        return ql_fail(err, QL_ERR_ARG, "LoRA rank %zu: must be 1 to 4096", o->rank);
    if (!(o->alpha > 0 && o->alpha < 1e9))
        return ql_fail(err, QL_ERR_ARG, "LoRA alpha %g: must be positive", o->alpha);
    if (!(o->dropout >= 0 && o->dropout < 1))
        return ql_fail(err, QL_ERR_ARG, "LoRA dropout %g: must be in [0, 1)", o->dropout);
    if (o->use_dora && o->dropout > 0)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "DoRA with dropout %g is not supported: leave one of them out", o->dropout);
    if (!o->modules || o->modules & ~(unsigned)QL_ALL_LINEAR)
        return ql_fail(err, QL_ERR_ARG, "LoRA target modules: name at least one");
    return QL_OK;
}

ql_status ql_model_adapter_shapes(ql_adapter_shape **out, const ql_model *model, const ql_lora_options *options,
                                  ql_error *err)
{
    const ql_model_config *c = &model->config;
    *out = NULL;
    ql_status status = check_lora(options, err);
    if (!status)
        status = ql_modules_check(c, options->modules, err);
    if (status)
        return status;
    ql_adapter_shape *shapes = calloc(c->layers * QL_MODULES, sizeof *shapes);
    if (!shapes)
        return ql_fail(err, QL_ERR_MEMORY, "adapters: out of memory");
    ql_lora_desc desc = {.rank = options->rank, .alpha = options->alpha, .use_rslora = options->use_rslora};
    for (size_t i = 0; i < c->layers * QL_MODULES; i++) {
        ql_module module = (ql_module)(i % QL_MODULES);
        if (options->modules >> module & 1 && ql_module_present(c, module))
            shapes[i] = (ql_adapter_shape){ql_module_inputs(c, module), ql_module_outputs(c, module), options->rank,
                                           ql_lora_scaling(&desc), options->use_dora};
    }
    *out = shapes;
    return QL_OK;
}

ql_status ql_model_make_adapters(ql_adapters **out, const ql_model *model, const ql_adapter_shape *shapes,
                                 bool trainable, ql_error *err)
{
    size_t places = model->config.layers * QL_MODULES, count = 0;
    *out = NULL;
    ql_adapter_shape *present = calloc(places, sizeof *present);
    if (!present)
        return ql_fail(err, QL_ERR_MEMORY, "adapters: out of memory");
    for (size_t i = 0; i < places; i++)
        if (shapes[i].rank)
            present[count++] = shapes[i];
    ql_status status = model->planned ? ql_adapters_plan(out, present, count, err)
                                      : ql_adapters_create(out, present, count, trainable, err);
    free(present);
    return status;
}

/* ---- DoRA ---- */

static const ql_linear *linear_at(const ql_model *model, size_t i)
{
    return &model->blocks[i / QL_MODULES].linear[i % QL_MODULES];
}

void ql_model_refresh(const ql_model *model, ql_workers *workers)
{
    for (size_t i = 0; i < model->config.layers * QL_MODULES; i++)
        if (linear_at(model, i)->adapter && linear_at(model, i)->adapter->dora)
            ql_dora_refresh(linear_at(model, i), workers);
}

ql_status ql_model_start_dora(const ql_model *model, bool fresh, ql_workers *workers, ql_error *err)
{
    ql_workers *own = NULL;
    ql_status status = workers ? QL_OK : ql_workers_create(&own, 0, err);
    ql_workers *used = workers ? workers : own;
    for (size_t i = 0; i < model->config.layers * QL_MODULES && !status; i++) {
        const ql_linear *linear = linear_at(model, i);
        if (!linear->adapter || !linear->adapter->dora)
            continue;
        status = ql_workers_reserve(used, ql_linear_scratch(linear, 1, ql_workers_count(used)), err);
        if (!status)
            status = ql_dora_start(linear, fresh, used, err);
        if (!status)
            ql_dora_refresh(linear, used);
    }
    ql_workers_destroy(own);
    return status;
}

ql_status ql_model_attach(ql_model *model, const ql_lora_options *options, ql_error *err)
{
    ql_adapter_shape *shapes;
    ql_adapters *adapters = NULL;
    ql_status status = ql_model_adapter_shapes(&shapes, model, options, err);
    if (!status)
        status = ql_start_check(model, options, err);
    if (!status)
        status = ql_model_make_adapters(&adapters, model, shapes, true, err);
    if (!status) {
        if (!model->planned)
            ql_adapters_init(adapters, options->seed);
        ql_model_link(model, options, shapes, adapters);
        status = ql_start_adapters(model, err);
        if (!status && options->use_dora && !model->planned)
            status = ql_model_start_dora(model, true, options->workers, err);
    }
    free(shapes);
    return status;
}

size_t ql_model_adapter_parameters(const ql_model *model)
{
    return model->adapters && (model->planned || model->adapters->grad) ? model->adapters->count : 0;
}
