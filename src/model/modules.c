/* The linear layers of a block: names, shapes, sets of them. */
#include <string.h>

#include "base/error.h"
#include "model/model.h"

static const char *const module_names[QL_MODULES] = {
    [QL_Q] = "q_proj",       [QL_K] = "k_proj",   [QL_V] = "v_proj",       [QL_O] = "o_proj",
    [QL_GATE] = "gate_proj", [QL_UP] = "up_proj", [QL_DOWN] = "down_proj",
};

/* What joins several modules where they are fused, and the module that stands for it. */
static const struct {
    const char *name;
    ql_module module;
    unsigned parts;
} fused_names[] = {
    {"qkv_proj", QL_Q, 1u << QL_Q | 1u << QL_K | 1u << QL_V},
    {"gate_up_proj", QL_GATE, 1u << QL_GATE | 1u << QL_UP},
};
enum { FUSED = sizeof fused_names / sizeof *fused_names };

const char *ql_module_name(const ql_model_config *c, ql_module module)
{
    for (size_t i = 0; c->fused && i < FUSED; i++)
        if (fused_names[i].module == module)
            return fused_names[i].name;
    return module_names[module];
}

const char *ql_module_path(ql_module module)
{
    return module <= QL_O ? "self_attn" : "mlp";
}

bool ql_module_present(const ql_model_config *c, ql_module module)
{
    return !c->fused || (module != QL_K && module != QL_V && module != QL_UP);
}

size_t ql_module_inputs(const ql_model_config *c, ql_module module)
{
    return module == QL_O ? c->heads * c->head_dim : module == QL_DOWN ? c->intermediate_size : c->hidden_size;
}

size_t ql_module_outputs(const ql_model_config *c, ql_module module)
{
    if (!ql_module_present(c, module))
        return 0;
    switch (module) {
    case QL_Q:
        return (c->heads + (c->fused ? 2 * c->kv_heads : 0)) * c->head_dim;
    case QL_K:
    case QL_V:
        return c->kv_heads * c->head_dim;
    case QL_GATE:
    case QL_UP:
        return c->fused ? 2 * c->intermediate_size : c->intermediate_size;
    default:
        return c->hidden_size;
    }
}

size_t ql_ldq(const ql_model_config *c)
{
    return ql_module_outputs(c, QL_Q);
}

size_t ql_ldkv(const ql_model_config *c)
{
    return ql_module_outputs(c, c->fused ? QL_Q : QL_K);
}

size_t ql_ldgate(const ql_model_config *c)
{
    return ql_module_outputs(c, QL_GATE);
}

bool ql_module_has_bias(const ql_model_config *c, ql_module module)
{
    if (!ql_module_present(c, module))
        return false;
    return module <= QL_V ? c->qkv_bias : module == QL_O ? c->o_bias : c->mlp_bias;
}

ql_status ql_modules_parse(unsigned *out, const char *names, ql_error *err)
{
    *out = 0;
    if (strcmp(names, "all-linear") == 0) {
        *out = QL_ALL_LINEAR;
        return QL_OK;
    }
    for (const char *at = names; *at;) {
        size_t length = strcspn(at, ",");
        unsigned found = 0;
        for (int i = 0; i < QL_MODULES; i++)
            if (strlen(module_names[i]) == length && memcmp(at, module_names[i], length) == 0)
                found = 1u << i;
        for (size_t i = 0; i < FUSED; i++)
            if (strlen(fused_names[i].name) == length && memcmp(at, fused_names[i].name, length) == 0)
                found = fused_names[i].parts;
        if (!found)
            return ql_fail(err, QL_ERR_ARG,
                           "target module \"%.*s\" is not known: use all-linear, or names of "
                           "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj (qkv_proj,o_proj,gate_up_proj,down_proj for "
                           "phi3) joined by commas",
                           (int)length, at);
        *out |= found;
        at += length + (at[length] == ',');
    }
    return *out ? QL_OK : ql_fail(err, QL_ERR_ARG, "target modules: none are named; use all-linear for all of them");
}

ql_status ql_modules_check(const ql_model_config *c, unsigned modules, ql_error *err)
{
    for (size_t i = 0; c->fused && i < FUSED; i++)
        if (modules & fused_names[i].parts && ~modules & fused_names[i].parts)
            return ql_fail(err, QL_ERR_ARG, "LoRA target modules: %s has %s instead of the layers that it joins",
                           ql_arch_name(c->arch), fused_names[i].name);
    return QL_OK;
}
