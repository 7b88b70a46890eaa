/* config.json of a Hugging Face model: what is understood, and everything else refused by name. GGUF files have
 * config_gguf.c. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/gguf.h"
#include "io/path.h"
#include "model/config.h"

static ql_status read_arch(ql_model_config *c, const ql_json_at *root, ql_error *err)
{
    const char *type = NULL;
    ql_status status = ql_json_get_string(root, "model_type", QL_REQUIRED, &type, NULL, err);
    if (status)
        return status;
    const ql_arch_traits *traits;
    for (int i = 0; (traits = ql_arch_traits_of((ql_arch)i)); i++) {
        if (strcmp(type, traits->name) != 0)
            continue;
        c->arch = (ql_arch)i;
        c->qkv_bias = traits->qkv_bias;
        c->qk_norm = traits->qk_norm;
        c->fused = traits->fused;
        c->gelu = traits->gelu;
        c->out_norms = traits->out_norms;
        c->offset_norms = traits->offset_norms;
        c->scaled_embedding = traits->scaled_embedding;
        c->tied = traits->tied;
        c->head_dim = traits->head_dim;
        c->rms_norm_eps = traits->eps;
        return QL_OK;
    }
    char names[QL_ARCH_NAMES_BYTES];
    return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: model_type \"%.60s\" is not supported; %s are", root->file, type,
                   ql_arch_names(names, false));
}

ql_status ql_model_config_heads(ql_model_config *c, const char *file, ql_error *err)
{
    if (!c->kv_heads)
        c->kv_heads = c->heads;
    if (!c->head_dim && c->hidden_size % c->heads == 0)
        c->head_dim = c->hidden_size / c->heads;
    if (!c->head_dim || c->head_dim % 2 || c->head_dim > 256)
        return ql_fail(err, QL_ERR_UNSUPPORTED,
                       "%s: heads of %zu elements (hidden size %zu, %zu heads): must be even, 2 to 256",
                       file, c->head_dim, c->hidden_size, c->heads);
    if (c->heads % c->kv_heads)
        return ql_fail(err, QL_ERR_FORMAT, "%s: %zu heads (num_attention_heads) are not a multiple of num_key_value_heads %zu",
                       file, c->heads, c->kv_heads);
    return QL_OK;
}

static ql_status read_sizes(ql_model_config *c, const ql_json_at *root, ql_error *err)
{
    const struct {
        const char *key;
        ql_json_need need;
        size_t max, *out;
    } sizes[] = {
        {"vocab_size", QL_REQUIRED, QL_MAX_VOCAB, &c->vocab_size},
        {"hidden_size", QL_REQUIRED, QL_MAX_WIDTH, &c->hidden_size},
        {"intermediate_size", QL_REQUIRED, QL_MAX_WIDTH, &c->intermediate_size},
        {"num_hidden_layers", QL_REQUIRED, QL_MAX_LAYERS, &c->layers},
        {"num_attention_heads", QL_REQUIRED, QL_MAX_WIDTH, &c->heads},
        {"num_key_value_heads", QL_OPTIONAL, QL_MAX_WIDTH, &c->kv_heads},
        {"head_dim", QL_OPTIONAL, QL_MAX_WIDTH, &c->head_dim},
        {"max_position_embeddings", QL_OPTIONAL, QL_MAX_POSITIONS, &c->max_positions},
    };
    c->max_positions = 2048;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        ql_status status = ql_json_get_size(root, sizes[i].key, sizes[i].need, 1, sizes[i].max, sizes[i].out, err);
        if (status)
            return status;
    }
    return ql_model_config_heads(c, root->file, err);
}

/* Whatever changes the mathematics and is not implemented. */
static ql_status refuse_others(const ql_model_config *c, const ql_json_at *root, ql_error *err)
{
    bool gelu = ql_arch_traits_of(c->arch)->gelu, both_ways = false;
    const char *key = gelu ? "hidden_activation" : "hidden_act", *wanted = gelu ? "gelu_pytorch_tanh" : "silu";
    const char *act = wanted;
    ql_status status = ql_json_get_string(root, key, QL_OPTIONAL, &act, NULL, err);
    if (!status)
        status = ql_json_get_bool(root, "use_bidirectional_attention", QL_OPTIONAL, &both_ways, err);
    if (!status && strcmp(act, wanted) != 0)
        status = ql_fail(err, QL_ERR_UNSUPPORTED, "%s: %s \"%.40s\" is not supported with %s; %s is", root->file, key, act,
                         ql_arch_name(c->arch), wanted);
    if (!status && both_ways)
        status = ql_fail(err, QL_ERR_UNSUPPORTED, "%s: use_bidirectional_attention is not supported", root->file);
    return status;
}

