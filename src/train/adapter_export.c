/* Adapters in the files of other programs: llama.cpp's GGUF, mlx-lm's folders, PEFT's own in plain form. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/gguf_write.h"
#include "io/path.h"
#include "model/config_put.h"
#include "qlora/convert.h"
#include "train/layer_list.h"

typedef char tensor_name[QL_LAYER_NAME + 32];

/* One export under way: two tensors, A and B, for each adapted layer; with DoRA m too. */
typedef struct job {
    const char *source, *output;
    ql_model_config model;
    ql_layer_adapters adapters;
    size_t *place;       /* [layers adapted] its entry in adapters.list */
    size_t sides;        /* tensors of a layer */
    tensor_name *names;  /* [sides * layers adapted], as tensors */
    ql_tensor *tensors;
    double scale;        /* MLX: of all layers */
    double alpha;        /* GGUF: of all layers */
    size_t rank;         /* MLX: of all layers */
    float *row;          /* as long as the longest row of any tensor */
    ql_error *err;
} job;

static const ql_adapter *layer_of(const job *j, size_t index)
{
    return j->adapters.layers[j->place[index]];
}

/* The factor that B takes so that `common` times it is the layer's scaling; fp32 does not tell 1 from nearly 1. */
static float fold(const ql_adapter *a, double common)
{
    double factor = a->scaling / common;
    return fabs(factor - 1) < 1e-6 ? 1 : (float)factor;
}

static void put_row(const job *j, ql_output *output, size_t count)
{
    ql_output_write(output, j->row, count * sizeof *j->row);
}

/* ---- GGUF ---- */

/* Hugging Face rotates elements i and i + d/2 of a head together, GGUF's llama neighbours: its q and k have their rows
 * in another order. Returns the row that goes to place `row`. */
static size_t source_row(const job *j, ql_module module, size_t row)
{
    size_t d = j->model.head_dim, in_head = row % d;
    if (!ql_model_config_pairs(&j->model) || (module != QL_Q && module != QL_K))
        return row;
    return row - in_head + in_head % 2 * (d / 2) + in_head / 2;
}

static void name_in_gguf(tensor_name out, const ql_adapter_module *module, const char *suffix)
{
    tensor_name weight;
    snprintf(weight, sizeof weight, "%s.weight", module->name);
    bool known = ql_gguf_name(out, sizeof(tensor_name) - strlen(suffix), weight);
    assert(known);
    (void)known;
    strcat(out, suffix);
}

static ql_status emit_gguf(void *ctx, const ql_tensor *tensor, ql_output *output, ql_error *err)
{
    (void)err;
    const job *j = ctx;
    size_t index = (size_t)(tensor - j->tensors);
    const ql_adapter *a = layer_of(j, index / 2);
    if (index % 2 == 0) {
        ql_output_write(output, a->master_a, a->r * a->k * sizeof(float));
        return QL_OK;
    }
    float factor = fold(a, j->alpha / (double)a->r);
    for (size_t row = 0; row < a->n; row++) {
        const float *from = a->master_b + source_row(j, j->place[index / 2] % QL_MODULES, row) * a->r;
        for (size_t i = 0; i < a->r; i++)
            j->row[i] = factor * from[i];
        put_row(j, output, a->r);
    }
    return QL_OK;
}

