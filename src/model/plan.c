/* A model of shapes only: what memory a real one would take, from the code that builds the real one. */
#include <stdlib.h>

#include "base/error.h"
#include "model/model.h"
#include "quant/weight.h"

/* As load.c does: format "none" and the embeddings stay in the mapped files. */
static ql_status plan_matrix(ql_model *model, ql_weight **out, ql_format format, const char *name, size_t n, size_t k,
                             ql_error *err)
{
    if (format.code != QL_CODE_F32)
        return ql_weight_plan(out, format, name, n, k, err);
    ql_status status = ql_weight_borrow(out, NULL, model->config.stored, n, k, err);
    if (!status)
        model->mapped_bytes += n * k * ql_dtype_size(model->config.stored);
    return status;
}

static ql_status plan_matrices(ql_model *model, ql_error *err)
{
    const ql_model_config *c = &model->config;
    const ql_format dense = {.code = QL_CODE_F32}, linear = model->format.code ? model->format : c->quantized;
    ql_status status = plan_matrix(model, &model->embed, dense, "embedding", c->vocab_size, c->hidden_size, err);
    if (!status && c->tied)
        model->head = model->embed;
    else if (!status)
        status = plan_matrix(model, &model->head, dense, "LM head", c->vocab_size, c->hidden_size, err);
    for (size_t i = 0; i < c->layers * QL_MODULES && !status; i++) {
        ql_module module = (ql_module)(i % QL_MODULES);
        if (!ql_module_present(c, module))
            continue;
        status = plan_matrix(model, &model->blocks[i / QL_MODULES].weight[module], linear, ql_module_name(c, module),
                             ql_module_outputs(c, module), ql_module_inputs(c, module), err);
    }
    return status;
}

ql_status ql_model_plan(ql_model **out, const ql_model_config *config, ql_format format, ql_error *err)
{
    *out = NULL;
    if (config->partly && format.code == QL_CODE_F32)
        return ql_fail(err, QL_ERR_UNSUPPORTED,
                       "config.json: llm_int8_skip_modules leaves some linear layers dense: only for models whose layers "
                       "are all quantized the configuration alone tells what they take");
    ql_model *model = calloc(1, sizeof *model);
    if (!model || !(model->blocks = calloc(config->layers, sizeof *model->blocks))) {
        free(model);
        return ql_fail(err, QL_ERR_MEMORY, "plan: out of memory");
    }
    model->config = *config;
    model->format = format;
    model->planned = true;
    ql_arena arena = {0};
    ql_model_list_dense(model, &arena);
    model->dense_bytes = arena.used;
    ql_status status = plan_matrices(model, err);
    if (status) {
        ql_model_destroy(model);
        return status;
    }
    ql_model_settle_format(model);
    ql_model_link(model, &(ql_lora_options){0}, NULL, NULL);
    *out = model;
    return QL_OK;
}
