/* A model's adapters from and to the files of PEFT. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/model.h"
#include "qlora/adapter.h"
#include "qlora/train.h"
#include "train/layer_list.h"

/* Fills in the largest rank and the modules that are adapted anywhere. */
static ql_lora_options options_of(const ql_adapter_config *config, const ql_adapter_shape *shapes, size_t count)
{
    ql_lora_options options = {.alpha = config->alpha, .use_rslora = config->use_rslora, .dropout = config->dropout,
                               .use_dora = config->use_dora};
    for (size_t i = 0; i < count; i++) {
        if (!shapes[i].rank)
            continue;
        options.modules |= 1u << i % QL_MODULES;
        options.rank = shapes[i].rank > options.rank ? shapes[i].rank : options.rank;
    }
    return options;
}

static ql_status load(ql_model *model, const ql_adapter_file *file, const ql_layer_list *list, ql_adapter_shape *shapes,
                      bool trainable, ql_error *err)
{
    ql_status status = ql_adapter_file_plan(file, list->modules, list->count, shapes, err);
    if (status)
        return status;
    ql_adapter_config config = ql_adapter_file_config(file);
    if (trainable && config.use_dora && config.dropout > 0)
        return ql_fail(err, QL_ERR_UNSUPPORTED,
                       "adapter_config.json: use_dora with lora_dropout %g: set that to 0 to go on "
                       "training here",
                       config.dropout);
    ql_lora_options options = options_of(&config, shapes, list->count);
    ql_adapters *adapters;
    status = ql_model_make_adapters(&adapters, model, shapes, trainable, err);
    if (status)
        return status;
    if (!model->planned)
        status = ql_adapter_file_read(file, list->modules, list->count, adapters, err);
    if (status)
        ql_adapters_destroy(adapters);
    else
        ql_model_link(model, &options, shapes, adapters);
    return status || !config.use_dora || model->planned ? status : ql_model_start_dora(model, false, NULL, err);
}

ql_status ql_adapter_load(ql_model *model, const char *dir, bool trainable, ql_error *err)
{
    ql_layer_list list = {0};
    ql_adapter_file *file = NULL;
    ql_adapter_shape *shapes = NULL;
    ql_status status = ql_layer_list_make(&list, &model->config, err);
    if (!status)
        status = ql_adapter_file_open(&file, dir, err);
    if (!status && !(shapes = calloc(list.count, sizeof *shapes)))
        status = ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", dir);
    if (!status && (status = load(model, file, &list, shapes, trainable, err)))
        ql_fail_in(err, status, "%s", dir);
    free(shapes);
    ql_adapter_file_close(file);
    ql_layer_list_free(&list);
    return status;
}

/* Adapters that began with more than B = 0, over a base without that: of twice the rank, B A - B0 A0. */
static ql_status against_original(ql_adapters **out, const ql_model *model, ql_error *err)
{
    const ql_adapters *set = model->adapters;
    ql_adapter_shape *shapes = calloc(set->layers, sizeof *shapes);
    if (!shapes)
        return ql_fail(err, QL_ERR_MEMORY, "adapters: out of memory");
    for (size_t i = 0; i < set->layers; i++)
        shapes[i] =
            (ql_adapter_shape){set->layer[i].k, set->layer[i].n, 2 * set->layer[i].r, set->layer[i].scaling, false};
    ql_status status = ql_adapters_create(out, shapes, set->layers, false, err);
    for (size_t i = 0; i < set->layers && !status; i++) {
        const ql_adapter *from = &set->layer[i], *to = &(*out)->layer[i];
        const uint16_t *a0 = model->start + from->offset, *b0 = a0 + from->r * from->k;
        memcpy(to->a, from->a, from->r * from->k * sizeof *to->a);
        memcpy(to->a + from->r * from->k, a0, from->r * from->k * sizeof *to->a);
        for (size_t j = 0; j < from->n * from->r; j++) {
            uint16_t *pair = to->b + j / from->r * to->r + j % from->r;
            pair[0] = from->b[j];
            pair[from->r] = b0[j] ^ 0x8000; /* the sign of an FP16 number */
        }
    }
    free(shapes);
    return status;
}

static ql_status save_against_original(const ql_model *model, const char *dir, ql_adapter_config *config,
                                       const char *const *names, ql_error *err)
{
    ql_adapters *set;
    ql_status status = against_original(&set, model, err);
    config->rank *= 2;
    config->alpha *= config->use_rslora ? sqrt(2) : 2; /* the scaling stays */
    if (!status)
        status = ql_adapter_file_write(dir, config, set, names, err);
    ql_adapters_destroy(set);
    return status;
}

ql_status ql_adapter_save(const ql_model *model, const char *dir, const char *base_name, ql_error *err)
{
    if (!model->adapters)
        return ql_fail(err, QL_ERR_ARG, "%s: the model has no adapter to save", dir);
    const ql_lora_options *lora = &model->lora;
    ql_adapter_config config = {.rank = lora->rank, .alpha = lora->alpha, .use_rslora = lora->use_rslora,
                                .use_dora = lora->use_dora, .dropout = lora->dropout, .base_model = base_name};
    ql_layer_list list = {0};
    ql_status status = ql_layer_list_make(&list, &model->config, err);
    const char **names = status ? NULL : calloc(2 * list.count, sizeof *names);
    if (!status && !names)
        status = ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", dir);
    if (!status) {
        const char **targets = names + list.count;
        size_t count = 0;
        for (size_t i = 0; i < list.count; i++)
            if (model->blocks[i / QL_MODULES].linear[i % QL_MODULES].adapter)
                names[count++] = list.names[i];
        config.target_modules = targets;
        config.targets = ql_layer_targets(&model->config, lora->modules, names, count, targets);
        ql_adapters used = *model->adapters;
        used.master = NULL; /* the FP16 values are what the losses were of */
        status = model->start ? save_against_original(model, dir, &config, names, err)
                              : ql_adapter_file_write(dir, &config, &used, names, err);
    }
    free(names);
    ql_layer_list_free(&list);
    return status;
}
