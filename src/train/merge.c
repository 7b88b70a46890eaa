/* W + s B A, tensor by tensor from the mapped files of a model into a new one. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/half.h"
#include "base/workers.h"
#include "io/gguf.h"
#include "io/path.h"
#include "io/tensor_write.h"
#include "qlora/convert.h"
#include "train/layer_list.h"
#include "train/merge_files.h"

enum { ROWS = 64 }; /* computed at a time */

typedef struct job {
    ql_merge_options options;
    ql_merge_report *report;
    ql_workers *workers;
    ql_tensors *source;
    ql_layer_adapters adapters;
    ql_tensor *tensors; /* as written: name, type and shape */
    size_t *place;      /* of each in adapters.list; NO_PLACE: no linear layer of a block */
    float *row;         /* [ROWS][longest row] in fp32 */
    unsigned char *rounded; /* the same in the type written */
} job;

#define NO_PLACE SIZE_MAX

/* The tensor at hand as a matrix, and rows of it at a time. */
typedef struct matrix {
    const job *job;
    const ql_tensor *source, *out;
    const ql_weight *weight;   /* NULL: rows come from the source */
    const ql_adapter *adapter; /* NULL: none */
    size_t n, k, first;        /* first row at hand */
    double error[ROWS];        /* the largest of each row */
    size_t bad[ROWS];          /* the first column that is not finite as rounded, k: none */
} matrix;

ql_merge_options ql_merge_options_defaults(void)
{
    return (ql_merge_options){.as_stored = true, .format = ql_format_default()};
}

static bool is_floating(const ql_tensor *tensor)
{
    return tensor->dtype == QL_F32 || tensor->dtype == QL_F16 || tensor->dtype == QL_BF16 || tensor->dtype == QL_F64;
}

/* ---- a row ---- */

/* Writes x as `type` and returns what was written. */
static double round_to(ql_dtype type, float x, unsigned char *out)
{
    uint16_t half;
    double wide = x;
    switch (type) {
    case QL_F32:
        memcpy(out, &x, sizeof x);
        return x;
    case QL_F64:
        memcpy(out, &wide, sizeof wide);
        return wide;
    case QL_F16:
        half = ql_f32_to_f16(x);
        memcpy(out, &half, sizeof half);
        return ql_f16_to_f32(half);
    default:
        half = ql_f32_to_bf16(x);
        memcpy(out, &half, sizeof half);
        return ql_bf16_to_f32(half);
    }
}

static void make_row(void *ctx, size_t index, size_t worker)
{
    (void)worker;
    matrix *m = ctx;
    size_t row = m->first + index, width = ql_dtype_size(m->out->dtype);
    float *x = m->job->row + index * m->k;
    unsigned char *out = m->job->rounded + index * m->k * width;
    if (m->weight)
        ql_weight_dequantize(m->weight, row, 1, x, m->k);
    else
        ql_tensor_read_f32(m->source, row * m->k, m->k, x, NULL); /* floating and inside: cannot fail */
    if (m->adapter)
        ql_adapter_add_rows(m->adapter, row, 1, x, m->k);
    m->error[index] = 0;
    m->bad[index] = m->k;
    for (size_t j = m->k; j-- > 0;) {
        double rounded = round_to(m->out->dtype, x[j], out + j * width), error = fabs(rounded - (double)x[j]);
        if (!isfinite(rounded))
            m->bad[index] = j;
        else if (error > m->error[index])
            m->error[index] = error;
    }
}

/* ---- a tensor ---- */

static ql_status note_rows(matrix *m, size_t rows, ql_error *err)
{
    ql_merge_report *report = m->job->report;
    for (size_t i = 0; i < rows; i++) {
        if (m->bad[i] < m->k)
            return ql_fail(err, QL_ERR_VALUE, "%s: tensor %s, row %zu, column %zu: %g is no finite %s number",
                           m->source->file, m->out->name, m->first + i, m->bad[i],
                           (double)m->job->row[i * m->k + m->bad[i]], ql_dtype_name(m->out->dtype));
        if (m->error[i] > report->max_error) {
            report->max_error = m->error[i];
            snprintf(report->max_error_at, sizeof report->max_error_at, "%s", m->out->name);
        }
    }
    return QL_OK;
}

static ql_status write_matrix(matrix *m, ql_output *output, ql_error *err)
{
    size_t rows;
    for (m->first = 0; m->first < m->n && !output->error; m->first += rows) {
        rows = m->n - m->first < ROWS ? m->n - m->first : ROWS;
        ql_parallel(m->job->workers, rows, make_row, m);
        ql_status status = note_rows(m, rows, err);
        if (status)
            return status;
        ql_output_write(output, m->job->rounded, rows * m->k * ql_dtype_size(m->out->dtype));
    }
    return QL_OK;
}

