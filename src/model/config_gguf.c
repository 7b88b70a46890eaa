/* The metadata of a GGUF file as a model's configuration: what is understood, and everything else refused by name. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "io/gguf.h"
#include "model/config.h"

typedef struct reader {
    const ql_gguf *gguf;
    const ql_tensors *files;
    const char *path;
    char arch[16], key[96];
    ql_error *err;
} reader;

/* "llama.block_count", or whatever the architecture is called. */
static const char *key_of(reader *r, const char *name)
{
    snprintf(r->key, sizeof r->key, "%s.%s", r->arch, name);
    return r->key;
}

static bool has_tensor(const reader *r, const char *name)
{
    return ql_tensors_find(r->files, name) != NULL;
}

static ql_status read_arch(reader *r, ql_model_config *c)
{
    const char *text;
    size_t length;
    ql_status status = ql_gguf_get_string(r->gguf, "general.architecture", &text, &length, r->err);
    if (status)
        return status;
    const ql_arch_traits *traits;
    for (int i = 0; (traits = ql_arch_traits_of((ql_arch)i)); i++) {
        if (!traits->gguf || strlen(traits->name) != length || memcmp(traits->name, text, length) != 0)
            continue;
        c->arch = (ql_arch)i;
        snprintf(r->arch, sizeof r->arch, "%s", traits->name);
        return QL_OK;
    }
    char names[QL_ARCH_NAMES_BYTES];
    return ql_fail(r->err, QL_ERR_UNSUPPORTED, "%s: general.architecture \"%.*s\" is not supported; %s are", r->path,
                   length < 60 ? (int)length : 60, text, ql_arch_names(names, true));
}

static ql_status read_size(reader *r, const char *name, bool required, size_t max, size_t *out)
{
    int64_t value;
    if (!required && !ql_gguf_find(r->gguf, key_of(r, name)))
        return QL_OK;
    ql_status status = ql_gguf_get_int(r->gguf, key_of(r, name), 1, (int64_t)max, &value, r->err);
    if (!status)
        *out = (size_t)value;
    return status;
}

static ql_status read_number(reader *r, const char *name, double min, double max, double *out)
{
    if (!ql_gguf_find(r->gguf, key_of(r, name)))
        return QL_OK;
    return ql_gguf_get_double(r->gguf, r->key, min, max, out, r->err);
}

static ql_status read_sizes(reader *r, ql_model_config *c)
{
    size_t value_dim = 0, rotated = 0;
    const struct {
        const char *name;
        bool required;
        size_t max, *out;
    } sizes[] = {
        {"context_length", true, QL_MAX_POSITIONS, &c->max_positions},
        {"embedding_length", true, QL_MAX_WIDTH, &c->hidden_size},
        {"feed_forward_length", true, QL_MAX_WIDTH, &c->intermediate_size},
        {"block_count", true, QL_MAX_LAYERS, &c->layers},
        {"attention.head_count", true, QL_MAX_WIDTH, &c->heads},
        {"attention.head_count_kv", false, QL_MAX_WIDTH, &c->kv_heads},
        {"attention.key_length", false, QL_MAX_WIDTH, &c->head_dim},
        {"attention.value_length", false, QL_MAX_WIDTH, &value_dim},
        {"rope.dimension_count", false, QL_MAX_WIDTH, &rotated},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        ql_status status = read_size(r, sizes[i].name, sizes[i].required, sizes[i].max, sizes[i].out);
        if (status)
            return status;
    }
    ql_status status = ql_model_config_heads(c, r->path, r->err);
    if (!status && ((value_dim && value_dim != c->head_dim) || (rotated && rotated != c->head_dim)))
        status = ql_fail(r->err, QL_ERR_UNSUPPORTED,
                         "%s: heads of %zu elements with values of %zu, of which %zu are rotated: only equal ones are "
                         "supported",
                         r->path, c->head_dim, value_dim ? value_dim : c->head_dim, rotated ? rotated : c->head_dim);
    return status;
}

