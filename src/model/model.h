/* What the files of the model room share: the parts of a model and of a pass over it. */
#ifndef QL_SRC_MODEL_MODEL_H
#define QL_SRC_MODEL_MODEL_H

#include "base/arena.h"
#include "model/ops.h"
#include "qlora/io.h"
#include "qlora/lora.h"
#include "qlora/model.h"

typedef struct ql_block {
    ql_weight *weight[QL_MODULES];
    ql_linear linear[QL_MODULES];     /* over weight, bias and adapter */
    const float *bias[QL_MODULES];    /* NULL: none; in the model's dense memory, as the norms are */
    const float *input_norm, *mlp_norm;  /* [hidden] before attention and MLP */
    const float *att_out_norm, *mlp_out_norm; /* after them; NULL without out_norms */
    const float *q_norm, *k_norm;        /* [head_dim]; NULL without qk_norm */
} ql_block;

struct ql_model {
    ql_model_config config;
    ql_format format;
    ql_tensors *files; /* NULL when the weights are random */
    ql_tensors *packed; /* the cache file that weights lie in; NULL: none */
    ql_weight *embed, *head; /* head == embed when tied */
    const float *final_norm;
    bool divided;               /* each frequency of the rotation has a divisor of its own: Llama 3's in GGUF files */
    const float *rope_divisors; /* [head_dim / 2], or NULL */
    ql_block *blocks;
    float *dense; /* norms (as they multiply) and biases in fp32 */
    size_t dense_bytes, mapped_bytes;
    ql_lora_options lora;
    bool bf16;             /* products may round to bf16 */
    bool planned;          /* shapes only: no weight, norm or adapter has numbers */
    uint16_t *start;       /* PiSSA, LoftQ: fp16 values that the adapters began with; else NULL */
    size_t start_bytes;
    double start_error[2]; /* of ql_model_start_error */
    ql_adapters *adapters; /* NULL: none; the layers' adapters in module order, block after block */
};

/* The dense memory of a model: norms and biases of every block, measured or carved in one list. */
void ql_model_list_dense(ql_model *model, ql_arena *arena);

/* More than any model has; what a file says is checked against them. */
enum { QL_MAX_WIDTH = 1 << 20, QL_MAX_LAYERS = 1024, QL_MAX_VOCAB = 1 << 24, QL_MAX_POSITIONS = 1 << 26 };

/* Fills in kv_heads and head_dim where they are zero, and checks that the heads are such as can be computed. */
ql_status ql_model_config_heads(ql_model_config *c, const char *file, ql_error *err);

/* The configuration in the metadata of an open GGUF file. */
ql_status ql_model_config_gguf(ql_model_config *out, const ql_tensors *files, ql_error *err);

/* QL_ERR_UNSUPPORTED when no GGUF file of that architecture is written here; `file` is where it comes from. */
ql_status ql_model_config_check_gguf(const ql_model_config *c, const char *file, ql_error *err);

bool ql_module_has_bias(const ql_model_config *config, ql_module module);

/* Whether the architecture has it; in fused ones others hold k, v and up. Those have no weight. */
bool ql_module_present(const ql_model_config *config, ql_module module);

const char *ql_module_path(ql_module module); /* "self_attn" or "mlp" */

/* QL_ERR_ARG when a set takes a fused layer apart. */
ql_status ql_modules_check(const ql_model_config *config, unsigned modules, ql_error *err);

/* Floats from token to token of q, of k and v, and of gate and up. */
size_t ql_ldq(const ql_model_config *config);
size_t ql_ldkv(const ql_model_config *config);
size_t ql_ldgate(const ql_model_config *config);

/* Allocates the blocks and the dense memory; config and format are set. */
ql_status ql_model_prepare(ql_model *model, ql_error *err);

/* What a model says of its format: of layers that are quantized already, the format of most of their weights. */
void ql_model_settle_format(ql_model *model);

/* The rotary embedding that the model asks for, of all layers or of those with a window; it points into the model. */
ql_rope_config ql_model_rope(const ql_model *model, bool local);

/* What adapters of these options need, [layers][QL_MODULES]; rank 0 where there is none. free() it. */
ql_status ql_model_adapter_shapes(ql_adapter_shape **out, const ql_model *model, const ql_lora_options *options,
                                  ql_error *err);

/* A zeroed set for the shapes that have a rank. The caller owns *out. */
ql_status ql_model_make_adapters(ql_adapters **out, const ql_model *model, const ql_adapter_shape *shapes,
                                 bool trainable, ql_error *err);

/* The weight of a linear layer again, as it is stored. The model was opened from files; the caller owns *out. */
ql_status ql_model_load_linear(ql_weight **out, ql_model *model, size_t layer, ql_module module, ql_workers *workers,
                               ql_error *err);

/* Points the linear layers at weights and biases, and at the adapters of such a set, which the model owns from
 * then on. options->rank is the largest there is. Without adapters shapes may be NULL. */
void ql_model_link(ql_model *model, const ql_lora_options *options, const ql_adapter_shape *shapes,
                   ql_adapters *adapters);

/* Noise on the embeddings of a training pass: uniform in +-alpha / sqrt(L d) for a sequence of L tokens of width d
 * (NEFTune). A pure function of these numbers and of the element's place; `step` counts passes. alpha 0: none. */
typedef struct ql_noise {
    float alpha;
    uint64_t seed, step;
} ql_noise;

/* With DoRA: norms and gains of all layers anew, after the parameters have changed. */
void ql_model_refresh(const ql_model *model, ql_workers *workers);

/* The same for adapters that were just linked, with the norms of the base; `fresh` ones take their magnitudes from it.
 * workers may be NULL. */
ql_status ql_model_start_dora(const ql_model *model, bool fresh, ql_workers *workers, ql_error *err);

/* Tokens of several sequences one after another, without padding. */
typedef struct ql_batch {
    size_t tokens, sequences;
    const int32_t *ids;       /* [tokens] in the vocabulary */
    const int32_t *target;    /* [tokens] the next token, negative: not learned */
    const uint32_t *position; /* [tokens] in its sequence */
    const size_t *start;      /* [sequences + 1] */
    ql_noise noise;
} ql_batch;

#endif
