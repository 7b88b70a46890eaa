/* A model's adapters from and to the files of PEFT. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/model.h"
#include "qlora/adapter.h"
#include "qlora/train.h"

enum { NAME_BYTES = 64 };

/* The linear layers of a model by name, [layers][QL_MODULES]. */
typedef struct layer_list {
    size_t count;
    ql_adapter_module *modules;
    char (*names)[NAME_BYTES];
} layer_list;

static void list_free(layer_list *list)
{
    free(list->modules);
    free(list->names);
}

static ql_status list_layers(layer_list *list, const ql_model_config *config, ql_error *err)
{
    list->count = config->layers * QL_MODULES;
    list->modules = calloc(list->count, sizeof *list->modules);
    list->names = calloc(list->count, sizeof *list->names);
    if (!list->modules || !list->names)
        return ql_fail(err, QL_ERR_MEMORY, "the names of %zu layers: out of memory", list->count);
    for (size_t i = 0; i < list->count; i++) {
        ql_module module = (ql_module)(i % QL_MODULES);
        snprintf(list->names[i], NAME_BYTES, "model.layers.%zu.%s.%s", i / QL_MODULES,
                 module <= QL_O ? "self_attn" : "mlp", ql_module_name(module));
        list->modules[i] =
            (ql_adapter_module){list->names[i], ql_module_inputs(config, module), ql_module_outputs(config, module)};
    }
    return QL_OK;
}

/* Fills in the largest rank and the modules that are adapted anywhere. */
static ql_lora_options options_of(const ql_adapter_config *config, const ql_adapter_shape *shapes, size_t count)
{
    ql_lora_options options = {.alpha = config->alpha, .use_rslora = config->use_rslora, .dropout = config->dropout};
    for (size_t i = 0; i < count; i++) {
        if (!shapes[i].rank)
            continue;
        options.modules |= 1u << i % QL_MODULES;
        options.rank = shapes[i].rank > options.rank ? shapes[i].rank : options.rank;
    }
    return options;
}

static ql_status load(ql_model *model, const ql_adapter_file *file, const layer_list *list, ql_adapter_shape *shapes,
                      bool trainable, ql_error *err)
{
    ql_status status = ql_adapter_file_plan(file, list->modules, list->count, shapes, err);
    if (status)
        return status;
    ql_adapter_config config = ql_adapter_file_config(file);
    ql_lora_options options = options_of(&config, shapes, list->count);
    ql_adapters *adapters;
    status = ql_model_make_adapters(&adapters, model, shapes, trainable, err);
    if (status)
        return status;
    status = ql_adapter_file_read(file, list->modules, list->count, adapters, err);
    if (status)
        ql_adapters_destroy(adapters);
    else
        ql_model_link(model, &options, shapes, adapters);
    return status;
}

ql_status ql_adapter_load(ql_model *model, const char *dir, bool trainable, ql_error *err)
{
    layer_list list = {0};
    ql_adapter_file *file = NULL;
    ql_adapter_shape *shapes = NULL;
    ql_status status = list_layers(&list, &model->config, err);
    if (!status)
        status = ql_adapter_file_open(&file, dir, err);
    if (!status && !(shapes = calloc(list.count, sizeof *shapes)))
        status = ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", dir);
    if (!status && (status = load(model, file, &list, shapes, trainable, err)))
        ql_fail_in(err, status, "%s", dir);
    free(shapes);
    ql_adapter_file_close(file);
    list_free(&list);
    return status;
}

/* The names for target_modules: "q_proj" when every block has it, whole names when blocks differ. */
static size_t list_targets(const ql_model *model, const char *const *names, size_t count, const char **targets)
{
    size_t used = 0;
    for (int module = 0; module < QL_MODULES; module++)
        if (model->lora.modules >> module & 1)
            targets[used++] = ql_module_name((ql_module)module);
    if (count == used * model->config.layers)
        return used;
    memcpy(targets, names, count * sizeof *targets);
    return count;
}

ql_status ql_adapter_save(const ql_model *model, const char *dir, const char *base_name, ql_error *err)
{
    if (!model->adapters)
        return ql_fail(err, QL_ERR_ARG, "%s: the model has no adapter to save", dir);
    const ql_lora_options *lora = &model->lora;
    ql_adapter_config config = {.rank = lora->rank, .alpha = lora->alpha, .use_rslora = lora->use_rslora,
                                .dropout = lora->dropout, .base_model = base_name};
    layer_list list = {0};
    ql_status status = list_layers(&list, &model->config, err);
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
        config.targets = list_targets(model, names, count, targets);
        status = ql_adapter_file_write(dir, &config, model->adapters, names, err);
    }
    free(names);
    list_free(&list);
    return status;
}
