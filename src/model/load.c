/* Opening a Hugging Face folder or a GGUF file: tensors are mapped, quantized one by one, and let go. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/gguf.h"
#include "model/cache.h"
#include "model/load.h"
#include "model/model.h"
#include "quant/weight.h"

typedef struct loader {
    ql_model *model;
    ql_workers *workers;
    ql_error *err;
    char name[160]; /* of the tensor at hand, as the files have it */
    ql_cache *cache; /* NULL: none */
} loader;

static const char *name_of(loader *l, const char *format, ...) __attribute__((format(printf, 2, 3)));

static const char *name_of(loader *l, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(l->name, sizeof l->name, format, args);
    va_end(args);
    char translated[sizeof l->name];
    if (ql_tensors_gguf(l->model->files) && ql_gguf_name(translated, sizeof translated, l->name))
        strcpy(l->name, translated);
    return l->name;
}

static ql_status load_vector(loader *l, const float *into, size_t n)
{
    const ql_tensor *tensor;
    ql_status status = ql_tensors_need(&tensor, l->model->files, l->name, 1, &n, l->err);
    return status ? status : ql_tensor_read_f32(tensor, 0, n, ql_writable(into), l->err);
}

static ql_status load_norm(loader *l, const float *into, size_t n)
{
    ql_status status = load_vector(l, into, n);
    float *w = ql_writable(into);
    for (size_t i = 0; l->model->config.offset_norms && !status && i < n; i++)
        w[i] += 1;
    return status;
}

static ql_status load_matrix(loader *l, ql_weight **out, ql_format format, size_t n, size_t k, size_t pairs)
{
    ql_matrix_source source = {.files = l->model->files, .name = l->name, .n = n, .k = k, .pairs = pairs};
    if (l->model->planned)
        return ql_matrix_plan(out, &source, format, &l->model->mapped_bytes, l->err);
    if (ql_cache_take(l->cache, out, l->name, n, k))
        return QL_OK;
    ql_status status = ql_matrix_load(out, &source, format, &l->model->mapped_bytes, l->workers, l->err);
    return status ? status : ql_cache_keep(l->cache, l->name, *out, l->err);
}

static ql_status load_embeddings(loader *l)
{
    ql_model *model = l->model;
    const ql_model_config *c = &model->config;
    const ql_format as_stored = {.code = QL_CODE_F32, .scale = QL_SCALE_NONE};
    name_of(l, "model.embed_tokens.weight");
    ql_status status = load_matrix(l, &model->embed, as_stored, c->vocab_size, c->hidden_size, 0);
    if (status)
        return status;
    name_of(l, "lm_head.weight");
    if (c->tied || !ql_tensors_find(model->files, l->name)) {
        if (!c->tied)
            return ql_fail(l->err, QL_ERR_FORMAT,
                           "tensor %s is missing, and config.json does not tie the embeddings", l->name);
        model->head = model->embed;
    } else {
        status = load_matrix(l, &model->head, as_stored, c->vocab_size, c->hidden_size, 0);
    }
    name_of(l, "model.norm.weight");
    return status ? status : load_norm(l, model->final_norm, c->hidden_size);
}

/* Heads whose rows lie in adjacent pairs: q and k in GGUF files of the Llama architecture. */
static size_t paired_heads(const loader *l, int module)
{
    const ql_model_config *c = &l->model->config;
    if (c->arch != QL_ARCH_LLAMA || !ql_tensors_gguf(l->model->files))
        return 0;
    return module == QL_Q ? c->heads : module == QL_K ? c->kv_heads : 0;
}

static ql_status load_bias(loader *l, const float *into, size_t n, size_t pairs)
{
    if (!pairs)
        return load_vector(l, into, n);
    float *stored = malloc(n * sizeof *stored);
    ql_status status = stored ? load_vector(l, stored, n) : ql_fail(l->err, QL_ERR_MEMORY, "%s: out of memory", l->name);
    if (!status)
        ql_unpair_rows(ql_writable(into), stored, sizeof *stored, n, pairs);
    free(stored);
    return status;
}

/* The weight of a linear layer; its name stays in l->name. */
static ql_status load_linear(loader *l, ql_weight **out, size_t layer, ql_module module, ql_format format)
{
    const ql_model_config *c = &l->model->config;
    name_of(l, "model.layers.%zu.%s.%s.weight", layer, ql_module_path(module), ql_module_name(c, module));
    return load_matrix(l, out, format, ql_module_outputs(c, module), ql_module_inputs(c, module),
                       paired_heads(l, module));
}

