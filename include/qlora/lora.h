/* Low-rank adapters over frozen weights (LoRA: Hu et al. 2021; QLoRA: Dettmers et al. 2023).
 *
 *     y = x W^T + b + s * (dropout(x) A^T) B^T        A[r][k], B[n][r], s = alpha/r or alpha/sqrt(r)
 *
 * Letters: m tokens, n outputs, k inputs, r rank. All matrices are row-major. Nothing here opens a file. */
#ifndef QLORA_LORA_H
#define QLORA_LORA_H

#include "qlora/base.h"
#include "qlora/quant.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the layer descriptor: what a layer will hold, before it exists ---- */

typedef struct ql_lora_desc {
    size_t in_features, out_features, rank;
    double alpha;
    bool use_rslora;     /* s = alpha / sqrt(r) (Kalajdzievski 2023) instead of alpha / r */
    double dropout;      /* of the adapter's input, in [0, 1) */
    unsigned quant_bits; /* 4 or 8; must be those of `format` */
    ql_code format;      /* QL_CODE_INT4, NF4, FP4 or INT8 */
    uint32_t group_size; /* 32, 64, 128 or 256 */
    bool double_quant;
} ql_lora_desc;

/* Groups of 64, double quantization, no dropout, alpha/r. */
QL_API ql_lora_desc ql_lora_desc_int4(size_t in_features, size_t out_features, size_t rank, double alpha);
QL_API ql_lora_desc ql_lora_desc_nf4(size_t in_features, size_t out_features, size_t rank, double alpha);
QL_API ql_lora_desc ql_lora_desc_int8(size_t in_features, size_t out_features, size_t rank, double alpha);

/* QL_OK when a layer can be made of it; the message names the field and its value otherwise. */
QL_API ql_status ql_lora_desc_check(const ql_lora_desc *desc, ql_error *err);

/* The descriptor must pass the check; the byte counts are 0 and the ratio 0 when it does not. */
QL_API ql_format ql_lora_format(const ql_lora_desc *desc); /* of the base weight */
QL_API double ql_lora_scaling(const ql_lora_desc *desc);   /* s */
QL_API size_t ql_lora_quantized_base_bytes(const ql_lora_desc *desc); /* codes, scales and their constants, as held */
QL_API size_t ql_lora_adapter_bytes(const ql_lora_desc *desc);        /* A and B in FP16 */

/* 1 - (quantized base + adapter) / (base in dense FP16). */
QL_API double ql_lora_vram_savings_ratio(const ql_lora_desc *desc);

/* ---- adapters: all of a model's in one set of flat arrays, so that the optimizer is one pass ---- */

/* One adapter's slices of the set. A NULL grad or master: for inference only. */
typedef struct ql_adapter {
    size_t k, n, r;
    float scaling;             /* s */
    size_t offset, count;      /* its parameters in the flat arrays: A, then B, then with DoRA m */
    uint16_t *a, *b;           /* fp16 A[r][k], B[n][r]: what the products use */
    float *master_a, *master_b;
    float *grad_a, *grad_b;
    ql_weight *view_a, *view_b; /* a and b as dense weights; owned by the set */
    bool dora; /* what follows, [n] each; NULL without */
    float *magnitude, *grad_m; /* m in fp32, among the masters of a trainable set */
    float *gain;               /* m / |W + s B A| of each row, which the products are multiplied by */
    float *norm;               /* |W + s B A| */
    double *base_square;       /* |W|^2 */
    float *work;               /* of ql_dora_refresh; shared by the set */
} ql_adapter;

typedef struct ql_adapters {
    size_t layers;
    ql_adapter *layer; /* [layers] */
    size_t count;      /* parameters; A and B of layer 0 (and m, with DoRA), A of layer 1, ... without gaps */
    uint16_t *value;   /* [count] fp16 */
    float *master;     /* [count] fp32, NULL when not trainable */
    float *grad;       /* [count] fp32, NULL when not trainable */
    size_t dora_bytes; /* what DoRA needs beside them */
} ql_adapters;