/* Whatever changes the mathematics and is not implemented. */
static ql_status refuse_others(reader *r)
{
    static const char *const counts[] = {"expert_count", "attention.sliding_window"};
    for (size_t i = 0; i < 2; i++) {
        int64_t value = 0;
        if (!ql_gguf_find(r->gguf, key_of(r, counts[i])))
            continue;
        ql_status status = ql_gguf_get_int(r->gguf, r->key, 0, INT64_MAX, &value, r->err);
        if (status)
            return status;
        if (value)
            return ql_fail(r->err, QL_ERR_UNSUPPORTED, "%s: %s %lld is not supported", r->path, r->key,
                           (long long)value);
    }
    const char *text;
    size_t length;
    if (!ql_gguf_find(r->gguf, key_of(r, "rope.scaling.type")))
        return QL_OK;
    ql_status status = ql_gguf_get_string(r->gguf, r->key, &text, &length, r->err);
    if (!status && !(length == 4 && memcmp(text, "none", 4) == 0))
        status = ql_fail(r->err, QL_ERR_UNSUPPORTED,
                         "%s: %s \"%.*s\" is not supported; none is, and Llama 3's rope_freqs.weight", r->path, r->key,
                         length < 60 ? (int)length : 60, text);
    return status;
}

/* The vocabulary is as large as the embedding; biases are where their tensors are. */
static ql_status read_tensors(reader *r, ql_model_config *c)
{
    const ql_tensor *embedding = ql_tensors_find(r->files, "token_embd.weight");
    if (!embedding || embedding->ndim != 2)
        return ql_fail(r->err, QL_ERR_FORMAT, "%s: there is no matrix token_embd.weight: a vocabulary without a model?",
                       r->path);
    c->vocab_size = embedding->shape[0];
    if (!c->vocab_size || c->vocab_size > QL_MAX_VOCAB)
        return ql_fail(r->err, QL_ERR_FORMAT, "%s: token_embd.weight has %zu rows; 1 to %d are possible", r->path,
                       c->vocab_size, QL_MAX_VOCAB);
    c->tied = !has_tensor(r, "output.weight");
    c->qkv_bias = has_tensor(r, "blk.0.attn_q.bias");
    c->o_bias = has_tensor(r, "blk.0.attn_output.bias");
    c->mlp_bias = has_tensor(r, "blk.0.ffn_gate.bias");
    c->qk_norm = has_tensor(r, "blk.0.attn_q_norm.weight");
    if (c->arch == QL_ARCH_QWEN2 && !c->qkv_bias)
        return ql_fail(r->err, QL_ERR_FORMAT, "%s: there is no tensor blk.0.attn_q.bias, which qwen2 has", r->path);
    if ((c->arch == QL_ARCH_QWEN3) != c->qk_norm)
        return ql_fail(r->err, QL_ERR_FORMAT, "%s: a tensor blk.0.attn_q_norm.weight goes with qwen3, not with %s",
                       r->path, r->arch);
    return QL_OK;
}

ql_status ql_model_config_gguf(ql_model_config *out, const ql_tensors *files, ql_error *err)
{
    reader r = {.gguf = ql_tensors_gguf(files), .files = files, .path = ql_tensors_path(files), .err = err};
    ql_model_config c = {.rope_theta = 10000};
    ql_status status = read_arch(&r, &c);
    status = status ? status : refuse_others(&r);
    status = status ? status : read_sizes(&r, &c);
    status = status ? status : read_number(&r, "rope.freq_base", 1, 1e12, &c.rope_theta);
    if (!status)
        status = ql_gguf_get_double(r.gguf, key_of(&r, "attention.layer_norm_rms_epsilon"), 0, 1, &c.rms_norm_eps, err);
    status = status ? status : read_tensors(&r, &c);
    if (!status)
        *out = c;
    return status;
}
