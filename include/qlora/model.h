/* Decoder-only transformers (Llama, Qwen2/2.5, Qwen3, Mistral, Gemma 2 and 3, Phi-3, SmolLM3) over frozen quantized
 * weights and LoRA adapters.
 *
 * Callers need not know about blocks, activations or caches: they open a model, attach adapters, and
 * evaluate, generate (here) or train (train.h). */
#ifndef QLORA_MODEL_H
#define QLORA_MODEL_H

#include "qlora/base.h"
#include "qlora/lora.h"
#include "qlora/quant.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ql_arch {
    QL_ARCH_LLAMA,
    QL_ARCH_QWEN2,
    QL_ARCH_QWEN3,
    QL_ARCH_MISTRAL,
    QL_ARCH_GEMMA2,
    QL_ARCH_GEMMA3, /* its text model */
    QL_ARCH_PHI3,
    QL_ARCH_SMOLLM3,
} ql_arch;

/* A set of layers: layer i is bit i % 64 of element i / 64. */
typedef struct ql_layer_set {
    uint64_t bits[16];
} ql_layer_set;

static inline bool ql_layer_in(const ql_layer_set *set, size_t layer)
{
    return set->bits[layer / 64] >> layer % 64 & 1;
}

/* The shape of a model, in elements. Named as in Hugging Face's config.json. */
typedef struct ql_model_config {
    ql_arch arch;
    size_t vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim;
    size_t max_positions; /* with longrope original_max_positions: beyond them it is another model */
    double rms_norm_eps, rope_theta;
    struct { /* RoPE scaling; factor 0: none */
        double factor, low_freq_factor, high_freq_factor; /* the latter two and the next are Llama 3's, or 0: linear */
        size_t original_max_positions;
        double gain;         /* Phi-3's longrope: cosines and sines are multiplied by it, 0: there is none, and */
        float divisors[128]; /* each frequency is divided by its own, the ones for up to original_max_positions */
    } rope_scaling;
    size_t rotated;           /* elements of a head that are rotated; 0: all (Phi-3's partial_rotary_factor) */
    double local_rope_theta;  /* of the layers with a window, which are not scaled then; 0: as the others (Gemma 3) */
    size_t window;            /* positions that a token sees in the `windowed` layers, its own among them; 0: all */
    ql_layer_set windowed, unturned; /* layers with the window, and without any rotation (SmolLM3) */
    double attention_scalar;  /* scores are divided by its root (query_pre_attn_scalar); 0: head_dim */
    double attention_softcap, logit_softcap; /* 0: none (Gemma 2) */
    ql_dtype stored; /* type of the weights in the files, as config.json says; F32 when it does not */
    ql_format quantized; /* of the linear layers in a bitsandbytes checkpoint; dense (zeroed): they are not quantized */
    bool partly;         /* some of them are dense even so; which ones the files tell */
    bool tied;     /* the LM head is the embedding */
    bool qkv_bias; /* q, k and v have biases */
    bool o_bias, mlp_bias;
    bool qk_norm; /* RMSNorm on each head of q and k (Qwen3, Gemma 3) */
    bool fused;   /* q, k and v are one matrix, gate and up another (Phi-3) */
    bool gelu;    /* GeGLU instead of SwiGLU (Gemma) */
    bool out_norms;        /* norms also after attention and MLP, before their sums (Gemma) */
    bool offset_norms;     /* norms are stored as what they add to 1 (Gemma) */
    bool scaled_embedding; /* times the root of hidden_size (Gemma) */
} ql_model_config;

/* "llama", "qwen2", and so on: Hugging Face's model_type. */
QL_API const char *ql_arch_name(ql_arch arch);

/* Reads DIR/config.json (or the file itself), or the metadata of a GGUF file. QL_ERR_UNSUPPORTED names an architecture or feature that
 * is not handled, QL_ERR_FORMAT a missing or absurd value. */
QL_API ql_status ql_model_config_read(ql_model_config *out, const char *path, ql_error *err);

/* Parameters of the whole model, embeddings once when tied. */
QL_API size_t ql_model_config_parameters(const ql_model_config *config);

/* The linear layers of a block that carry quantized weights and may carry adapters. Where they are fused QL_Q is
 * qkv_proj and QL_GATE gate_up_proj, and the others that these hold have no outputs. */
