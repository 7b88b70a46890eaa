/* The tensors of a PEFT adapter, read and written beside its config. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/half.h"
#include "io/path.h"
#include "io/tensor_write.h"
#include "qlora/io.h"
#include "train/adapter_config.h"

#define CONFIG "adapter_config.json"
#define WEIGHTS "adapter_model.safetensors"
#define STAMP_KEY "qlora_adapter" /* metadata: the numbers of the config that belongs to the tensors */

struct ql_adapter_file {
    char *config_path, *weights_path;
    ql_peft_config config;
    ql_tensors *tensors;
};

/* The tensors of a module: A, B, and with DoRA m. */
enum { SIDE_A, SIDE_B, SIDE_M, SIDES };
static const char *const parts[SIDES] = {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"};

typedef char stamp_text[96];
typedef char tensor_name[512];

static const char *stamp(stamp_text text, const ql_adapter_config *c)
{
    snprintf(text, sizeof(stamp_text), "r %zu, alpha %.17g, %s%s", c->rank, c->alpha, c->use_rslora ? "rslora" : "lora",
             c->use_dora ? ", dora" : "");
    return text;
}

static ql_status name_of(tensor_name out, const char *module, const char *part, ql_error *err)
{
    int length = snprintf(out, sizeof(tensor_name), "base_model.model.%s.%s", module, part);
    if (length < 0 || (size_t)length >= sizeof(tensor_name))
        return ql_fail(err, QL_ERR_ARG, "module \"%.60s...\": the name is too long", module);
    return QL_OK;
}

/* ---- reading ---- */

static ql_status check_stamp(const ql_adapter_file *file, ql_error *err)
{
    stamp_text text;
    const char *saved = ql_tensors_metadata(file->tensors, STAMP_KEY);
    if (!saved || strcmp(saved, stamp(text, &file->config.common)) == 0)
        return QL_OK;
    return ql_fail(err, QL_ERR_FORMAT, "%s: the tensors were saved with \"%.90s\", but %s says \"%s\": the two files "
                   "are not of one save", file->weights_path, saved, CONFIG, text);
}

static ql_status open_parts(ql_adapter_file *file, const char *dir, ql_error *err)
{
    file->config_path = ql_path_join(dir, CONFIG);
    file->weights_path = ql_path_join(dir, WEIGHTS);
    if (!file->config_path || !file->weights_path)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", dir);
    ql_status status = ql_peft_config_read(&file->config, file->config_path, err);
    if (!status)
        status = ql_tensors_open(&file->tensors, file->weights_path, err);
    return status ? status : check_stamp(file, err);
}

ql_status ql_adapter_file_open(ql_adapter_file **out, const char *dir, ql_error *err)
{
    *out = NULL;
    ql_adapter_file *file = calloc(1, sizeof *file);
    if (!file)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", dir);
    ql_status status = open_parts(file, dir, err);
    if (status) {
        ql_adapter_file_close(file);
        return status;
    }
    *out = file;
    return QL_OK;
}

ql_adapter_config ql_adapter_file_config(const ql_adapter_file *file)
{
    return file->config.common;
}

void ql_adapter_file_close(ql_adapter_file *file)
{
    if (!file)
        return;
    ql_tensors_close(file->tensors);
    ql_peft_config_free(&file->config);
    free(file->config_path);
    free(file->weights_path);
    free(file);
}

static int sides_of(const ql_adapter_file *file)
{
    return file->config.common.use_dora ? SIDES : SIDE_M;
}

/* Tensor `side` of a module for an adapter of this shape. */
static ql_status find(const ql_adapter_file *file, const char *module, int side, const ql_adapter_shape *s,
                      const ql_tensor **out, ql_error *err)
{
    const size_t shapes[SIDES][2] = {{s->rank, s->in_features}, {s->out_features, s->rank}, {s->out_features}};
    tensor_name name;
    ql_status status = name_of(name, module, parts[side], err);
    return status ? status : ql_tensors_need(out, file->tensors, name, side == SIDE_M ? 1 : 2, shapes[side], err);
}

/* A tensor that no targeted module asked for: why is it there? */
static ql_status explain_rest(const ql_adapter_file *file, const ql_adapter_module *modules, size_t count,
                              const ql_adapter_shape *shapes, ql_error *err)
{
    for (size_t t = 0; t < ql_tensors_count(file->tensors); t++) {
        const char *name = ql_tensors_at(file->tensors, t)->name;
        bool asked = false;
        for (size_t i = 0; i < count * SIDES && !asked; i++) {
            tensor_name own;
            int side = (int)(i % SIDES);
            if (shapes[i / SIDES].rank && side < sides_of(file) &&
                !name_of(own, modules[i / SIDES].name, parts[side], NULL))
                asked = strcmp(name, own) == 0;
        }
        if (!asked)
            return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: tensor %.200s belongs to no module that %s targets in this "
                           "model", file->weights_path, name, CONFIG);
    }
    return QL_OK;
}