ql_status ql_model_load_linear(ql_weight **out, ql_model *model, size_t layer, ql_module module, ql_workers *workers,
                               ql_error *err)
{
    loader l = {.model = model, .workers = workers, .err = err};
    size_t mapped = model->mapped_bytes;
    ql_status status = load_linear(&l, out, layer, module, (ql_format){.code = QL_CODE_F32, .scale = QL_SCALE_NONE});
    model->mapped_bytes = mapped; /* it is not kept */
    return status;
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
        {c->out_norms ? "pre_feedforward_layernorm" : "post_attention_layernorm", block->mlp_norm, c->hidden_size},
        {"post_attention_layernorm", block->att_out_norm, c->hidden_size},
        {"post_feedforward_layernorm", block->mlp_out_norm, c->hidden_size},
        {"self_attn.q_norm", block->q_norm, c->head_dim},
        {"self_attn.k_norm", block->k_norm, c->head_dim},
    };
    ql_status status = QL_OK;
    for (size_t j = 0; j < sizeof norms / sizeof *norms && !status; j++) {
        name_of(l, "model.layers.%zu.%s.weight", i, norms[j].name);
        status = norms[j].into ? load_norm(l, norms[j].into, norms[j].n) : QL_OK;
    }
    for (int module = 0; module < QL_MODULES && !status; module++) {
        if (!ql_module_present(c, module))
            continue;
        const char *path = ql_module_path(module), *name = ql_module_name(c, module);
        size_t n = ql_module_outputs(c, module), pairs = paired_heads(l, module);
        status = load_linear(l, &block->weight[module], i, (ql_module)module, l->model->format);
        name_of(l, "model.layers.%zu.%s.%s.bias", i, path, name);
        if (!status && block->bias[module])
            status = load_bias(l, block->bias[module], n, pairs);
        else if (!status && ql_tensors_find(l->model->files, l->name))
            status = ql_fail(l->err, QL_ERR_UNSUPPORTED, "tensor %s: this architecture has no bias there", l->name);
    }
    return status;
}

/* Llama 3's scaling of the rotation, which GGUF files hold as a divisor for each frequency. */
static ql_status load_divisors(loader *l)
{
    ql_model *model = l->model;
    if (!model->divided)
        return QL_OK;
    name_of(l, "rope_freqs.weight");
    ql_status status = load_vector(l, model->rope_divisors, model->config.head_dim / 2);
    for (size_t i = 0; i < model->config.head_dim / 2 && !status; i++)
        if (!(model->rope_divisors[i] >= 1e-6f && model->rope_divisors[i] <= 1e6f))
            status = ql_fail(l->err, QL_ERR_VALUE, "tensor %s: element %zu is %g", l->name, i,
                             (double)model->rope_divisors[i]);
    return status;
}

static ql_status load_weights(loader *l)
{
    ql_status status = load_divisors(l);
    if (!status)
        status = load_embeddings(l);
    for (size_t i = 0; i < l->model->config.layers && !status; i++)
        status = load_block(l, i);
    return status;
}

static ql_status load(loader *l, const char *path, ql_model_cache *cache)
{
    ql_model *model = l->model;
    ql_status status = ql_model_config_read(&model->config, path, l->err);
    if (!status)
        status = ql_tensors_open(&model->files, path, l->err);
    model->divided = !status && ql_tensors_gguf(model->files) && ql_tensors_find(model->files, "rope_freqs.weight");
    if (!status)
        status = ql_model_prepare(model, l->err);
    if (status)
        return status;
    if (cache && cache->dir)
        status = ql_cache_open(&l->cache, cache, model, path, l->workers, l->err);
    if (!status)
        status = load_weights(l);
    if (!status)
        ql_cache_finish(l->cache, model, l->workers);
    return status ? ql_fail_in(l->err, status, "%s", path) : QL_OK;
}

ql_status ql_model_plan_files(ql_model **out, const char *path, ql_format format, ql_error *err)
{
    *out = NULL;
    ql_model *model = calloc(1, sizeof *model);
    if (!model)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    loader l = {.model = model, .err = err};
    model->format = format;
    model->planned = true;
    ql_status status = load(&l, path, NULL);
    if (status) {
        ql_model_destroy(model);
        return status;
    }
    ql_model_settle_format(model);
    ql_model_link(model, &(ql_lora_options){0}, NULL, NULL);
    *out = model;
    return QL_OK;
}

ql_status ql_model_open(ql_model **out, const char *path, ql_format format, ql_workers *workers, ql_error *err)
{
    return ql_model_open_cached(out, path, format, NULL, workers, err);
}

ql_status ql_model_open_cached(ql_model **out, const char *path, ql_format format, ql_model_cache *cache,
                               ql_workers *workers, ql_error *err)
{
    *out = NULL;
    ql_model *model = calloc(1, sizeof *model);
    if (!model)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    loader l = {.model = model, .workers = workers, .err = err};
    model->format = format;
    ql_status status = load(&l, path, cache);
    if (status)
        ql_model_destroy(model); /* before the file that its weights may lie in */
    ql_cache_free(l.cache);
    if (status)
        return status;
    ql_model_settle_format(model);
    ql_model_link(model, &(ql_lora_options){0}, NULL, NULL);
    *out = model;
    return QL_OK;
}

ql_status ql_model_default_format(ql_format *out, const char *path, ql_error *err)
{
    *out = ql_format_default();
    if (!ql_path_is_gguf(path)) {
        ql_model_config config;
        ql_status status = ql_model_config_read(&config, path, err);
        if (!status && config.quantized.code)
            *out = (ql_format){.code = QL_CODE_F32, .scale = QL_SCALE_NONE};
        return status;
    }
    ql_tensors *files;
    ql_status status = ql_tensors_open(&files, path, err);
    for (size_t i = 0; !status && i < ql_tensors_count(files); i++) {
        const ql_tensor *tensor = ql_tensors_at(files, i);
        if (tensor->foreign && strncmp(tensor->name, "blk.", 4) == 0)
            *out = (ql_format){.code = QL_CODE_F32, .scale = QL_SCALE_NONE};
    }
    ql_tensors_close(files);
    return status;
}
