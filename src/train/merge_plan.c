#include "train/merge_plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/gguf.h"
#include "model/load.h"
#include "train/merge_rows.h"

static ql_status no_memory(const ql_merge_plan *p, ql_error *err)
{
    return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", ql_tensors_path(p->source));
}

static const ql_tensor *find_source(const ql_merge_plan *p, const char *name)
{
    for (size_t i = 0; i < p->count; i++)
        if (p->entries[i].source && strcmp(p->entries[i].source->name, name) == 0)
            return p->entries[i].source;
    return NULL;
}

/* ---- the linear layers ---- */

/* The weight of a layer among the tensors, of this shape and of a type that can be merged into. */
static ql_status find_layer(const ql_merge_plan *p, const ql_adapter_module *module, const ql_tensor **found,
                            ql_error *err)
{
    char name[QL_LAYER_NAME + 8], translated[QL_LAYER_NAME + 8];
    snprintf(name, sizeof name, "%s.weight", module->name);
    const char *used = p->from_gguf && ql_gguf_name(translated, sizeof translated, name) ? translated : name;
    const ql_tensor *t = *found = find_source(p, used);
    if (!t)
        return ql_fail(err, QL_ERR_FORMAT, "%s: there is no tensor %s", ql_tensors_path(p->source), used);
    if (t->ndim != 2 || t->shape[0] != module->out_features || t->shape[1] != module->in_features)
        return ql_fail(err, QL_ERR_SHAPE, "%s: tensor %s is not of %zu x %zu, which config.json asks for", t->file,
                       used, module->out_features, module->in_features);
    if (!ql_merge_readable(t))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %s is %s, which cannot be merged into", t->file, used,
                       t->dtype_name);
    return QL_OK;
}

/* Llama's q and k lie in pairs in GGUF files, their biases too. */
static void note_layer(ql_merge_plan *p, size_t place, const ql_tensor *weight)
{
    size_t module = place % QL_MODULES;
    bool paired = p->to_gguf && ql_model_config_pairs(&p->config) && (module == QL_Q || module == QL_K);
    char bias[QL_LAYER_NAME + 8];
    snprintf(bias, sizeof bias, "%s.bias", p->adapters.list.modules[place].name);
    const ql_tensor *vector = p->from_gguf ? NULL : ql_tensors_find(p->source, bias);
    for (size_t t = 0; t < p->count; t++) {
        ql_merge_entry *e = &p->entries[t];
        if (e->source == weight)
            e->place = place;
        if (paired && e->source && (e->source == weight || e->source == vector))
            e->pairs_of = p->config.head_dim;
    }
}

static ql_status find_layers(ql_merge_plan *p, ql_error *err)
{
    ql_status status = QL_OK;
    for (size_t i = 0; i < p->adapters.list.count && !status; i++) {
        const ql_tensor *found;
        if (!p->adapters.list.modules[i].out_features) /* held by another one */
            continue;
        status = find_layer(p, &p->adapters.list.modules[i], &found, err);
        if (!status)
            note_layer(p, i, found);
    }
    return status;
}

/* ---- types ---- */

static bool adapted(const ql_merge_plan *p, const ql_merge_entry *e)
{
    return e->place != QL_NO_PLACE && p->adapters.layers[e->place];
}

/* What a matrix that multiplies the whole vocabulary gets: four bits are too few for it. */
static ql_code type_of(const ql_merge_plan *p, const ql_merge_entry *e)
{
    ql_code type = p->options.type;
    bool few = type == QL_CODE_Q4_0 || type == QL_CODE_Q4_1;
    return few && p->to_gguf && !p->from_gguf && e->place == QL_NO_PLACE ? QL_CODE_Q8_0 : type;
}

/* In GGUF files vectors are F32, or as they were in another one. Rows that are no whole blocks are F16, as llama.cpp
 * has it. */
static ql_status choose_type(const ql_merge_plan *p, size_t index, ql_error *err)
{
    const ql_merge_entry *e = &p->entries[index];
    const ql_tensor *source = e->source;
    ql_tensor *out = &p->tensors[index];
    if (source->foreign && !p->from_gguf)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %.200s has the type %.40s, which is not supported",
                       source->file, source->name, source->dtype_name);
    bool readable = ql_merge_readable(source), vector = p->to_gguf && source->ndim < 2;
    if (readable && vector && !p->from_gguf)
        ql_merge_set_type(out, QL_CODE_F32);
    else if (readable && !vector && !p->options.as_stored)
        ql_merge_set_type(out, type_of(p, e));
    if (adapted(p, e) && !ql_merge_writable(out))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %.200s is %s, which cannot be encoded here; choose another "
                       "type for the output, such as q8_0", source->file, source->name, source->dtype_name);
    return QL_OK;
}

/* ---- names ---- */

/* Tensors of a folder that a GGUF file does without: a head that is the embedding, frequencies in old checkpoints. */
static bool left_out(const ql_merge_plan *p, const char *name)
{
    const char *old = strstr(name, ".rotary_emb.inv_freq");
    return (p->config.tied && strcmp(name, "lm_head.weight") == 0) || (old && strcmp(old, ".rotary_emb.inv_freq") == 0);
}

