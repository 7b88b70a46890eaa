/* A configuration as metadata of a GGUF file. */
#include <stdio.h>

#include "base/error.h"
#include "model/config.h"
#include "model/config_put.h"
#include "model/ops.h"

const char *ql_model_config_gguf_arch(const ql_model_config *c)
{
    return ql_arch_name(ql_arch_traits_of(c->arch)->as_llama ? QL_ARCH_LLAMA : c->arch);
}

bool ql_model_config_pairs(const ql_model_config *c)
{
    return c->arch == QL_ARCH_LLAMA || ql_arch_traits_of(c->arch)->as_llama;
}

void ql_model_config_put_gguf(ql_gguf_meta *meta, const ql_model_config *c)
{
    const char *arch = ql_model_config_gguf_arch(c);
    const struct {
        const char *name;
        size_t value;
    } sizes[] = {
        {"context_length", c->max_positions},     {"embedding_length", c->hidden_size},
        {"block_count", c->layers},               {"feed_forward_length", c->intermediate_size},
        {"attention.head_count", c->heads},       {"attention.head_count_kv", c->kv_heads},
        {"attention.key_length", c->head_dim},    {"attention.value_length", c->head_dim},
        {"rope.dimension_count", c->head_dim},    {"vocab_size", c->vocab_size},
    };
    char key[96];
    ql_gguf_put_string(meta, "general.architecture", arch);
    ql_gguf_put_string(meta, "general.type", "model");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, sizes[i].name);
        ql_gguf_put_u32(meta, key, (uint32_t)sizes[i].value); /* bounded by the reader of configurations */
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    ql_gguf_put_f32(meta, key, (float)c->rms_norm_eps);
    snprintf(key, sizeof key, "%s.rope.freq_base", arch);
    ql_gguf_put_f32(meta, key, (float)c->rope_theta);
}

bool ql_model_config_divisors(const ql_model_config *c, float *divisors)
{
    double plain[QL_MAX_HALF], scaled[QL_MAX_HALF];
    ql_rope_config rope = {.head_dim = c->head_dim, .theta = c->rope_theta};
    if (c->rope_scaling.factor == 0)
        return false;
    ql_rope_frequencies(&rope, plain);
    rope.llama3 = true;
    rope.factor = c->rope_scaling.factor;
    rope.low_freq_factor = c->rope_scaling.low_freq_factor;
    rope.high_freq_factor = c->rope_scaling.high_freq_factor;
    rope.original_max_positions = (double)c->rope_scaling.original_max_positions;
    ql_rope_frequencies(&rope, scaled);
    for (size_t i = 0; i < c->head_dim / 2; i++)
        divisors[i] = (float)(plain[i] / scaled[i]);
    return true;
}
