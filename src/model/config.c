/* config.json of a Hugging Face model: what is understood, and everything else refused by name. GGUF files have
 * config_gguf.c. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/gguf.h"
#include "io/path.h"
#include "model/config.h"

static const struct {
    const char *name;
    bool qkv_bias, qk_norm; /* what the architecture fixes, when config.json is silent */
} archs[] = {
    [QL_ARCH_LLAMA] = {"llama", false, false},
    [QL_ARCH_QWEN2] = {"qwen2", true, false},
    [QL_ARCH_QWEN3] = {"qwen3", false, true},
};
enum { ARCHS = sizeof archs / sizeof *archs };

const char *ql_arch_name(ql_arch arch)
{
    return archs[arch].name;
}

static ql_status read_arch(ql_model_config *c, const ql_json_at *root, ql_error *err)
{
    const char *type = NULL;
    ql_status status = ql_json_get_string(root, "model_type", QL_REQUIRED, &type, NULL, err);
    if (status)
        return status;
    for (int i = 0; i < ARCHS; i++) {
        if (strcmp(type, archs[i].name) == 0) {
            c->arch = (ql_arch)i;
            c->qkv_bias = archs[i].qkv_bias;
            c->qk_norm = archs[i].qk_norm;
            return QL_OK;
        }
    }
    return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: model_type \"%s\" is not supported; llama, qwen2 and qwen3 are",
                   root->file, type);
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

static ql_status read_scaling(ql_model_config *c, const ql_json_at *scaling, ql_error *err)
{
    const char *type = NULL;
    ql_status status = ql_json_get_string(scaling, "rope_type", QL_OPTIONAL, &type, NULL, err);
    if (!status && !type)
        status = ql_json_get_string(scaling, "type", QL_OPTIONAL, &type, NULL, err);
    if (status || !type || strcmp(type, "default") == 0)
        return status;
    if (strcmp(type, "llama3") != 0)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: rope scaling \"%s\" is not supported; llama3 is", scaling->file,
                       type);
    status = ql_json_get_double(scaling, "factor", QL_REQUIRED, 1, 1e6, &c->rope_scaling.factor, err);
    if (!status)
        status = ql_json_get_double(scaling, "low_freq_factor", QL_REQUIRED, 1e-6, 1e6,
                                    &c->rope_scaling.low_freq_factor, err);
    if (!status)
        status = ql_json_get_double(scaling, "high_freq_factor", QL_REQUIRED, 1e-6, 1e6,
                                    &c->rope_scaling.high_freq_factor, err);
    if (!status)
        status = ql_json_get_size(scaling, "original_max_position_embeddings", QL_REQUIRED, 1, QL_MAX_POSITIONS,
                                  &c->rope_scaling.original_max_positions, err);
    if (!status && c->rope_scaling.high_freq_factor <= c->rope_scaling.low_freq_factor)
        status = ql_fail(err, QL_ERR_FORMAT, "%s: rope scaling: high_freq_factor %g is not above low_freq_factor %g",
                         scaling->file, c->rope_scaling.high_freq_factor, c->rope_scaling.low_freq_factor);
    return status;
}

/* rope_theta and rope_scaling, or both in rope_parameters as newer writers put them. */
static ql_status read_rope(ql_model_config *c, const ql_json_at *root, ql_error *err)
{
    ql_json_at scaling, parameters;
    c->rope_theta = 10000;
    ql_status status = ql_json_get_double(root, "rope_theta", QL_OPTIONAL, 1, 1e12, &c->rope_theta, err);
    if (!status)
        status = ql_json_get_object(root, "rope_scaling", QL_OPTIONAL, &scaling, err);
    if (!status)
        status = ql_json_get_object(root, "rope_parameters", QL_OPTIONAL, &parameters, err);
    if (!status && scaling.value)
        status = read_scaling(c, &scaling, err);
    if (!status && parameters.value) {
        status = ql_json_get_double(&parameters, "rope_theta", QL_OPTIONAL, 1, 1e12, &c->rope_theta, err);
        if (!status)
            status = read_scaling(c, &parameters, err);
    }
    return status;
}

/* Whatever changes the mathematics and is not implemented. */
static ql_status refuse_others(const ql_json_at *root, ql_error *err)
{
    const char *act = "silu";
    bool sliding = false;
    ql_status status = ql_json_get_string(root, "hidden_act", QL_OPTIONAL, &act, NULL, err);
    if (!status)
        status = ql_json_get_bool(root, "use_sliding_window", QL_OPTIONAL, &sliding, err);
    if (!status && strcmp(act, "silu") != 0)
        status = ql_fail(err, QL_ERR_UNSUPPORTED, "%s: hidden_act \"%s\" is not supported; silu is", root->file, act);
    if (!status && sliding)
        status = ql_fail(err, QL_ERR_UNSUPPORTED, "%s: use_sliding_window is not supported", root->file);
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
    ql_status status = ql_json_get_bool(root, "tie_word_embeddings", QL_OPTIONAL, &c->tied, err);
    if (!status && c->arch != QL_ARCH_QWEN2) {
        bool bias = false; /* Llama's attention_bias covers o_proj too */
        status = ql_json_get_bool(root, "attention_bias", QL_OPTIONAL, &bias, err);
        c->qkv_bias = c->o_bias = bias;
    }
    if (!status && c->arch == QL_ARCH_LLAMA)
        status = ql_json_get_bool(root, "mlp_bias", QL_OPTIONAL, &c->mlp_bias, err);
    c->rms_norm_eps = 1e-6;
    if (!status)
        status = read_stored(c, root, err);
    return status ? status : ql_json_get_double(root, "rms_norm_eps", QL_OPTIONAL, 0, 1, &c->rms_norm_eps, err);
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
        status = status ? status : refuse_others(&root, err);
        status = status ? status : read_sizes(&c, &root, err);
        status = status ? status : read_flags(&c, &root, err);
        status = status ? status : read_rope(&c, &root, err);
        if (!status)
            *out = c;
    }
    json_decref(json);
    free(joined);
    return status;
}

size_t ql_model_config_parameters(const ql_model_config *c)
{
    size_t block = 2 * c->hidden_size + (c->qk_norm ? 2 * c->head_dim : 0);
    for (int module = 0; module < QL_MODULES; module++) {
        size_t n = ql_module_outputs(c, module);
        block += n * ql_module_inputs(c, module) + (ql_module_has_bias(c, module) ? n : 0);
    }
    return c->layers * block + c->hidden_size + c->vocab_size * c->hidden_size * (c->tied ? 1 : 2);
}