ql_status ql_adapter_file_plan(const ql_adapter_file *file, const ql_adapter_module *modules, size_t count,
                               ql_adapter_shape *shapes, ql_error *err)
{
    ql_status status = ql_peft_targets_exist(&file->config, modules, count, err);
    size_t adapted = 0;
    for (size_t i = 0; i < count && !status; i++) {
        const ql_adapter_module *m = &modules[i];
        const ql_tensor *tensor;
        ql_peft_target target;
        status = ql_peft_target_of(&file->config, m->name, &target, err);
        shapes[i] = (ql_adapter_shape){m->in_features, m->out_features, target.rank, target.scaling,
                                       file->config.common.use_dora};
        if (status || !target.adapted)
            continue;
        for (int side = 0; side < sides_of(file) && !status; side++)
            status = find(file, m->name, side, &shapes[i], &tensor, err);
        adapted++;
    }
    if (status)
        return status;
    if (!adapted)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: target_modules matches no linear layer of this model",
                       file->config_path);
    /* As many tensors as were asked for and found: none is left over. */
    return ql_tensors_count(file->tensors) == (size_t)sides_of(file) * adapted ? QL_OK : explain_rest(file, modules, count, shapes, err);
}

/* Into parameters [first, ...) of the set, and into exact[] as they are unless that is NULL. */
static ql_status read_into(ql_adapters *set, size_t first, const ql_tensor *tensor, float *exact, ql_error *err)
{
    float part[1024];
    size_t count = ql_tensor_elements(tensor), width = tensor->shape[tensor->ndim - 1], many;
    for (size_t at = 0; at < count; at += many) {
        many = count - at < 1024 ? count - at : 1024;
        ql_status status = ql_tensor_read_f32(tensor, at, many, part, err);
        if (status)
            return status;
        for (size_t i = 0; i < many; i++)
            if (!isfinite(ql_f16_to_f32(ql_f32_to_f16(part[i]))))
                return ql_fail(err, QL_ERR_VALUE, "%s: tensor %s, row %zu, column %zu is %g, which is no finite FP16 "
                               "number", tensor->file, tensor->name, (at + i) / width, (at + i) % width, part[i]);
        ql_adapters_set(set, first + at, many, part);
        if (exact)
            memcpy(exact + at, part, many * sizeof *part);
    }
    return QL_OK;
}

static ql_status read_module(const ql_adapter_file *file, const char *module, ql_adapters *set, const ql_adapter *a,
                             ql_error *err)
{
    const ql_adapter_shape shape = {a->k, a->n, a->r, a->scaling, a->dora};
    const size_t first[SIDES] = {a->offset, a->offset + a->r * a->k, a->offset + a->r * (a->k + a->n)};
    ql_status status = QL_OK;
    for (int side = 0; side < sides_of(file) && !status; side++) {
        const ql_tensor *tensor;
        status = find(file, module, side, &shape, &tensor, err);
        if (!status)
            status = read_into(set, first[side], tensor, side == SIDE_M ? a->magnitude : NULL, err);
    }
    return status;
}

ql_status ql_adapter_file_read(const ql_adapter_file *file, const ql_adapter_module *modules, size_t count,
                               ql_adapters *set, ql_error *err)
{
    size_t layer = 0;
    for (size_t i = 0; i < count; i++) {
        ql_peft_target target;
        ql_status status = ql_peft_target_of(&file->config, modules[i].name, &target, err);
        if (status)
            return status;
        if (!target.adapted)
            continue;
        if (layer == set->layers || set->layer[layer].dora != file->config.common.use_dora)
            return ql_fail(err, QL_ERR_ARG, "%s: the set of adapters lacks %s, or is none of its kind", file->config_path,
                           modules[i].name);
        status = read_module(file, modules[i].name, set, &set->layer[layer++], err);
        if (status)
            return status;
    }
    if (layer != set->layers)
        return ql_fail(err, QL_ERR_ARG, "%s: %zu adapted modules for a set of %zu adapters", file->config_path, layer,
                       set->layers);
    return QL_OK;
}

