/* What a transformer does besides its linear layers, forward and backward, on plain fp32 arrays.
 *
 * Arrays are row-major and token-major: row t of an array is one token, ld* floats from the next.
 * Nothing here allocates or keeps state. Threads split outputs, never sums, so every result has the
 * same bits whatever their number. `workers` may be NULL (this thread alone) except where an
 * operation has a scratch getter: reserve what it says with ql_workers_reserve() while planning. */
#ifndef QL_SRC_MODEL_OPS_H
#define QL_SRC_MODEL_OPS_H

#include "qlora/base.h"
#include "qlora/quant.h"

/* ---- RMSNorm (Zhang and Sennrich 2019): y = x * rstd * w, rstd = 1 / sqrt(mean(x^2) + eps) ---- */

/* A token holds `heads` vectors of d elements one after another, each with a norm of its own; w[d] is
 * shared by them. heads = 1, d = hidden size is a block's norm; Qwen3's q_norm and k_norm have heads > 1. */
typedef struct ql_rmsnorm {
    size_t heads, d;
    const float *w; /* [d], frozen */
    float eps;
} ql_rmsnorm;

/* y[m][heads*d]; y may be x. rstd[m][heads] may be NULL when no backward pass follows. */
void ql_rmsnorm_forward(const ql_rmsnorm *norm, size_t m, const float *x, size_t ldx, float *y, size_t ldy,
                        float *rstd, ql_workers *workers);

/* dx = dL/dx, or dx += with `add`, from dy = dL/dy. It needs the x that went into the forward pass, so
 * a forward pass that a backward pass follows must not write over x. dx may be dy (then without `add`)
 * or x. */
void ql_rmsnorm_backward(const ql_rmsnorm *norm, size_t m, const float *x, size_t ldx, const float *rstd,
                         const float *dy, size_t lddy, float *dx, size_t lddx, bool add, ql_workers *workers);

/* Where numbers go: to fp32 or, where that is not NULL, rounded to bf16. */
typedef struct ql_either {
    float *wide;
    uint16_t *narrow;
} ql_either;

/* A block's norm and what goes before it, in one pass over x, whose rows are d = norm->d apart; heads is 1. */
typedef struct ql_residual {
    float *x;
    const float *add; /* is added to x first; NULL: nothing */
    uint16_t *narrow; /* then x goes here in bf16; NULL: nowhere */
} ql_residual;
void ql_residual_rmsnorm(const ql_rmsnorm *norm, size_t m, const ql_residual *residual, ql_either y, float *rstd,
                         ql_workers *workers);

/* The norm again of an x that waits in bf16, and its backward pass, which adds to dx; in such rows too. */
void ql_rmsnorm_again(const ql_rmsnorm *norm, size_t m, const uint16_t *x, ql_either y, float *rstd,
                      ql_workers *workers);
void ql_rmsnorm_backward_narrow(const ql_rmsnorm *norm, size_t m, const uint16_t *x, const float *rstd, const float *dy,
                                float *dx, ql_workers *workers);

/* ---- Rotary position embedding (Su et al. 2021), Hugging Face's pairs (i, i + head_dim/2) ---- */

typedef struct ql_rope_config {
    size_t head_dim; /* elements of a head that turn, from its first one on; even */
    double theta;    /* rope_theta */
    double linear;   /* rope_scaling of type "linear": its factor; 0: none */
    bool llama3;     /* rope_scaling of type "llama3"; the rest is read only then */
    double factor, low_freq_factor, high_freq_factor, original_max_positions;
    const float *divisors; /* [head_dim/2] of the frequencies, at last; NULL: none */
    double gain;           /* of cosines and sines; 0: 1 */
} ql_rope_config;

/* Cosines and sines of position * frequency, [positions][head_dim/2] each, by ql_rope_fill(). */
typedef struct ql_rope {
    size_t positions, half; /* half = head_dim / 2 of the configuration */
    size_t head_dim;        /* elements of a whole head; those beyond 2 * half stay as they are */
    float *cos, *sin;
} ql_rope;

/* frequency[head_dim/2] in radians a position, as transformers' default and llama3 rope compute them. */
void ql_rope_frequencies(const ql_rope_config *config, double *frequency);

