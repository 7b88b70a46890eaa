/* W + s B A, tensor by tensor from the mapped files of a model into a new folder or GGUF file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/gguf_write.h"
#include "io/path.h"
#include "qlora/convert.h"
#include "quant/weight.h"
#include "train/layer_list.h"
#include "train/merge_files.h"
#include "train/merge_rows.h"

typedef struct job {
    ql_merge_options options;
    ql_merge_report *report;
    ql_workers *workers;
    ql_tensors *source;
    ql_layer_adapters adapters;
    ql_tensor *tensors; /* as written: name, type and shape */
    size_t *place;      /* of each in adapters.list; NO_PLACE: no linear layer of a block */
    ql_model_config config;
    bool gguf; /* from one file into another */
    ql_merge_buffers buffers;
} job;

#define NO_PLACE SIZE_MAX

ql_merge_options ql_merge_options_defaults(void)
{
    return (ql_merge_options){.as_stored = true, .format = ql_format_default()};
}

/* ---- a tensor ---- */

static ql_status emit(void *ctx, const ql_tensor *out, ql_output *output, ql_error *err)
{
    const job *j = ctx;
    size_t index = (size_t)(out - j->tensors);
    const ql_tensor *source = ql_tensors_at(j->source, index);
    bool linear = j->place[index] != NO_PLACE, quantized = linear && j->options.quantized;
    size_t k = source->ndim ? source->shape[source->ndim - 1] : 1, module = j->place[index] % QL_MODULES;
    ql_merge_matrix m = {.source = source, .out = out, .k = k, .n = k ? ql_tensor_elements(source) / k : 0,
                         .adapter = linear ? j->adapters.layers[j->place[index]] : NULL};
    if (j->gguf && j->config.arch == QL_ARCH_LLAMA && linear && (module == QL_Q || module == QL_K))
        m.pairs_of = j->config.head_dim;
    ql_weight *weight = NULL;
    ql_status status = QL_OK;
    uint64_t start = output->written;
    ql_tensors_fetch(j->source, source);
    if (quantized)
        status = ql_weight_quantize(&weight, j->options.format, source->name, source->data, source->dtype, k, m.n, k,
                                    j->workers, err);
    m.weight = weight;
    if (!status && (quantized || m.adapter || !ql_merge_same_type(out, source)))
        status = ql_merge_write_rows(&m, &j->buffers, output, j->workers, err);
    else if (!status)
        ql_output_write(output, source->data, source->bytes);
    ql_weight_destroy(weight);
    ql_tensors_release(j->source, source);
    if (m.max_error > j->report->max_error) {
        j->report->max_error = m.max_error;
        snprintf(j->report->max_error_at, sizeof j->report->max_error_at, "%s", out->name);
    }
    j->report->tensors++;
    j->report->merged += m.adapter != NULL;
    j->report->bytes += output->written - start;
    return status;
}

/* ---- the model ---- */

/* The weight of a layer among the tensors, of this shape and of a type that can be merged into. */
static ql_status find_layer(const job *j, const ql_adapter_module *module, const ql_tensor **found, ql_error *err)
{
    char name[QL_LAYER_NAME + 8], translated[QL_LAYER_NAME + 8];
    snprintf(name, sizeof name, "%s.weight", module->name);
    const char *used = j->gguf && ql_gguf_name(translated, sizeof translated, name) ? translated : name;
    const ql_tensor *t = *found = ql_tensors_find(j->source, used);
    if (!t)
        return ql_fail(err, QL_ERR_FORMAT, "%s: there is no tensor %s", ql_tensors_path(j->source), used);
    if (t->ndim != 2 || t->shape[0] != module->out_features || t->shape[1] != module->in_features)
        return ql_fail(err, QL_ERR_SHAPE, "%s: tensor %s is not of %zu x %zu, which config.json asks for", t->file, used,
                       module->out_features, module->in_features);
    if (!ql_merge_readable(t))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %s is %s, which cannot be merged into", t->file, used,
                       t->dtype_name);
    return QL_OK;
}

static ql_status find_layers(job *j, ql_error *err)
{
    size_t count = ql_tensors_count(j->source);
    for (size_t t = 0; t < count; t++)
        j->place[t] = NO_PLACE;
    for (size_t i = 0; i < j->adapters.list.count; i++) {
        const ql_tensor *found;
        ql_status status = find_layer(j, &j->adapters.list.modules[i], &found, err);
        if (status)
            return status;
        for (size_t t = 0; t < count; t++)
            if (ql_tensors_at(j->source, t) == found)
                j->place[t] = i;
    }
    return QL_OK;
}

/* The type of a tensor in the output. In GGUF files vectors stay as they are, and rows that are no whole blocks are
 * F16, as llama.cpp has it. */