typedef enum ql_module { QL_Q, QL_K, QL_V, QL_O, QL_GATE, QL_UP, QL_DOWN, QL_MODULES } ql_module;
QL_API const char *ql_module_name(const ql_model_config *config, ql_module module); /* "q_proj", ... "down_proj" */
QL_API size_t ql_module_inputs(const ql_model_config *config, ql_module module);
QL_API size_t ql_module_outputs(const ql_model_config *config, ql_module module);

/* A set of modules: bit i is module i. "all-linear", or names joined by commas; qkv_proj is q, k and v together,
 * gate_up_proj gate and up. QL_ERR_ARG names the rest. */
QL_API ql_status ql_modules_parse(unsigned *out, const char *names, ql_error *err);
enum { QL_ALL_LINEAR = (1u << QL_MODULES) - 1 };

typedef struct ql_model ql_model;

/* Opens a Hugging Face folder (config.json, safetensors in one file or shards) or a GGUF file. The linear layers of
 * the blocks are quantized to `format` tensor by tensor while reading; a dense F32 format ("none") borrows
 * them as stored, ggml's blocks (Q8_0, Q4_0, Q4_1, Q4_K, Q5_K, Q6_K) too, and takes over bitsandbytes' 4-bit codes. Rows of q and k that GGUF's Llama permutes
 * are put back, so that adapters mean the same over either file. Embeddings and LM head stay as stored, mapped. The
 * caller owns *out. */
QL_API ql_status ql_model_open(ql_model **out, const char *path, ql_format format, ql_workers *workers, ql_error *err);

/* A file of a model's packed weights, so that the next start maps them instead of quantizing again. It holds what the
 * model would hold in memory; it is used only when its version, the model's shape and format, the sizes and times of the
 * files it came from and the checksum of its bytes are right. Otherwise the weights are read as ever and the file is
 * written anew, whole or not at all. It may be removed at any time, but must not be changed while it is in use. */
typedef struct ql_model_cache {
    const char *dir;   /* in: the folder, made when it is not there; NULL: no cache */
    char path[4096];   /* out: the file */
    bool used;         /* out: the weights lie in it */
    bool written;      /* out: it was written */
    char reason[1024]; /* out: why it was not used or not written */
} ql_model_cache;
QL_API ql_status ql_model_open_cached(ql_model **out, const char *path, ql_format format, ql_model_cache *cache,
                                      ql_workers *workers, ql_error *err);

/* The format to open `path` with when nobody asks for another: as stored ("none") for a GGUF file or a bitsandbytes
 * checkpoint whose layers are quantized already, else ql_format_default(). */
QL_API ql_status ql_model_default_format(ql_format *out, const char *path, ql_error *err);

/* A model of that shape with seeded random weights (BF16, normal, 0.02), for benchmarks and tests. */
QL_API ql_status ql_model_random(ql_model **out, const ql_model_config *config, ql_format format, uint64_t seed,
                                 ql_workers *workers, ql_error *err);

/* Quantizes the LM head, which is as stored at first; the embedding keeps its numbers where both were one. For models of
 * any making; QL_ERR_UNSUPPORTED when the head is in blocks. A format of code F32 changes nothing. Call it before a
 * trainer, an evaluation or a generator is made, as the next one. */
QL_API ql_status ql_model_quantize_head(ql_model *model, ql_format format, ql_workers *workers, ql_error *err);

/* Lets the products with the blocks' weights and the LM head, and those of attention, round their inputs to bf16 where
 * this processor is faster that way (ql_weight_allow_bf16). Off at first. */
QL_API void ql_model_allow_bf16(ql_model *model, bool allow);

/* The same with 8 bits, for evaluation and generation only (ql_weight_allow_int8). */
QL_API void ql_model_allow_int8(ql_model *model, bool allow);

/* A model of that shape without any weights, to ask what a real one would take: ql_model_memory(), ql_model_attach(),
 * ql_train_plan(), ql_train_fit() and ql_evaluate_bytes() answer as for a folder of weights that are `stored` so;
 * nothing else may be done with it. */
QL_API ql_status ql_model_plan(ql_model **out, const ql_model_config *config, ql_format format, ql_error *err);

/* The same of a Hugging Face folder or GGUF file whose weights are there: each as it is stored, of whatever types, and
 * the rows that would be copied into another order. Only headers and norms are read. */
QL_API ql_status ql_model_plan_files(ql_model **out, const char *path, ql_format format, ql_error *err);