/* Fills rope->cos and rope->sin, which the caller allocated with rope->positions and rope->half set. */
void ql_rope_fill(const ql_rope *rope, const ql_rope_config *config, ql_workers *workers);

/* The heads of q or k: vectors one after another in each token's row, rows ld apart. */
typedef struct ql_heads {
    size_t heads;
    float *x; /* what is turned, in place */
    size_t ld;
    const float *raw; /* [heads] before their norm, in rows as far apart; without one not read */
    const float *w;   /* [head_dim] of the norm (Qwen3, Gemma 3); NULL: none */
    float *rstd;      /* [m][heads] of the norm; NULL when no backward pass follows */
} ql_heads;

/* x = norm of raw, which may be x, turned by the token's position, of q and k at once. A NULL rope: no turn.
 * position[m] < rope->positions. All norms have the same eps. */
void ql_heads_forward(const ql_rope *rope, size_t head_dim, float eps, size_t m, const uint32_t *position,
                      const ql_heads *arrays, size_t count, ql_workers *workers);

/* x, a gradient, is turned back and goes back through the norm, for which raw and rstd are those of the forward pass.
 */
void ql_heads_backward(const ql_rope *rope, size_t head_dim, size_t m, const uint32_t *position, const ql_heads *arrays,
                       size_t count, ql_workers *workers);

/* ---- Gated units (Shazeer 2020): act = f(gate) * up ---- */

typedef enum ql_glu {
    QL_SWIGLU, /* f(z) = z / (1 + exp(-z)) */
    QL_GEGLU,  /* f(z) = z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2 (Gemma) */
    QL_GLUS
} ql_glu;

/* gate and up as they wait in bf16. */
typedef struct ql_glu_waiting {
    uint16_t *gate, *up;
} ql_glu_waiting;

/* gate and up, rows ldgate and ldup apart. Where `waiting` is not NULL they are read from there, in rows as far apart,
 * and the others are not. */
typedef struct ql_glu_in {
    const float *gate, *up;
    size_t ldgate, ldup;
    ql_glu_waiting waiting;
} ql_glu_in;

/* d elements a token. act may be gate or up in fp32. Unless `waiting` is NULL gate and up, in fp32, go there too. */
void ql_glu_forward(ql_glu glu, size_t m, size_t d, const ql_glu_in *in, ql_either act, size_t ldact,
                    const ql_glu_waiting *waiting, ql_workers *workers);

/* What the backward pass makes, all in fp32 or all in bf16: dgate and dup, in rows ld apart, and act again, in rows of
 * d, unless it is nowhere. dgate and dup may each be any of dact, gate and up that is as wide (not the same one). */
typedef struct ql_glu_out {
    ql_either dgate, dup, act;
    size_t ld;
} ql_glu_out;
void ql_glu_backward(ql_glu glu, size_t m, size_t d, const ql_glu_in *in, const float *dact, size_t lddact,
                     const ql_glu_out *out, ql_workers *workers);

/* ---- Causal attention with grouped heads over packed sequences ---- */

/* Tokens of several sequences lie one after another; sequence s is tokens [start[s], start[s+1]), and
 * a token sees itself and the earlier tokens of its own sequence, of which a window leaves the last window - 1
 * (Mistral). start[0] = 0, start[sequences] = m. With a soft cap the scores are cap * tanh(scale q k^T / cap) (Gemma 2).
 * Query head h reads key/value head h / (heads / kv_heads); head h is columns [h*head_dim, (h+1)*head_dim). */
typedef struct ql_attention {
    size_t heads, kv_heads, head_dim; /* heads is a multiple of kv_heads; head_dim 1..256 */
    float scale;                      /* of q k^T, usually 1 / sqrt(head_dim) */
    size_t sequences;
    const size_t *start; /* [sequences + 1] */
    size_t window;       /* positions that a token sees, its own among them; 0: all */
    float softcap;       /* 0: none */
    bool bf16;     /* products may round their inputs to bf16 where this processor is faster that way */
} ql_attention;

/* For up to m tokens in whatever sequences (config's are not read), or of a cache. Where products round, memory that grows
 * with m holds their inputs as tiles take them; the backward pass, which works on several parts of a sequence at a time
 * and adds up what they give, needs such memory anyway. */