static ql_status export_gguf(job *j)
{
    const ql_adapter_config *c = &j->adapters.config;
    if (c->use_dora)
        return ql_fail(j->err, QL_ERR_UNSUPPORTED,
                       "%s: use_dora: a GGUF adapter cannot say it; merge the adapter into the "
                       "model instead",
                       j->source);
    /* The engine scales by alpha / r, and takes an alpha of 0 for a scale of 1. */
    j->alpha = (float)(c->use_rslora ? c->alpha * sqrt((double)c->rank) : c->alpha);
    if (j->alpha == 0)
        j->alpha = (double)c->rank;
    for (size_t i = 0; i < j->adapters.set->layers; i++) {
        const ql_adapter *a = layer_of(j, i);
        for (size_t side = 0; side < 2; side++) {
            size_t t = 2 * i + side;
            name_in_gguf(j->names[t], &j->adapters.list.modules[j->place[i]], side ? ".lora_b" : ".lora_a");
            j->tensors[t] = (ql_tensor){.name = j->names[t], .dtype = QL_F32, .ndim = 2,
                                        .shape = {side ? a->n : a->r, side ? a->r : a->k}};
        }
    }
    ql_gguf_meta meta = {0};
    ql_gguf_put_string(&meta, "general.architecture", ql_model_config_gguf_arch(&j->model));
    ql_gguf_put_string(&meta, "general.type", "adapter");
    ql_gguf_put_string(&meta, "adapter.type", "lora");
    ql_gguf_put_f32(&meta, "adapter.lora.alpha", (float)j->alpha);
    ql_status status = ql_gguf_write(j->output, &meta, j->tensors, 2 * j->adapters.set->layers, emit_gguf, j, j->err);
    ql_gguf_meta_free(&meta);
    return status;
}

/* ---- MLX ---- */

/* A^T [k][R] and (factor B)^T [R][n], zeros beyond the layer's own rank; with DoRA m[n]. */
static ql_status emit_mlx(void *ctx, const ql_tensor *tensor, ql_output *output, ql_error *err)
{
    (void)err;
    const job *j = ctx;
    size_t index = (size_t)(tensor - j->tensors);
    const ql_adapter *a = layer_of(j, index / j->sides);
    bool is_b = index % j->sides == 1;
    float factor = fold(a, j->scale);
    if (tensor->ndim == 1) {
        ql_output_write(output, a->magnitude, a->n * sizeof *a->magnitude);
        return QL_OK;
    }
    for (size_t row = 0; row < tensor->shape[0]; row++) {
        for (size_t i = 0; i < tensor->shape[1]; i++) {
            bool there = (is_b ? row : i) < a->r;
            j->row[i] = !there ? 0 : is_b ? factor * a->master_b[i * a->r + row] : a->master_a[i * a->k + row];
        }
        put_row(j, output, tensor->shape[1]);
    }
    return QL_OK;
}

static ql_status write_mlx_config(const job *j, const char *path)
{
    unsigned modules = 0;
    for (size_t i = 0; i < j->adapters.set->layers; i++)
        modules |= 1u << j->place[i] % QL_MODULES;
    ql_json json = {.pretty = true};
    ql_json_object(&json, NULL);
    ql_json_string(&json, "fine_tune_type", j->adapters.config.use_dora ? "dora" : "lora");
    ql_json_string(&json, "model", j->adapters.config.base_model);
    ql_json_integer(&json, "num_layers", (int64_t)j->model.layers);
    ql_json_object(&json, "lora_parameters");
    ql_json_array(&json, "keys");
    for (int module = 0; module < QL_MODULES; module++)
        if (modules >> module & 1) /* of a block: what follows "model.layers.0." */
            ql_json_string(&json, NULL, j->adapters.list.names[module] + strlen("model.layers.0."));
    ql_json_end(&json);
    ql_json_integer(&json, "rank", (int64_t)j->rank);
    ql_json_number(&json, "scale", j->scale);
    ql_json_number(&json, "dropout", j->adapters.config.dropout);
    ql_json_end(&json);
    ql_json_end(&json);
    ql_status status = ql_json_write(&json, path, j->err);
    ql_json_free(&json);
    return status;
}