QL_API const ql_model_config *ql_model_shape(const ql_model *model);
QL_API ql_format ql_model_format(const ql_model *model); /* as opened; of layers quantized already the one of most weights */
QL_API void ql_model_destroy(ql_model *model); /* NULL is fine */

/* Bytes by class, as held. */
typedef struct ql_model_bytes {
    size_t codes, scales; /* of the quantized linear layers and head */
    size_t dense;         /* norms, biases, and dense weights that are not mapped */
    size_t mapped;        /* borrowed from the mapped files: embeddings, LM head, unquantized layers */
} ql_model_bytes;
QL_API ql_model_bytes ql_model_memory(const ql_model *model);

/* How fresh adapters begin. */
typedef enum ql_lora_init {
    QL_INIT_DEFAULT,  /* PEFT's: A uniform, B = 0 */
    QL_INIT_GAUSSIAN, /* A normal of deviation 1/r, B = 0 */
    QL_INIT_PISSA,    /* the largest singular values of each weight, whose rest is quantized (Meng et al. 2024) */
    QL_INIT_LOFTQ,    /* those of what quantization takes away, in turns with it (Li et al. 2024) */
} ql_lora_init;

/* "default", "gaussian", "pissa", "loftq"; QL_ERR_ARG names them. */
QL_API ql_status ql_lora_init_parse(ql_lora_init *out, const char *name, ql_error *err);
QL_API const char *ql_lora_init_name(ql_lora_init init);

/* Attaches fresh adapters of equal rank to `modules` of every block. One set a model. PiSSA and LoftQ read the weights
 * again and quantize others, so that s B A and the base give the model together; an adapter of theirs is saved with
 * twice the rank, s (B A - B0 A0), which any program adds to the original model. */
typedef struct ql_lora_options {
    size_t rank;      /* 8 */
    double alpha;     /* 16 */
    bool use_rslora;  /* alpha / sqrt(r) instead of alpha / r */
    double dropout;   /* 0 */
    unsigned modules; /* QL_ALL_LINEAR */
    uint64_t seed;
    bool use_dora;    /* DoRA: magnitudes of rows apart from their directions; without dropout */
    ql_lora_init init;
    size_t loftq_steps;  /* 5 */
    ql_workers *workers; /* for what is computed while attaching; NULL: threads of its own */
} ql_lora_options;
QL_API ql_lora_options ql_lora_options_defaults(void);
QL_API ql_status ql_model_attach(ql_model *model, const ql_lora_options *options, ql_error *err);

/* With PiSSA or LoftQ: the root of the sum of squares of W - Q, over all adapted layers, as it was with the weights
 * quantized plainly, and of W - Q - s B A as it is. */
QL_API void ql_model_start_error(const ql_model *model, double *plain, double *now);

/* Trainable parameters: 0 without adapters. */
QL_API size_t ql_model_adapter_parameters(const ql_model *model);

/* Text generation with a key/value cache of `max_tokens` positions (fp32). The model must outlive it. */
typedef struct ql_generator ql_generator;
QL_API ql_status ql_generator_create(ql_generator **out, const ql_model *model, size_t max_tokens, ql_workers *workers,
                                     ql_error *err);

/* Appends ids[count] and returns the logits[vocab] of the last one (owned by the generator, valid until the
 * next call). QL_ERR_SHAPE when the cache is full or an id is not in the vocabulary. */
QL_API ql_status ql_generator_feed(ql_generator *gen, const int32_t *ids, size_t count, const float **logits,
                                   ql_error *err);
QL_API size_t ql_generator_position(const ql_generator *gen); /* tokens in the cache */
QL_API void ql_generator_reset(ql_generator *gen);
QL_API void ql_generator_destroy(ql_generator *gen);

/* Picks the next token: temperature 0 is greedy (the lowest id among equals); top_k 0 and top_p 1 are off. */
typedef struct ql_sampling {
    double temperature, top_p;
    size_t top_k;
    uint64_t seed;
} ql_sampling;
QL_API ql_sampling ql_sampling_defaults(void); /* temperature 0.8, top_p 0.95, top_k 0, seed 0 */
QL_API ql_status ql_sample_token(int32_t *token, const float *logits, size_t vocab, const ql_sampling *sampling,
                                 size_t position, ql_error *err);

#ifdef __cplusplus
}
#endif
#endif