/* "torch_dtype", which newer writers call "dtype"; the files have the last word on what they hold. */
static ql_status read_stored(ql_model_config *c, const ql_json_at *root, ql_error *err)
{
    const char *name = NULL;
    ql_status status = ql_json_get_string(root, "torch_dtype", QL_OPTIONAL, &name, NULL, err);
    if (!status && !name)
        status = ql_json_get_string(root, "dtype", QL_OPTIONAL, &name, NULL, err);
    c->stored = !name                           ? QL_F32
                : strcmp(name, "bfloat16") == 0 ? QL_BF16
                : strcmp(name, "float16") == 0  ? QL_F16
                                                : QL_F32;
    return status;
}

static ql_status read_flags(ql_model_config *c, const ql_json_at *root, ql_error *err)
{
    const ql_arch_traits *traits = ql_arch_traits_of(c->arch);
    ql_status status = ql_json_get_bool(root, "tie_word_embeddings", QL_OPTIONAL, &c->tied, err);
    if (!status && traits->attention_bias) {
        bool bias = false; /* covers o_proj too */
        status = ql_json_get_bool(root, "attention_bias", QL_OPTIONAL, &bias, err);
        c->qkv_bias = c->o_bias = bias;
    }
    if (!status && traits->mlp_bias)
        status = ql_json_get_bool(root, "mlp_bias", QL_OPTIONAL, &c->mlp_bias, err);
    if (!status)
        status = read_stored(c, root, err);
    return status ? status : ql_json_get_double(root, "rms_norm_eps", QL_OPTIONAL, 0, 1, &c->rms_norm_eps, err);
}

/* A number that null turns off, which is not the same as leaving it out. */
static ql_status read_cap(const ql_json_at *root, const char *key, double *out, ql_error *err)
{
    const json_t *value = ql_json_member(root, key);
    if (value && json_is_null(value)) {
        *out = 0;
        return QL_OK;
    }
    return ql_json_get_double(root, key, QL_OPTIONAL, 1e-3, 1e6, out, err);
}

/* Scale and soft caps of scores and logits. */
static ql_status read_scores(ql_model_config *c, const ql_json_at *root, ql_error *err)
{
    const ql_arch_traits *traits = ql_arch_traits_of(c->arch);
    if (!traits->scores)
        return QL_OK;
    c->attention_scalar = traits->attention_scalar;
    c->attention_softcap = traits->attention_softcap;
    c->logit_softcap = traits->logit_softcap;
    ql_status status =
        ql_json_get_double(root, "query_pre_attn_scalar", QL_OPTIONAL, 1e-6, 1e6, &c->attention_scalar, err);
    if (!status)
        status = read_cap(root, "attn_logit_softcapping", &c->attention_softcap, err);
    return status ? status : read_cap(root, "final_logit_softcapping", &c->logit_softcap, err);
}

static ql_status read_gguf(ql_model_config *out, const char *path, ql_error *err)
{
    ql_tensors *files;
    ql_status status = ql_tensors_open(&files, path, err);
    if (!status)
        status = ql_model_config_gguf(out, files, err);
    ql_tensors_close(files);
    return status;
}

ql_status ql_model_config_read(ql_model_config *out, const char *path, ql_error *err)
{
    *out = (ql_model_config){0};
    if (ql_path_is_gguf(path))
        return read_gguf(out, path, err);
    char *joined = ql_path_is_folder(path) ? ql_path_join(path, "config.json") : NULL;
    const char *file = joined ? joined : path;
    json_t *json = NULL;
    ql_status status = ql_json_read(&json, file, err);
    if (!status) {
        ql_json_at root = ql_json_root(file, json);
        ql_model_config c = {0};
        status = read_arch(&c, &root, err);
        status = status ? status : ql_model_config_quantized(&c, &root, err);
        status = status ? status : refuse_others(&c, &root, err);
        status = status ? status : read_sizes(&c, &root, err);
        status = status ? status : read_flags(&c, &root, err);
        status = status ? status : read_scores(&c, &root, err);
        status = status ? status : ql_model_config_rope(&c, &root, err);
        status = status ? status : ql_model_config_layers(&c, &root, err);
        if (!status)
            *out = c;
    }
    json_decref(json);
    free(joined);
    return status;
}

size_t ql_model_config_parameters(const ql_model_config *c)
{
    size_t block = (c->out_norms ? 4 : 2) * c->hidden_size + (c->qk_norm ? 2 * c->head_dim : 0);
    for (int module = 0; module < QL_MODULES; module++) {
        size_t n = ql_module_outputs(c, module);
        block += n * ql_module_inputs(c, module) + (ql_module_has_bias(c, module) ? n : 0);
    }
    return c->layers * block + c->hidden_size + c->vocab_size * c->hidden_size * (c->tied ? 1 : 2);
}