ql_scratch ql_attention_scratch(const ql_attention *config, size_t m, bool backward);

/* o[m][heads*head_dim] from q[m][heads*head_dim], k and v[m][kv_heads*head_dim]. lse[heads][m], the
 * logarithm of each row's softmax denominator, is for the backward pass and may be NULL. o may be q.
 * The softmax goes block by block (FlashAttention, Dao 2023): no [m x m] array exists. */
void ql_attention_forward(const ql_attention *config, const float *q, size_t ldq, const float *k, const float *v,
                          size_t ldkv, float *o, size_t ldo, float *lse, ql_workers *workers);

/* The arrays of a backward pass: inputs and results of the forward pass, and dout = dL/do, in; dq, dk,
 * dv out, written, not added to. Each may lie over an input of its size whose rows are as far apart. */
typedef struct ql_attention_grads {
    const float *q, *k, *v, *o, *dout, *lse;
    float *dq, *dk, *dv;
    size_t ldq, ldkv, ldo, lddo, lddq, lddkv; /* k and v share one, dk and dv share one */
} ql_attention_grads;

void ql_attention_backward(const ql_attention *config, const ql_attention_grads *g, ql_workers *workers);

/* One sequence with a cache: q[n] of the n newest tokens, at positions pos .. pos+n-1, against k and
 * v[pos + n][ldkv], whose last n rows are theirs. config->sequences and start are not read; o may be q.
 * Scratch as of the forward pass of pos + n tokens. */
void ql_attention_decode(const ql_attention *config, size_t pos, size_t n, const float *q, size_t ldq, const float *k,
                         const float *v, size_t ldkv, float *o, size_t ldo, ql_workers *workers);

/* ---- Sums, and activations that wait in bf16 ---- */

/* y[count] += x[count], which do not overlap. */
void ql_add(size_t count, const float *x, float *y, ql_workers *workers);

/* An array in both widths. */
typedef struct ql_waiting {
    float *wide;
    uint16_t *narrow;
    size_t count;
} ql_waiting;

/* narrow = bf16(wide), to nearest even, of several arrays. */
void ql_waiting_narrow(const ql_waiting *arrays, size_t count, ql_workers *workers);
void ql_waiting_widen(const ql_waiting *arrays, size_t count, ql_workers *workers); /* wide = narrow */

/* ---- Embedding ---- */

/* y[t] = scale times row ids[t] of the table W[vocabulary][hidden]; 0 <= ids[t] < vocabulary. */
void ql_embed(const ql_weight *table, float scale, size_t m, const int32_t *ids, float *y, size_t ldy,
              ql_workers *workers);

/* ---- Cross-entropy joined with the LM head ---- */

typedef struct ql_loss {
    const ql_weight *head; /* W[vocabulary][hidden] */
    size_t m;
    const float *x; /* [m][hidden], after the final norm */
    size_t ldx;
    const int32_t *target; /* [m] next token; any negative one is masked: dropped before the head */
    float grad_scale;      /* dx is the gradient of grad_scale * sum */
    float *dx;             /* [m][hidden], zero where masked; NULL: loss only */
    size_t lddx;
    float *token_loss; /* [m], zero where masked; may be NULL */
    float softcap;     /* logits are softcap * tanh(x W^T / softcap) (Gemma 2); 0: none */
} ql_loss;

/* x[n] = cap tanh(x / cap), for logits that no loss is made of. */
void ql_softcap(float *x, size_t n, float cap);

typedef struct ql_loss_sum {
    double sum;       /* of -log softmax(x W^T)[target] over the unmasked tokens, in nats */
    size_t count;     /* unmasked tokens */
    size_t first_bad; /* first token with a logit that is not finite, else m; the rest is then not to be used */
} ql_loss_sum;

/* Bytes of `buffer` (aligned to 64) for up to m tokens, less without a gradient. Logits have no place there: they live in
 * the workers' scratch, some hundreds of words of some hundreds of tokens at a time. */
size_t ql_loss_buffer_bytes(const ql_weight *head, size_t m, bool gradient);
ql_scratch ql_loss_scratch(const ql_weight *head, size_t m);
ql_loss_sum ql_loss_run(const ql_loss *loss, void *buffer, ql_workers *workers);

#endif
