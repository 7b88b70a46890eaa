#include "train/layer_list.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

void ql_layer_list_free(ql_layer_list *list)
{
    free(list->modules);
    free(list->names);
    *list = (ql_layer_list){0};
}

ql_status ql_layer_list_make(ql_layer_list *list, const ql_model_config *config, ql_error *err)
{
    list->count = config->layers * QL_MODULES;
    list->modules = calloc(list->count, sizeof *list->modules);
    list->names = calloc(list->count, sizeof *list->names);
    if (!list->modules || !list->names)
        return ql_fail(err, QL_ERR_MEMORY, "the names of %zu layers: out of memory", list->count);
    for (size_t i = 0; i < list->count; i++) {
        ql_module module = (ql_module)(i % QL_MODULES);
        if (ql_module_present(config, module)) /* the others have no name and no size */
            snprintf(list->names[i], QL_LAYER_NAME, "model.layers.%zu.%s.%s", i / QL_MODULES, ql_module_path(module),
                     ql_module_name(config, module));
        list->modules[i] =
            (ql_adapter_module){list->names[i], ql_module_inputs(config, module), ql_module_outputs(config, module)};
    }
    return QL_OK;
}

size_t ql_layer_targets(const ql_model_config *config, unsigned modules, const char *const *names, size_t count,
                        const char **targets)
{
    size_t used = 0;
    for (int module = 0; module < QL_MODULES; module++)
        if (modules >> module & 1 && ql_module_present(config, (ql_module)module))
            targets[used++] = ql_module_name(config, (ql_module)module);
    if (count == used * config->layers)
        return used;
    memcpy(targets, names, count * sizeof *targets);
    return count;
}

/* The set for the shapes that have a rank. */
static ql_status make_set(ql_layer_adapters *a, ql_error *err)
{
    size_t used = 0;
    ql_adapter_shape *present = calloc(a->list.count, sizeof *present);
    if (!present)
        return ql_fail(err, QL_ERR_MEMORY, "adapters: out of memory");
    for (size_t i = 0; i < a->list.count; i++)
        if (a->shapes[i].rank)
            present[used++] = a->shapes[i];
    ql_status status = ql_adapters_create(&a->set, present, used, true, err);
    free(present);
    for (size_t i = 0, next = 0; i < a->list.count && !status; i++)
        if (a->shapes[i].rank)
            a->layers[i] = &a->set->layer[next++];
    return status;
}

ql_status ql_layer_adapters_read(ql_layer_adapters *out, const char *dir, const ql_model_config *config, ql_error *err)
{
    *out = (ql_layer_adapters){0};
    ql_status status = ql_layer_list_make(&out->list, config, err);
    if (!status)
        status = ql_adapter_file_open(&out->file, dir, err);
    if (status)
        return status;
    out->config = ql_adapter_file_config(out->file);
    out->shapes = calloc(out->list.count, sizeof *out->shapes);
    out->layers = calloc(out->list.count, sizeof *out->layers);
    if (!out->shapes || !out->layers)
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", dir);
    status = ql_adapter_file_plan(out->file, out->list.modules, out->list.count, out->shapes, err);
    if (!status)
        status = make_set(out, err);
    if (!status)
        status = ql_adapter_file_read(out->file, out->list.modules, out->list.count, out->set, err);
    return status;
}

void ql_layer_adapters_free(ql_layer_adapters *adapters)
{
    ql_adapters_destroy(adapters->set);
    ql_adapter_file_close(adapters->file);
    ql_layer_list_free(&adapters->list);
    free(adapters->shapes);
    free(adapters->layers);
    *adapters = (ql_layer_adapters){0};
}