typedef struct ql_adapter_shape {
    size_t in_features, out_features, rank;
    double scaling;
    bool dora;
} ql_adapter_shape;

/* Parameters of such a set; QL_ERR_SHAPE names a layer that is empty or too large. */
QL_API ql_status ql_adapters_measure(size_t *count, const ql_adapter_shape *shapes, size_t layers, ql_error *err);

/* A set of zeroed adapters. Trainable ones have masters and gradients too. The caller owns *out. */
QL_API ql_status ql_adapters_create(ql_adapters **out, const ql_adapter_shape *shapes, size_t layers, bool trainable,
                                    ql_error *err);

/* The same without its numbers, for planning: value, master and grad are NULL. */
QL_API ql_status ql_adapters_plan(ql_adapters **out, const ql_adapter_shape *shapes, size_t layers, ql_error *err);

/* PEFT's start: A uniform in (-1/sqrt(k), 1/sqrt(k)), B = 0. Layer i draws from a stream of its own. */
QL_API void ql_adapters_init(ql_adapters *set, uint64_t seed);

/* PEFT's "gaussian": A normal of deviation 1/r, B = 0. */
QL_API void ql_adapters_gaussian(ql_adapters *set, uint64_t seed);

/* value = fp16(src) of parameters [first, first + count), and the masters when there are any. */
QL_API void ql_adapters_set(ql_adapters *set, size_t first, size_t count, const float *src);

QL_API void ql_adapters_zero_grad(ql_adapters *set, ql_workers *workers);
QL_API size_t ql_adapters_bytes(const ql_adapters *set); /* values, masters, gradients, and what DoRA adds */
QL_API void ql_adapters_destroy(ql_adapters *set);       /* NULL is fine */

/* ---- a linear layer: base and adapter ---- */

typedef struct ql_linear {
    const ql_weight *base;
    const float *bias;         /* [n], or NULL */
    const ql_adapter *adapter; /* NULL: none */
} ql_linear;

/* Dropout of the adapter's input: kept elements are scaled by 1/(1-p). The mask is a pure function of these
 * numbers and of the element's place in x, so that the backward pass makes it again: give it the same ones.
 * `step` counts forward passes (micro-batches) and `layer` (below 2^24) tells the layers of a model apart. */
typedef struct ql_dropout {
    float p;
    uint64_t seed, step, layer;
} ql_dropout;

/* The scratch of the workers for up to m tokens (forward and backward), and the floats of `work` below.
 * p is the dropout that will be used at most; 0 needs much less. */
QL_API ql_scratch ql_linear_scratch(const ql_linear *layer, size_t m, size_t threads);
QL_API size_t ql_linear_work(const ql_linear *layer, size_t m, float p);

/* y[m][n] from x[m][k], rows ldx and ldy floats apart. h[m][r] receives s * dropout(x) A^T for the backward
 * pass (NULL without an adapter). A NULL dropout: none. */
QL_API void ql_linear_forward(const ql_linear *layer, size_t m, const float *x, size_t ldx, float *y, size_t ldy,
                              float *h, const ql_dropout *dropout, float *work, ql_workers *workers);

/* Adds to the adapter's gradients (when it has any) and, unless dx is NULL, writes dx[m][k] or adds to it.
 * x, h and dropout are those of the forward pass; dy[m][n]. dx overlaps neither x nor dy. */
QL_API void ql_linear_backward(const ql_linear *layer, size_t m, const float *x, size_t ldx, const float *dy,
                               size_t lddy, const float *h, float *dx, size_t lddx, bool add_dx,
                               const ql_dropout *dropout, float *work, ql_workers *workers);

/* A layer among some that share x, as q, k and v do. */
typedef struct ql_linear_use {
    const ql_linear *layer;
    float *y;         /* [m][n], rows ldy elements apart: of the forward pass */
    uint16_t *narrow_y; /* y in bf16, in place of y, where ql_linears_give_bf16() and x is in bf16 too; else NULL */
    const float *dy;  /* the same of the backward pass */
    const uint16_t *narrow_dy; /* dy in bf16, in place of dy, where ql_linears_take_bf16(); else NULL */
    size_t ldy;
    float *h;         /* [m][r], which the forward pass writes and the backward pass reads; NULL without an adapter */
    const ql_dropout *dropout; /* NULL: none */
} ql_linear_use;
enum { QL_LINEARS = 3 };

