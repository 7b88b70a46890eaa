/* Opening a Hugging Face folder: tensors are mapped, quantized one by one, and let go. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/model.h"
#include "quant/weight.h"

typedef struct loader {
    ql_model *model;
    ql_workers *workers;
    ql_error *err;
    char name[160]; /* of the tensor at hand */
} loader;

static const char *name_of(loader *l, const char *format, ...) __attribute__((format(printf, 2, 3)));

static const char *name_of(loader *l, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(l->name, sizeof l->name, format, args);
    va_end(args);
    return l->name;
}

static ql_status find(loader *l, const ql_tensor **tensor, size_t ndim, size_t n, size_t k)
{
    size_t shape[2] = {n, k};
    return ql_tensors_need(tensor, l->model->files, l->name, ndim, shape, l->err);
}

static ql_status load_vector(loader *l, const float *into, size_t n)
{
    const ql_tensor *tensor;
    ql_status status = find(l, &tensor, 1, n, 0);
    return status ? status : ql_tensor_read_f32(tensor, 0, n, ql_writable(into), l->err);
}

static bool borrowable(const ql_tensor *tensor)
{
    return (uintptr_t)tensor->data % ql_dtype_size(tensor->dtype) == 0;
}

/* The dense format of a tensor as it is stored. */
static ql_status dense_format(ql_format *out, const ql_tensor *tensor, ql_error *err)
{
    static const struct {
        ql_dtype type;
        ql_code code;
    } dense[] = {{QL_F32, QL_CODE_F32}, {QL_F16, QL_CODE_F16}, {QL_BF16, QL_CODE_BF16}};
    for (size_t i = 0; i < 3; i++) {
        if (tensor->dtype == dense[i].type) {
            *out = (ql_format){.code = dense[i].code, .scale = QL_SCALE_NONE};
            return QL_OK;
        }
    }
    return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %s is %s: weights must be F32, F16 or BF16", tensor->file,
                   tensor->name, tensor->dtype_name);
}

/* As stored: borrowed from the mapped file where its alignment allows. */
static ql_status load_dense(loader *l, ql_weight **out, const ql_tensor *tensor, ql_format as_stored, size_t n,
                            size_t k)
{
    if (!borrowable(tensor))
        return ql_weight_quantize(out, as_stored, tensor->name, tensor->data, tensor->dtype, k, n, k, l->workers,
                                  l->err);
    l->model->mapped_bytes += tensor->bytes;
    return ql_weight_borrow(out, tensor->data, tensor->dtype, n, k, l->err);
}

static ql_status load_matrix(loader *l, ql_weight **out, ql_format format, size_t n, size_t k)
{
    const ql_tensor *tensor;
    ql_status status = find(l, &tensor, 2, n, k);
    if (status)
        return status;
    ql_format as_stored;
    status = dense_format(&as_stored, tensor, l->err);
    if (status)
        return status;
    if (format.code == QL_CODE_F32) /* "none" */
        return load_dense(l, out, tensor, as_stored, n, k);
    ql_tensors_fetch(l->model->files, tensor);
    status = ql_weight_quantize(out, format, tensor->name, tensor->data, tensor->dtype, k, n, k, l->workers, l->err);
    ql_tensors_release(l->model->files, tensor);
    return status ? ql_fail_in(l->err, status, "%s", tensor->file) : QL_OK;
}

static ql_status load_embeddings(loader *l)
{
    ql_model *model = l->model;
    const ql_model_config *c = &model->config;
    const ql_format as_stored = {.code = QL_CODE_F32, .scale = QL_SCALE_NONE};
    name_of(l, "model.embed_tokens.weight");
    ql_status status = load_matrix(l, &model->embed, as_stored, c->vocab_size, c->hidden_size);
    if (status)
        return status;
    name_of(l, "lm_head.weight");
    if (c->tied || !ql_tensors_find(model->files, l->name)) {
        if (!c->tied)
            return ql_fail(l->err, QL_ERR_FORMAT,
                           "tensor lm_head.weight is missing, and config.json does not tie the embeddings");
        model->head = model->embed;
    } else {
        status = load_matrix(l, &model->head, as_stored, c->vocab_size, c->hidden_size);
    }
    name_of(l, "model.norm.weight");
    return status ? status : load_vector(l, model->final_norm, c->hidden_size);
}

static const char *module_path(ql_module module)
{
    return module <= QL_O ? "self_attn" : "mlp";
}

static ql_status load_block(loader *l, size_t i)
{
    ql_block *block = &l->model->blocks[i];
    const ql_model_config *c = &l->model->config;
    const struct {
        const char *name;
        const float *into;
        size_t n;
    } norms[] = {
        {"input_layernorm", block->input_norm, c->hidden_size},
        {"post_attention_layernorm", block->post_norm, c->hidden_size},
        {"self_attn.q_norm", block->q_norm, c->head_dim},
        {"self_attn.k_norm", block->k_norm, c->head_dim},
    };
    ql_status status = QL_OK;
    for (size_t j = 0; j < 4 && !status; j++) {
        name_of(l, "model.layers.%zu.%s.weight", i, norms[j].name);
        status = norms[j].into ? load_vector(l, norms[j].into, norms[j].n) : QL_OK;
    }
    for (int module = 0; module < QL_MODULES && !status; module++) {
        const char *path = module_path(module), *name = ql_module_name(module);
        size_t n = ql_module_outputs(c, module);
        name_of(l, "model.layers.%zu.%s.%s.weight", i, path, name);
        status = load_matrix(l, &block->weight[module], l->model->format, n, ql_module_inputs(c, module));
        name_of(l, "model.layers.%zu.%s.%s.bias", i, path, name);
        if (!status && block->bias[module])
            status = load_vector(l, block->bias[module], n);
        else if (!status && ql_tensors_find(l->model->files, l->name))
            status = ql_fail(l->err, QL_ERR_UNSUPPORTED, "tensor %s: this architecture has no bias there", l->name);
    }
    return status;
}

ql_status ql_model_open(ql_model **out, const char *dir, ql_format format, ql_workers *workers, ql_error *err)
{
    *out = NULL;
    ql_model *model = calloc(1, sizeof *model);
    if (!model)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", dir);
    loader l = {.model = model, .workers = workers, .err = err};
    model->format = format;
    ql_status status = ql_model_config_read(&model->config, dir, err);
    if (!status)
        status = ql_tensors_open(&model->files, dir, err);
    if (!status)
        status = ql_model_prepare(model, err);
    if (!status && (status = load_embeddings(&l)))
        ql_fail_in(err, status, "%s", dir);
    for (size_t i = 0; i < model->config.layers && !status; i++)
        if ((status = load_block(&l, i)))
            ql_fail_in(err, status, "%s", dir);
    if (status) {
        ql_model_destroy(model);
        return status;
    }
    ql_model_link(model, &(ql_lora_options){0}, NULL, NULL);
    *out = model;
    return QL_OK;
}
