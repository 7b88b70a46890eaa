/* W + s B A, tensor by tensor from the mapped files of a model into a new folder or GGUF file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/gguf_write.h"
#include "io/path.h"
#include "model/load.h"
#include "qlora/convert.h"
#include "quant/weight.h"
#include "text/gguf_put.h"
#include "train/merge_files.h"
#include "train/merge_plan.h"
#include "train/merge_rows.h"

typedef struct job {
    ql_merge_plan plan;
    ql_merge_report *report;
    ql_workers *workers;
    ql_merge_buffers buffers;
} job;

ql_merge_options ql_merge_options_defaults(void)
{
    return (ql_merge_options){.as_stored = true, .format = ql_format_default()};
}

/* ---- a tensor ---- */

static ql_status write_rows(const job *j, ql_merge_matrix *m, bool bnb, bool quantized, ql_output *output,
                            ql_error *err)
{
    const ql_tensor *source = m->source;
    ql_matrix_source codes = {.files = j->plan.source, .name = source->name, .n = m->n, .k = m->k};
    ql_weight *weight = NULL;
    ql_status status = QL_OK;
    ql_tensors_fetch(j->plan.source, source);
    if (bnb)
        status = ql_bnb_load(&weight, &codes, err);
    else if (quantized)
        status = ql_weight_quantize(&weight, j->plan.options.format, source->name, source->data, source->dtype, m->k,
                                    m->n, m->k, j->workers, err);
    m->weight = weight;
    bool moves = m->pairs_of && !m->source_paired;
    if (!status && (weight || m->adapter || moves || !ql_merge_same_type(m->out, source)))
        status = ql_merge_write_rows(m, &j->buffers, output, j->workers, err);
    else if (!status)
        ql_output_write(output, source->data, source->bytes);
    ql_weight_destroy(weight);
    ql_tensors_release(j->plan.source, source);
    return status;
}

static ql_status emit(void *ctx, const ql_tensor *out, ql_output *output, ql_error *err)
{
    const job *j = ctx;
    const ql_merge_plan *p = &j->plan;
    const ql_merge_entry *e = &p->entries[out - p->tensors];
    uint64_t start = output->written;
    ql_merge_matrix m = {.source = e->source, .out = out, .pairs_of = e->pairs_of, .source_paired = p->from_gguf};
    bool linear = e->place != QL_NO_PLACE;
    ql_status status = QL_OK;
    if (e->source) {
        bool by_element = e->source->ndim == 1 && e->pairs_of; /* a bias whose elements change places */
        m.k = !e->source->ndim || by_element ? 1 : e->source->shape[e->source->ndim - 1];
        m.n = m.k ? ql_tensor_elements(e->source) / m.k : 0;
        m.adapter = linear ? p->adapters.layers[e->place] : NULL;
        status = write_rows(j, &m, e->bnb, linear && p->options.quantized, output, err);
    } else {
        ql_output_write(output, p->divisors, out->shape[0] * sizeof *p->divisors);
    }
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

/* Metadata of another GGUF file as it is, but for what may be so no longer. */
static void copy_metadata(ql_gguf_meta *meta, const ql_gguf *source)
{
    for (size_t i = 0; i < ql_gguf_count(source); i++) {
        const ql_gguf_value *value = ql_gguf_at(source, i);
        if (strcmp(value->key, "general.file_type") != 0 && strcmp(value->key, "general.alignment") != 0)
            ql_gguf_put_value(meta, value);
    }
}

static ql_status make_metadata(const job *j, ql_gguf_meta *meta, const char *model, ql_error *err)
{
    const char *slash = strrchr(model, '/');
    ql_model_config_put_gguf(meta, &j->plan.config);
    if (slash ? slash[1] : model[0])
        ql_gguf_put_string(meta, "general.name", slash ? slash + 1 : model);
    ql_gguf_put_u32(meta, "general.quantization_version", 2);
    return ql_tokenizer_put_gguf(meta, model, j->plan.config.vocab_size, err);
}

static ql_status write_gguf(job *j, const char *model, const char *output, ql_error *err)
{
    ql_merge_plan *p = &j->plan;
    ql_gguf_meta meta = {0};
    ql_status status = QL_OK;
    if (p->from_gguf)
        copy_metadata(&meta, ql_tensors_gguf(p->source));
    else
        status = make_metadata(j, &meta, model, err);
    if (!status)
        status = ql_gguf_write(output, &meta, p->tensors, p->count, emit, j, err);
    ql_gguf_meta_free(&meta);
    return status;
}

static ql_status write_folder(job *j, const char *model, const char *output, ql_error *err)
{
    const ql_metadata metadata = {"format", "pt"};
    ql_merge_plan *p = &j->plan;
    bool decoded = p->config.quantized.code;
    ql_dtype type = p->options.as_stored ? p->config.stored : ql_code_dtype(p->options.type);
    char *path = ql_path_join(output, "model.safetensors");
    ql_status status =
        path ? ql_path_make_folder(output, err) : ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", output);
    if (!status)
        status = ql_safetensors_stream(path, p->tensors, p->count, &metadata, 1, emit, j, err);
    if (!status)
        status = ql_merge_copy_files(model, output, err);
    if (!status)
        status = ql_merge_write_config(model, output, decoded || !p->options.as_stored ? &type : NULL, err);
    free(path);
    return status;
}

static ql_status check_options(const ql_merge_plan *p, const char *model, const char *output, ql_error *err)
{
    const ql_merge_options *o = &p->options;
    if (!o->as_stored && !(ql_code_is_dense(o->type) || (p->to_gguf && ql_merge_encodes(o->type))))
        return ql_fail(err, QL_ERR_ARG, "%s: a merged %s cannot have this type of weights%s", output,
                       p->to_gguf ? "GGUF file" : "Hugging Face folder",
                       p->to_gguf ? "" : "; a GGUF file (a name that ends in .gguf) can");
    if (p->from_gguf && o->quantized)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: a GGUF file is merged into as it is stored", model);
    ql_status status = ql_merge_check_folders(model, output, err);
    return status;
}

ql_status ql_merge(ql_merge_report *report, const char *model, const char *adapter, const char *output,
                   const ql_merge_options *options, ql_workers *workers, ql_error *err)
{
    *report = (ql_merge_report){0};
    job j = {.report = report, .workers = workers};
    j.plan.options = *options;
    j.plan.from_gguf = ql_path_is_gguf(model);
    j.plan.to_gguf = j.plan.from_gguf || options->gguf;
    ql_status status = check_options(&j.plan, model, output, err);
    if (!status)
        status = ql_merge_plan_make(&j.plan, model, adapter, err);
    if (!status)
        status = ql_merge_buffers_make(&j.buffers, j.plan.longest, err);
    if (!status)
        status = j.plan.to_gguf ? write_gguf(&j, model, output, err) : write_folder(&j, model, output, err);
    ql_merge_buffers_free(&j.buffers);
    ql_merge_plan_free(&j.plan);
    return status;
}