/* The same for up to QL_LINEARS layers at once: forward they read the same x, backward dx is the sum of what each gives.
 * Fewer parallel regions, and x is brought into a kernel's order once. Scratch and work are those of the group. */
QL_API ql_scratch ql_linears_scratch(const ql_linear *const *layers, size_t count, size_t m, size_t threads);
QL_API size_t ql_linears_work(const ql_linear *const *layers, size_t count, size_t m, float p);
QL_API void ql_linears_forward(const ql_linear_use *uses, size_t count, size_t m, const float *x, size_t ldx,
                               float *work, ql_workers *workers);
QL_API void ql_linears_backward(const ql_linear_use *uses, size_t count, size_t m, const float *x, size_t ldx,
                                float *dx, size_t lddx, bool add_dx, float *work, ql_workers *workers);

/* Whether m tokens of x, and dy, may be in bf16, because all that is computed of them rounds them to it: without
 * dropout. */
QL_API bool ql_linears_take_bf16(const ql_linear *const *layers, size_t count, size_t m);
/* And whether y may be: the same, and no biases. */
QL_API bool ql_linears_give_bf16(const ql_linear *const *layers, size_t count, size_t m);
QL_API void ql_linears_forward_bf16(const ql_linear_use *uses, size_t count, size_t m, const uint16_t *x, size_t ldx,
                                    float *work, ql_workers *workers);
QL_API void ql_linears_backward_bf16(const ql_linear_use *uses, size_t count, size_t m, const uint16_t *x, size_t ldx,
                                     float *dx, size_t lddx, bool add_dx, float *work, ql_workers *workers);

/* The same with an x that is made late: only make(self) fills it in (and may do more), which is called when dx is
 * complete. x is in fp32 or, where `narrow` is not NULL, in bf16. Not with dropout or DoRA, which read x before. */
typedef struct ql_late {
    void (*make)(void *self);
    void *self;
} ql_late;
QL_API bool ql_linears_may_be_late(const ql_linear_use *uses, size_t count);
QL_API void ql_linears_backward_late(const ql_linear_use *uses, size_t count, size_t m, const float *x,
                                     const uint16_t *narrow, size_t ldx, float *dx, size_t lddx, const ql_late *late,
                                     float *work, ql_workers *workers);

/* dst[rows][k] += rows [row, row + rows) of s B A in fp32, from the masters when there are any. Rows of B that are 0
 * leave the bits of dst. With DoRA each row is then brought to its magnitude, which leaves a row of it already. */
QL_API void ql_adapter_add_rows(const ql_adapter *adapter, size_t row, size_t rows, float *dst, size_t ld);

/* ---- DoRA (Liu et al. 2024): y = g (W x + s B A x) + b, g = m / |W + s B A| for each row ----
 *
 * The norms are those of the base as it is held, quantized or not, and are taken in blocks: no dense copy is made. The
 * backward pass takes them as constants, as PEFT does. There is no dropout with it. */

/* Takes |W| of each row, in blocks; with `fresh` they become the magnitudes, which is PEFT's start with B = 0. Call it
 * once, before a refresh. The base has the adapter's shape. */
QL_API ql_status ql_dora_start(const ql_linear *layer, bool fresh, ql_workers *workers, ql_error *err);

/* Norms and gains anew, after A, B or m have changed. The workers hold ql_linear_scratch. */
QL_API void ql_dora_refresh(const ql_linear *layer, ql_workers *workers);

/* dst[rows][k] = rows [row, row + rows) of W + s B A in fp32, from the masters when there are any (with DoRA: of that
 * brought to its magnitudes). */
QL_API void ql_linear_merge_rows(const ql_linear *layer, size_t row, size_t rows, float *dst, size_t ld);

#ifdef __cplusplus
}
#endif
#endif
