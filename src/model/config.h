/* What the files that read a model's configuration share. */
#ifndef QL_SRC_MODEL_CONFIG_H
#define QL_SRC_MODEL_CONFIG_H

#include "io/json.h"
#include "model/model.h"

/* Which layers have the window. */
typedef enum ql_window_rule {
    QL_WINDOW_NONE,     /* none, whatever config.json says */
    QL_WINDOW_ALL,      /* all */
    QL_WINDOW_LATER,    /* those from max_window_layers on, with use_sliding_window */
    QL_WINDOW_PATTERN,  /* all but every sliding_window_pattern-th */
    QL_WINDOW_UNTURNED, /* those that do not rotate, with use_sliding_window */
} ql_window_rule;

/* What an architecture fixes, and what holds where config.json is silent. */
typedef struct ql_arch_traits {
    const char *name; /* model_type */
    bool gguf;        /* read from and written to GGUF files */
    bool as_llama;    /* written to them as Llama, which it is but for windows */
    bool qkv_bias, qk_norm, fused, gelu, out_norms, offset_norms, scaled_embedding;
    bool attention_bias, mlp_bias; /* config.json may ask for them */
    bool scores;      /* query_pre_attn_scalar and the soft caps are read */
    bool tied;
    ql_window_rule rule;
    size_t window, pattern; /* 0: none, and every layer is one of the pattern */
    size_t unturned;        /* every how many layers one does not rotate; 0: all do */
    size_t head_dim;        /* 0: hidden_size / heads */
    double attention_scalar, attention_softcap, logit_softcap, theta, local_theta, eps;
} ql_arch_traits;

const ql_arch_traits *ql_arch_traits_of(ql_arch arch);

/* The names of all architectures, or of those that GGUF files may hold, joined for a message. Returns text. */
enum { QL_ARCH_NAMES_BYTES = 128 };
const char *ql_arch_names(char text[QL_ARCH_NAMES_BYTES], bool gguf);

/* Reads quantization_config into c->quantized and c->partly; QL_ERR_UNSUPPORTED names any other quantization. */
ql_status ql_model_config_quantized(ql_model_config *c, const ql_json_at *root, ql_error *err);

/* Reads the rotation and, after it, which layers have the window; sizes are read before. */
ql_status ql_model_config_rope(ql_model_config *c, const ql_json_at *root, ql_error *err);
ql_status ql_model_config_layers(ql_model_config *c, const ql_json_at *root, ql_error *err);

#endif
