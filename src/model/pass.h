/* A pass over a model: its memory, forward and backward. */
#ifndef QL_SRC_MODEL_PASS_H
#define QL_SRC_MODEL_PASS_H

#include "model/model.h"

/* What a forward pass keeps of a block for its backward pass; T tokens, D hidden, Q = heads * head_dim,
 * K = kv_heads * head_dim, F intermediate. Fused q, k and v share rows, gate and up too. Norm outputs and the MLP's
 * activation are made again. */
typedef struct ql_saved {
    float *x;            /* [T][D] input */
    float *q_raw, *k_raw; /* [T][Q], [T][K] before their norms; q and k without qk_norm or backward pass */
    float *rstd_q, *rstd_k;
    float *q, *k, *v; /* after rope */
    float *att;       /* [T][Q] */
    float *lse;       /* [heads][T] */
    float *att_out, *mlp_out; /* [T][D] before their norms, with out_norms */
    float *mid;       /* [T][D] after attention */
    float *gate, *up; /* [T][F] */
    float *h[QL_MODULES]; /* [T][r] */
    /* With bf16 activations: what waits until the backward pass in bf16 */
    uint16_t *x_narrow, *mid_narrow; /* the backward pass reads them there */
    ql_glu_waiting mlp;              /* gate and up, which it reads there too */
    uint16_t *narrow;                /* the others, array after array, to be made fp32 again */
} ql_saved;

/* Zeroed is a forward pass, which keeps nothing: evaluation. */
typedef struct ql_pass_kind {
    bool backward;
    bool bf16;        /* what waits for the backward pass does so in bf16, all but attention's arrays */
    size_t recompute; /* blocks, from the first, that keep only their inputs and are computed again; never the last,
                         which is still there when the backward pass begins */
} ql_pass_kind;

typedef struct ql_pass {
    const ql_model *model;
    ql_pass_kind kind;
    size_t capacity;  /* tokens */
    ql_rope rope, local_rope; /* their tables reach as far as the longest sequence; the latter's may be empty */
    ql_saved *saved;  /* [layers]; they share what need not be kept */
    float *out;       /* [T][D] of the last block, then of the final norm */
    float *norm;      /* [T][D], in bf16 where the layers that read it take that */
    float *act;       /* [T][F], in bf16 too; */
    const uint16_t *act_narrow; /* then that is where a forward pass left it */
    ql_glu_waiting made; /* gate and up of the last block of a forward pass, where they are in bf16 */
    float *rstd;      /* [T] of the norm at hand */
    float *dact;      /* [T][F] */
    float *d, *dnorm; /* [T][D] */
    float *datt;      /* [T][Q] */
    float *dq, *dk, *dv; /* as q, k and v lie; dq may be datt */
    float *final_x, *final_rstd;
    float *work;      /* of ql_linear_forward and backward */
    void *loss_buffer;
    char *memory;
    size_t bytes;
} ql_pass;

/* Allocates a pass over up to `tokens` tokens in sequences of up to `positions` and reserves the workers' scratch for
 * it. Adapters are attached before. *pass was zeroed. */
ql_status ql_pass_init(ql_pass *pass, const ql_model *model, size_t tokens, size_t positions, ql_pass_kind kind,
                       ql_workers *workers, ql_error *err);
/* Bytes of such a pass, and the scratch it reserves; the model may be a planned one. */
size_t ql_pass_measure(const ql_model *model, size_t tokens, size_t positions, ql_pass_kind kind, size_t threads,
                       ql_scratch *need);
void ql_pass_free(ql_pass *pass); /* zeroed is fine */

/* The loss of a batch; with a backward pass it adds grad_scale * (gradient of the sum) to the adapters'
 * gradients. A NULL dropout: none. token_loss[tokens] may be NULL. QL_ERR_VALUE names the first token whose
 * logits are not finite; the gradients are then not to be used. */
ql_status ql_pass_run(ql_pass *pass, const ql_batch *batch, float grad_scale, const ql_dropout *dropout,
                      float *token_loss, ql_loss_sum *loss, ql_workers *workers, ql_error *err);

/* After a forward pass that gave such logits: where numbers first were not finite, such as "layer 3, down_proj".
 * Computes that block again. Not without a backward pass. Returns text. */
enum { QL_LOCATE_BYTES = 64 };
const char *ql_pass_locate(ql_pass *pass, const ql_batch *batch, const ql_dropout *dropout, ql_workers *workers,
                           char text[QL_LOCATE_BYTES]);

/* After a forward pass: the input of block `index`, as the backward pass will see it; not without one. */
const float *ql_pass_input(ql_pass *pass, const ql_batch *batch, size_t index, ql_workers *workers);

/* ---- the blocks, shared with generation ---- */

typedef struct ql_block_call {
    const ql_model *model;
    size_t index;       /* of the block */
    size_t m;           /* tokens */
    const uint32_t *position;
    const ql_dropout *dropout; /* NULL: none */
    const float *residual; /* what is still to be added to the block's input: mid of the one before; NULL: nothing */
    ql_pass *pass;      /* its buffers */
    ql_workers *workers;
} ql_block_call;

/* Layers that share x, from q and from gate on. */
enum { QL_WITH_Q = 3, QL_WITH_GATE = 2 };

/* What the linear layers of the blocks need at most, beside what *need and *work say already: scratch, and floats of
 * ql_pass.work. */
typedef struct ql_block_size {
    size_t tokens, threads;
    float dropout;
} ql_block_size;
void ql_blocks_need(const ql_block *blocks, size_t count, const ql_block_size *size, ql_scratch *need, size_t *work);

/* saved->x += call->residual; its norm into pass->norm; q, k (normed and turned) and v from it. */
void ql_block_qkv(const ql_block_call *call, ql_saved *saved);

/* From saved->att to out[m][D], which may be saved->x when no backward pass follows. The block's output is the sum of out
 * and saved->mid: whoever reads it adds them. */
void ql_block_tail(const ql_block_call *call, ql_saved *saved, float *out);

/* `attention` is that of the layer (ql_model_attention). */
void ql_block_forward(const ql_block_call *call, const ql_attention *attention, ql_saved *saved, float *out);

/* pass->d is the gradient of the block's output on entry and of its input on return (unless it is the first
 * block, below which nothing is trained). Uses up what `saved` holds. */
void ql_block_backward(const ql_block_call *call, const ql_attention *attention, ql_saved *saved);

/* The attention of a layer over these sequences. */
ql_attention ql_model_attention(const ql_model *model, size_t layer, size_t sequences, const size_t *start);

float ql_embedding_scale(const ql_model_config *config);

#endif