/* NAME.weight.absmax and so on, which go with a matrix in bitsandbytes' codes. */
static bool is_part(const ql_merge_plan *p, const char *name)
{
    const char *part = strstr(name, ".weight.");
    char whole[QL_LAYER_NAME + 8];
    if (!p->config.quantized.code || !part)
        return false;
    size_t length = (size_t)(part - name) + strlen(".weight");
    snprintf(whole, sizeof whole, "%.*s", length < sizeof whole ? (int)length : 0, name);
    return ql_bnb_stored(&(ql_matrix_source){.files = p->source, .name = whole});
}

/* What such a matrix stands for, of the type that the model's other weights have. */
static ql_status decode(ql_merge_plan *p, const ql_tensor **source, bool *bnb, ql_error *err)
{
    const char *name = (*source)->name;
    *bnb = p->config.quantized.code && ql_bnb_stored(&(ql_matrix_source){.files = p->source, .name = name});
    for (size_t i = 0; *bnb && i < p->adapters.list.count; i++) {
        const ql_adapter_module *module = &p->adapters.list.modules[i];
        size_t length = strlen(module->name);
        if (!length || strncmp(name, module->name, length) != 0 || strcmp(name + length, ".weight") != 0)
            continue;
        p->meant[p->count] = (ql_tensor){.name = name, .file = (*source)->file, .dtype = p->config.stored,
                                         .dtype_name = ql_dtype_name(p->config.stored), .ndim = 2,
                                         .shape = {module->out_features, module->in_features}};
        *source = &p->meant[p->count];
        return QL_OK;
    }
    return *bnb ? ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %.200s is quantized by bitsandbytes, and is no linear layer "
                          "of a block", (*source)->file, name)
                : QL_OK;
}

static ql_status add_tensor(ql_merge_plan *p, const ql_tensor *source, ql_error *err)
{
    bool bnb;
    if (is_part(p, source->name))
        return QL_OK;
    ql_status status = decode(p, &source, &bnb, err);
    if (status)
        return status;
    bool rename = p->to_gguf && !p->from_gguf;
    if (rename && left_out(p, source->name))
        return QL_OK;
    if (rename && !ql_gguf_name(p->names[p->count], sizeof p->names[0], source->name))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %.200s has no name in GGUF files of this architecture",
                       source->file, source->name);
    p->tensors[p->count] = *source;
    if (rename)
        p->tensors[p->count].name = p->names[p->count];
    p->entries[p->count++] = (ql_merge_entry){.source = source, .bnb = bnb, .place = QL_NO_PLACE};
    return QL_OK;
}

/* Llama 3's scaling of the rotation, which GGUF files have as a tensor. */
static void add_divisors(ql_merge_plan *p)
{
    if (!p->to_gguf || p->from_gguf || !ql_model_config_divisors(&p->config, p->divisors))
        return;
    p->tensors[p->count] = (ql_tensor){.name = "rope_freqs.weight",
                                       .dtype = QL_F32,
                                       .dtype_name = ql_dtype_name(QL_F32),
                                       .ndim = 1,
                                       .shape = {p->config.head_dim / 2}};
    p->entries[p->count++] = (ql_merge_entry){.place = QL_NO_PLACE};
}

static ql_status add_tensors(ql_merge_plan *p, ql_error *err)
{
    size_t count = ql_tensors_count(p->source) + 1;
    p->tensors = calloc(count, sizeof *p->tensors);
    p->entries = calloc(count, sizeof *p->entries);
    p->names = calloc(count, sizeof *p->names);
    p->meant = calloc(count, sizeof *p->meant);
    if (!p->tensors || !p->entries || !p->names || !p->meant)
        return no_memory(p, err);
    ql_status status = QL_OK;
    for (size_t i = 0; i + 1 < count && !status; i++)
        status = add_tensor(p, ql_tensors_at(p->source, i), err);
    if (!status)
        add_divisors(p);
    return status;
}

/* ---- all ---- */

ql_status ql_merge_plan_make(ql_merge_plan *p, const char *model, const char *adapter, ql_error *err)
{
    ql_status status = ql_model_config_read(&p->config, model, err);
    if (!status && p->to_gguf)
        status = ql_model_config_check_gguf(&p->config, model, err);
    if (!status && p->config.quantized.code && p->options.quantized)
        status = ql_fail(err, QL_ERR_UNSUPPORTED, "%s: a folder of bitsandbytes is merged into as it is stored", model);
    if (!status && (status = ql_layer_adapters_read(&p->adapters, adapter, &p->config, err)))
        ql_fail_in(err, status, "%s", adapter);
    if (!status)
        status = ql_tensors_open(&p->source, model, err);
    if (!status)
        status = add_tensors(p, err);
    if (!status)
        status = find_layers(p, err);
    p->longest = 1;
    for (size_t t = 0; t < p->count && !status; t++) {
        const ql_tensor *source = p->entries[t].source;
        size_t k = source && source->ndim ? source->shape[source->ndim - 1] : 1;
        p->longest = k > p->longest ? k : p->longest;
        status = source ? choose_type(p, t, err) : QL_OK;
    }
    return status;
}

void ql_merge_plan_free(ql_merge_plan *p)
{
    free(p->tensors);
    free(p->entries);
    free(p->names);
    free(p->meant);
    ql_layer_adapters_free(&p->adapters);
    ql_tensors_close(p->source);
    *p = (ql_merge_plan){0};
}