static ql_status emit(void *ctx, const ql_tensor *out, ql_output *output, ql_error *err)
{
    const job *j = ctx;
    size_t index = (size_t)(out - j->tensors);
    const ql_tensor *source = ql_tensors_at(j->source, index);
    bool linear = j->place[index] != NO_PLACE, quantized = linear && j->options.quantized;
    size_t k = source->ndim ? source->shape[source->ndim - 1] : 1;
    matrix m = {.job = j, .source = source, .out = out, .k = k, .n = k ? ql_tensor_elements(source) / k : 0,
                .adapter = linear ? j->adapters.layers[j->place[index]] : NULL};
    ql_weight *weight = NULL;
    ql_status status = QL_OK;
    ql_tensors_fetch(j->source, source);
    if (quantized)
        status = ql_weight_quantize(&weight, j->options.format, source->name, source->data, source->dtype, k, m.n, k,
                                    j->workers, err);
    m.weight = weight;
    if (!status && (quantized || m.adapter || out->dtype != source->dtype))
        status = write_matrix(&m, output, err);
    else if (!status)
        ql_output_write(output, source->data, source->bytes);
    ql_weight_destroy(weight);
    ql_tensors_release(j->source, source);
    j->report->tensors++;
    j->report->merged += m.adapter != NULL;
    j->report->bytes += ql_tensor_elements(out) * ql_dtype_size(out->dtype);
    return status;
}

/* ---- the model ---- */

/* Where each linear layer is among the tensors; all that are merged or quantized must be there. */
static ql_status find_layers(job *j, ql_error *err)
{
    size_t count = ql_tensors_count(j->source);
    for (size_t t = 0; t < count; t++)
        j->place[t] = NO_PLACE;
    for (size_t i = 0; i < j->adapters.list.count; i++) {
        const ql_adapter_module *module = &j->adapters.list.modules[i];
        char name[QL_LAYER_NAME + 8];
        const ql_tensor *found;
        snprintf(name, sizeof name, "%s.weight", module->name);
        ql_status status = ql_tensors_need(&found, j->source, name, 2,
                                           (const size_t[]){module->out_features, module->in_features}, err);
        if (!status && !is_floating(found))
            status = ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %s is %s: weights must be floating-point numbers",
                             found->file, name, found->dtype_name);
        if (status)
            return status;
        for (size_t t = 0; t < count; t++)
            if (ql_tensors_at(j->source, t) == found)
                j->place[t] = i;
    }
    return QL_OK;
}

static ql_status plan(job *j, ql_error *err)
{
    size_t count = ql_tensors_count(j->source), longest = 1;
    j->tensors = calloc(count + 1, sizeof *j->tensors);
    j->place = calloc(count + 1, sizeof *j->place);
    if (!j->tensors || !j->place)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", ql_tensors_path(j->source));
    for (size_t t = 0; t < count; t++) {
        const ql_tensor *source = ql_tensors_at(j->source, t);
        size_t k = source->ndim ? source->shape[source->ndim - 1] : 1;
        if (source->foreign)
            return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %.200s has the type %.40s, which is not supported",
                           source->file, source->name, source->dtype_name);
        j->tensors[t] = *source;
        if (is_floating(source) && !j->options.as_stored)
            j->tensors[t].dtype = j->options.dtype;
        longest = k > longest ? k : longest;
    }
    j->row = calloc(longest, ROWS * sizeof *j->row);
    j->rounded = calloc(longest, ROWS * sizeof(double));
    if (!j->row || !j->rounded)
        return ql_fail(err, QL_ERR_MEMORY, "%s: rows of %zu: out of memory", ql_tensors_path(j->source), longest);
    return find_layers(j, err);
}

static ql_status write_folder(job *j, const char *model, const char *output, ql_error *err)
{
    const ql_metadata metadata = {"format", "pt"};
    char *path = ql_path_join(output, "model.safetensors");
    ql_status status = path ? ql_path_make_folder(output, err) : ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", output);
    if (!status)
        status = ql_safetensors_stream(path, j->tensors, ql_tensors_count(j->source), &metadata, 1, emit, j, err);
    if (!status)
        status = ql_merge_copy_files(model, output, err);
    if (!status)
        status = ql_merge_write_config(model, output, j->options.as_stored ? NULL : &j->options.dtype, err);
    free(path);
    return status;
}

static ql_status check_options(const ql_merge_options *o, const char *model, ql_error *err)
{
    if (ql_path_is_gguf(model))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: a GGUF file; merging needs the Hugging Face folder that it was made "
                       "from", model);
    if (!o->as_stored && o->dtype != QL_F32 && o->dtype != QL_F16 && o->dtype != QL_BF16)
        return ql_fail(err, QL_ERR_ARG, "a model is merged to F32, F16 or BF16, not to %s", ql_dtype_name(o->dtype));
    return QL_OK;
}

ql_status ql_merge(ql_merge_report *report, const char *model, const char *adapter, const char *output,
                   const ql_merge_options *options, ql_workers *workers, ql_error *err)
{
    *report = (ql_merge_report){0};
    ql_model_config config;
    job j = {.options = *options, .report = report, .workers = workers};
    ql_status status = check_options(options, model, err);
    if (!status)
        status = ql_merge_check_folders(model, output, err);
    if (!status)
        status = ql_merge_check_config(model, err);
    if (!status)
        status = ql_model_config_read(&config, model, err);
    if (!status && (status = ql_layer_adapters_read(&j.adapters, adapter, &config, err)))
        ql_fail_in(err, status, "%s", adapter);
    if (!status)
        status = ql_tensors_open(&j.source, model, err);
    if (!status)
        status = plan(&j, err);
    if (!status)
        status = write_folder(&j, model, output, err);
    free(j.tensors);
    free(j.place);
    free(j.row);
    free(j.rounded);
    ql_layer_adapters_free(&j.adapters);
    ql_tensors_close(j.source);
    return status;
}
