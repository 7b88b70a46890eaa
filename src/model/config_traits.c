/* The architectures: a line each. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "model/config.h"

static const ql_arch_traits archs[] = {
    [QL_ARCH_LLAMA] = {.name = "llama", .gguf = true, .attention_bias = true, .mlp_bias = true, .theta = 1e4,
                       .eps = 1e-6},
    [QL_ARCH_QWEN2] = {.name = "qwen2", .gguf = true, .qkv_bias = true, .rule = QL_WINDOW_LATER, .window = 4096,
                       .theta = 1e4, .eps = 1e-6},
    [QL_ARCH_QWEN3] = {.name = "qwen3", .gguf = true, .qk_norm = true, .attention_bias = true, .rule = QL_WINDOW_LATER,
                       .window = 4096, .theta = 1e4, .eps = 1e-6},
    [QL_ARCH_MISTRAL] = {.name = "mistral", .as_llama = true, .rule = QL_WINDOW_ALL, .window = 4096, .theta = 1e4, .eps = 1e-6},
    [QL_ARCH_GEMMA2] = {.name = "gemma2", .gelu = true, .out_norms = true, .offset_norms = true,
                        .scaled_embedding = true, .attention_bias = true, .scores = true, .tied = true,
                        .rule = QL_WINDOW_PATTERN, .window = 4096, .pattern = 2, .head_dim = 256,
                        .attention_scalar = 256, .attention_softcap = 50, .logit_softcap = 30, .theta = 1e4,
                        .eps = 1e-6},
    [QL_ARCH_GEMMA3] = {.name = "gemma3_text", .qk_norm = true, .gelu = true, .out_norms = true, .offset_norms = true,
                        .scaled_embedding = true, .attention_bias = true, .scores = true, .tied = true,
                        .rule = QL_WINDOW_PATTERN, .window = 4096, .pattern = 6, .head_dim = 256,
                        .attention_scalar = 256, .theta = 1e6, .local_theta = 1e4, .eps = 1e-6},
    [QL_ARCH_PHI3] = {.name = "phi3", .fused = true, .rule = QL_WINDOW_ALL, .theta = 1e4, .eps = 1e-5},
    [QL_ARCH_SMOLLM3] = {.name = "smollm3", .attention_bias = true, .mlp_bias = true, .tied = true,
                         .rule = QL_WINDOW_UNTURNED, .unturned = 4, .theta = 2e6, .eps = 1e-6},
};
enum { ARCHS = sizeof archs / sizeof *archs };

const ql_arch_traits *ql_arch_traits_of(ql_arch arch)
{
    return (size_t)arch < ARCHS ? &archs[arch] : NULL;
}

const char *ql_arch_name(ql_arch arch)
{
    return archs[arch].name;
}

ql_status ql_model_config_check_gguf(const ql_model_config *c, const char *file, ql_error *err)
{
    char names[QL_ARCH_NAMES_BYTES];
    if (!archs[c->arch].gguf && !archs[c->arch].as_llama)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: GGUF files of the architecture %s are not supported; those of %s are",
                       file, archs[c->arch].name, ql_arch_names(names, true));
    if (c->window || c->rotated || c->rope_scaling.gain > 0 || (c->rope_scaling.factor != 0 && c->rope_scaling.high_freq_factor == 0))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: a GGUF file with %s is not supported here", file,
                       c->window ? "a sliding window" : c->rotated ? "a partial rotation" : c->rope_scaling.gain > 0 ? "longrope"
                                                                             : "linear rope scaling");
    return QL_OK;
}

const char *ql_arch_names(char text[QL_ARCH_NAMES_BYTES], bool gguf)
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < ARCHS; i++)
        if (archs[i].gguf || !gguf)
            used += (size_t)snprintf(text + used, QL_ARCH_NAMES_BYTES - used, "%s%s", used ? ", " : "", archs[i].name);
    return text;
}