static ql_status export_mlx(job *j)
{
    const ql_adapter_config *c = &j->adapters.config;
    const ql_metadata metadata = {"format", "mlx"};
    j->scale = c->alpha / (c->use_rslora ? sqrt((double)c->rank) : (double)c->rank);
    if (j->scale == 0)
        j->scale = 1; /* layers may have an alpha of their own, which is folded into B */
    for (size_t i = 0; i < j->adapters.set->layers; i++) {
        const ql_adapter *a = layer_of(j, i);
        const size_t shapes[3][2] = {{a->k, j->rank}, {j->rank, a->n}, {a->n}};
        static const char *const sides[3] = {"lora_a", "lora_b", "m"};
        for (size_t side = 0; side < j->sides; side++) {
            size_t t = j->sides * i + side;
            snprintf(j->names[t], sizeof *j->names, "%s.%s", j->adapters.list.names[j->place[i]], sides[side]);
            j->tensors[t] = (ql_tensor){.name = j->names[t], .dtype = QL_F32, .ndim = side == 2 ? 1 : 2,
                                        .shape = {shapes[side][0], shapes[side][1]}};
        }
    }
    char *weights = ql_path_join(j->output, "adapters.safetensors");
    char *config = ql_path_join(j->output, "adapter_config.json");
    ql_status status = weights && config ? ql_path_make_folder(j->output, j->err)
                                         : ql_fail(j->err, QL_ERR_MEMORY, "%s: out of memory", j->output);
    if (!status)
        status = ql_safetensors_stream(weights, j->tensors, j->sides * j->adapters.set->layers, &metadata, 1, emit_mlx,
                                       j, j->err);
    if (!status)
        status = write_mlx_config(j, config);
    free(weights);
    free(config);
    return status;
}

/* ---- PEFT ---- */

static ql_status export_peft(job *j)
{
    size_t layers = j->adapters.set->layers;
    unsigned modules = 0;
    const char **names = calloc(2 * layers + QL_MODULES, sizeof *names), **targets = names + layers;
    if (!names)
        return ql_fail(j->err, QL_ERR_MEMORY, "%s: out of memory", j->output);
    for (size_t i = 0; i < layers; i++) {
        names[i] = j->adapters.list.names[j->place[i]];
        modules |= 1u << j->place[i] % QL_MODULES;
    }
    ql_adapter_config config = j->adapters.config;
    config.target_modules = targets;
    config.targets = ql_layer_targets(&j->model, modules, names, layers, targets);
    ql_status status = ql_adapter_file_write(j->output, &config, j->adapters.set, names, j->err);
    free(names);
    return status;
}

/* ---- all ---- */

static ql_status prepare(job *j)
{
    const ql_layer_adapters *all = &j->adapters;
    size_t layers = all->set->layers, longest = 0;
    j->place = calloc(layers, sizeof *j->place);
    j->sides = all->config.use_dora ? 3 : 2;
    j->names = calloc(j->sides * layers, sizeof *j->names);
    j->tensors = calloc(j->sides * layers, sizeof *j->tensors);
    if (!j->place || !j->names || !j->tensors)
        return ql_fail(j->err, QL_ERR_MEMORY, "%s: out of memory", j->output);
    for (size_t i = 0, next = 0; i < all->list.count; i++) {
        const ql_adapter *a = all->layers[i];
        if (!a)
            continue;
        j->place[next++] = i;
        j->rank = a->r > j->rank ? a->r : j->rank;
        longest = a->n > longest ? a->n : longest;
    }
    longest = j->rank > longest ? j->rank : longest;
    j->row = malloc(longest * sizeof *j->row);
    return j->row ? QL_OK : ql_fail(j->err, QL_ERR_MEMORY, "%s: out of memory", j->output);
}

ql_status ql_adapter_export(ql_export target, const char *adapter, const char *model, const char *output,
                            ql_error *err)
{
    job j = {.source = adapter, .output = output, .err = err};
    ql_status status = ql_model_config_read(&j.model, model, err);
    if (!status && (status = ql_layer_adapters_read(&j.adapters, adapter, &j.model, err)))
        ql_fail_in(err, status, "%s", adapter);
    if (!status && !j.adapters.config.base_model)
        j.adapters.config.base_model = model;
    if (!status && target == QL_EXPORT_GGUF)
        status = ql_model_config_check_gguf(&j.model, model, err);
    if (!status)
        status = prepare(&j);
    if (!status)
        status = target == QL_EXPORT_GGUF  ? export_gguf(&j)
                 : target == QL_EXPORT_MLX ? export_mlx(&j)
                                           : export_peft(&j);
    free(j.place);
    free(j.names);
    free(j.tensors);
    free(j.row);
    ql_layer_adapters_free(&j.adapters);
    return status;
}