static ql_status choose_type(const job *j, size_t index, ql_error *err)
{
    const ql_tensor *source = ql_tensors_at(j->source, index);
    ql_tensor *out = &j->tensors[index];
    bool adapted = j->place[index] != NO_PLACE && j->adapters.layers[j->place[index]];
    *out = *source;
    if (source->foreign && !j->gguf)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %.200s has the type %.40s, which is not supported",
                       source->file, source->name, source->dtype_name);
    if (!j->options.as_stored && ql_merge_readable(source) && (!j->gguf || source->ndim > 1))
        ql_merge_set_type(out, j->options.type);
    if (adapted && !ql_merge_writable(out))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %.200s is %s, which cannot be encoded here; choose another "
                       "type for the output, such as q8_0", source->file, source->name, source->dtype_name);
    return QL_OK;
}

static ql_status plan(job *j, ql_error *err)
{
    size_t count = ql_tensors_count(j->source), longest = 1;
    j->tensors = calloc(count + 1, sizeof *j->tensors);
    j->place = calloc(count + 1, sizeof *j->place);
    if (!j->tensors || !j->place)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", ql_tensors_path(j->source));
    ql_status status = find_layers(j, err);
    for (size_t t = 0; t < count && !status; t++) {
        const ql_tensor *source = ql_tensors_at(j->source, t);
        size_t k = source->ndim ? source->shape[source->ndim - 1] : 1;
        longest = k > longest ? k : longest;
        status = choose_type(j, t, err);
    }
    return status ? status : ql_merge_buffers_make(&j->buffers, longest, err);
}

/* Metadata as it is, but for what may be so no longer. */
static ql_status write_gguf(job *j, const char *output, ql_error *err)
{
    const ql_gguf *source = ql_tensors_gguf(j->source);
    ql_gguf_meta meta = {0};
    for (size_t i = 0; i < ql_gguf_count(source); i++) {
        const ql_gguf_value *value = ql_gguf_at(source, i);
        if (strcmp(value->key, "general.file_type") != 0 && strcmp(value->key, "general.alignment") != 0)
            ql_gguf_put_value(&meta, value);
    }
    ql_status status = ql_gguf_write(output, &meta, j->tensors, ql_tensors_count(j->source), emit, j, err);
    ql_gguf_meta_free(&meta);
    return status;
}

static ql_status write_folder(job *j, const char *model, const char *output, ql_error *err)
{
    const ql_metadata metadata = {"format", "pt"};
    ql_dtype type = ql_code_dtype(j->options.as_stored ? QL_CODE_F32 : j->options.type);
    char *path = ql_path_join(output, "model.safetensors");
    ql_status status = path ? ql_path_make_folder(output, err) : ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", output);
    if (!status)
        status = ql_safetensors_stream(path, j->tensors, ql_tensors_count(j->source), &metadata, 1, emit, j, err);
    if (!status)
        status = ql_merge_copy_files(model, output, err);
    if (!status)
        status = ql_merge_write_config(model, output, j->options.as_stored ? NULL : &type, err);
    free(path);
    return status;
}

static ql_status check_options(const job *j, const char *model, const char *output, ql_error *err)
{
    const ql_merge_options *o = &j->options;
    if (!o->as_stored && !(ql_code_is_dense(o->type) || (j->gguf && ql_merge_encodes(o->type))))
        return ql_fail(err, QL_ERR_ARG, "%s: a merged %s cannot have this type of weights", output,
                       j->gguf ? "GGUF file" : "Hugging Face folder");
    if (j->gguf && o->quantized)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: a GGUF file is merged into as it is stored", model);
    ql_status status = ql_merge_check_folders(model, output, err);
    return status || j->gguf ? status : ql_merge_check_config(model, err);
}

ql_status ql_merge(ql_merge_report *report, const char *model, const char *adapter, const char *output,
                   const ql_merge_options *options, ql_workers *workers, ql_error *err)
{
    *report = (ql_merge_report){0};
    job j = {.options = *options, .report = report, .workers = workers, .gguf = ql_path_is_gguf(model)};
    ql_status status = check_options(&j, model, output, err);
    if (!status)
        status = ql_model_config_read(&j.config, model, err);
    if (!status && (status = ql_layer_adapters_read(&j.adapters, adapter, &j.config, err)))
        ql_fail_in(err, status, "%s", adapter);
    if (!status)
        status = ql_tensors_open(&j.source, model, err);
    if (!status)
        status = plan(&j, err);
    if (!status)
        status = j.gguf ? write_gguf(&j, output, err) : write_folder(&j, model, output, err);
    free(j.tensors);
    free(j.place);
    ql_merge_buffers_free(&j.buffers);
    ql_layer_adapters_free(&j.adapters);
    ql_tensors_close(j.source);
    return status;
}