/* ---- writing ---- */

/* Parameter `at` of the set: of the masters, or of the fp16 values where there are none. */
static float parameter(const ql_adapters *set, size_t at)
{
    return set->master ? set->master[at] : ql_f16_to_f32(set->value[at]);
}

/* The data of a tensor: magnitudes as they are, others a piece at a time, so that no copy of the adapter is made. */
static ql_status emit(void *ctx, const ql_tensor *tensor, ql_output *output, ql_error *err)
{
    const ql_adapters *set = ctx;
    (void)err;
    size_t count = ql_tensor_elements(tensor);
    if (tensor->ndim == 1) {
        ql_output_write(output, tensor->data, count * sizeof(float));
        return QL_OK;
    }
    size_t first = set->master ? (size_t)((const float *)tensor->data - set->master)
                               : (size_t)((const uint16_t *)tensor->data - set->value);
    for (size_t done = 0, piece; done < count; done += piece) {
        float values[1024];
        piece = count - done < 1024 ? count - done : 1024;
        for (size_t i = 0; i < piece; i++)
            values[i] = parameter(set, first + done + i);
        ql_output_write(output, values, piece * sizeof *values);
    }
    return QL_OK;
}

static const void *place(const ql_adapters *set, size_t at)
{
    return set->master ? (const void *)(set->master + at) : (const void *)(set->value + at);
}

static ql_status describe(ql_tensor *tensors, tensor_name *names, const ql_adapters *set, size_t layer, const char *module,
                          ql_error *err)
{
    const ql_adapter *a = &set->layer[layer];
    for (size_t i = a->offset; i < a->offset + a->count; i++)
        if (!isfinite(parameter(set, i)))
            return ql_fail(err, QL_ERR_VALUE, "adapter of %s: it holds %g; nothing is saved", module,
                           (double)parameter(set, i));
    tensors[0] = (ql_tensor){.name = names[0], .dtype = QL_F32, .ndim = 2, .shape = {a->r, a->k},
                             .data = place(set, a->offset)};
    tensors[1] = (ql_tensor){.name = names[1], .dtype = QL_F32, .ndim = 2, .shape = {a->n, a->r},
                             .data = place(set, a->offset + a->r * a->k)};
    tensors[2] = (ql_tensor){.name = names[2], .dtype = QL_F32, .ndim = 1, .shape = {a->n}, .data = a->magnitude};
    ql_status status = QL_OK;
    for (int side = 0; side < SIDES && !status; side++)
        status = name_of(names[side], module, parts[side], err);
    return status;
}

static ql_status write_weights(const char *path, const ql_adapter_config *config, const ql_adapters *set,
                               const char *const *modules, ql_error *err)
{
    stamp_text text;
    const ql_metadata metadata[] = {{"format", "pt"}, {STAMP_KEY, stamp(text, config)}};
    size_t sides = config->use_dora ? SIDES : SIDE_M;
    ql_tensor *tensors = calloc(SIDES * (set->layers + 1), sizeof *tensors); /* room for all of the last one's */
    tensor_name *names = calloc(SIDES * (set->layers + 1), sizeof *names);
    ql_status status = QL_OK;
    if (!tensors || !names)
        status = ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    for (size_t i = 0; i < set->layers && !status; i++)
        status = describe(tensors + sides * i, names + sides * i, set, i, modules[i], err);
    if (!status)
        status = ql_safetensors_stream(path, tensors, sides * set->layers, metadata, 2, emit, (void *)(uintptr_t)set, err);
    free(names);
    free(tensors);
    return status;
}

ql_status ql_adapter_file_write(const char *dir, const ql_adapter_config *config, const ql_adapters *set,
                                const char *const *names, ql_error *err)
{
    char *config_path = ql_path_join(dir, CONFIG), *weights_path = ql_path_join(dir, WEIGHTS);
    ql_status status = config_path && weights_path ? ql_path_make_folder(dir, err)
                                                   : ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", dir);
    if (!status)
        status = write_weights(weights_path, config, set, names, err);
    if (!status)
        status = ql_peft_config_write(config_path, config, set, names, err);
    free(weights_path);
    free(config_path);
    return status;
}
