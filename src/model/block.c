/* One transformer block, forward and backward, with pre-norms and two residuals. */
#include "model/pass.h"

#include <math.h>

#include "base/workers.h"

static const ql_dropout *dropout_of(const ql_block_call *call, ql_module module, ql_dropout *own)
{
    if (!call->dropout)
        return NULL;
    *own = *call->dropout;
    own->layer = call->index * QL_MODULES + module;
    return own;
}

static void linear(const ql_block_call *call, ql_module module, const float *x, ql_saved *saved, float *y)
{
    const ql_model_config *c = &call->model->config;
    ql_dropout own;
    ql_mark(call->workers, QL_PART_FORWARD);
    ql_linear_forward(&call->model->blocks[call->index].linear[module], call->m, x, ql_module_inputs(c, module), y,
                      ql_module_outputs(c, module), saved->h[module], dropout_of(call, module, &own), call->pass->work,
                      call->workers);
    ql_mark(call->workers, QL_PART_OTHER);
}

static void linear_backward(const ql_block_call *call, ql_module module, const float *x, const float *dy,
                            ql_saved *saved, float *dx, bool add)
{
    const ql_model_config *c = &call->model->config;
    ql_dropout own;
    ql_mark(call->workers, QL_PART_BACKWARD);
    ql_linear_backward(&call->model->blocks[call->index].linear[module], call->m, x, ql_module_inputs(c, module), dy,
                       ql_module_outputs(c, module), saved->h[module], dx, ql_module_inputs(c, module), add,
                       dropout_of(call, module, &own), call->pass->work, call->workers);
    ql_mark(call->workers, QL_PART_OTHER);
}

/* ---- norms and rope ---- */

static ql_rmsnorm norm_of(const ql_model *model, const float *w, size_t heads, size_t d)
{
    return (ql_rmsnorm){heads, d, w, (float)model->config.rms_norm_eps};
}

static void block_norm(const ql_block_call *call, const float *w, const float *x)
{
    size_t d = call->model->config.hidden_size;
    ql_rmsnorm norm = norm_of(call->model, w, 1, d);
    ql_rmsnorm_forward(&norm, call->m, x, d, call->pass->norm, d, call->pass->rstd, call->workers);
}

static void block_norm_backward(const ql_block_call *call, const float *w, const float *x)
{
    size_t d = call->model->config.hidden_size;
    ql_rmsnorm norm = norm_of(call->model, w, 1, d);
    ql_rmsnorm_backward(&norm, call->m, x, d, call->pass->rstd, call->pass->dnorm, d, call->pass->d, d, true,
                        call->workers);
}

/* Norm (Qwen3) and rope of the heads in raw, into turned. */
static void turn_heads(const ql_block_call *call, const float *w, size_t heads, const float *raw, float *rstd,
                       float *turned)
{
    size_t hd = call->model->config.head_dim, ld = heads * hd;
    if (w) {
        ql_rmsnorm norm = norm_of(call->model, w, heads, hd);
        ql_rmsnorm_forward(&norm, call->m, raw, ld, turned, ld, rstd, call->workers);
    }
    ql_rope_rotate(&call->pass->rope, call->m, call->position, heads, turned, ld, false, call->workers);
}

static void turn_heads_back(const ql_block_call *call, const float *w, size_t heads, const float *raw,
                            const float *rstd, float *grad)
{
    size_t hd = call->model->config.head_dim, ld = heads * hd;
    ql_rope_rotate(&call->pass->rope, call->m, call->position, heads, grad, ld, true, call->workers);
    if (w) {
        ql_rmsnorm norm = norm_of(call->model, w, heads, hd);
        ql_rmsnorm_backward(&norm, call->m, raw, ld, rstd, grad, ld, grad, ld, false, call->workers);
    }
}

/* ---- the block ---- */

ql_attention ql_model_attention(const ql_model *model, size_t sequences, const size_t *start)
{
    const ql_model_config *c = &model->config;
    return (ql_attention){c->heads, c->kv_heads, c->head_dim, 1.0f / sqrtf((float)c->head_dim), sequences, start, 0, 0};
}

void ql_block_qkv(const ql_block_call *call, ql_saved *saved)
{
    const ql_block *block = &call->model->blocks[call->index];
    const ql_model_config *c = &call->model->config;
    block_norm(call, block->input_norm, saved->x);
    linear(call, QL_Q, call->pass->norm, saved, saved->q_raw);
    linear(call, QL_K, call->pass->norm, saved, saved->k_raw);
    linear(call, QL_V, call->pass->norm, saved, saved->v);
    turn_heads(call, block->q_norm, c->heads, saved->q_raw, saved->rstd_q, saved->q);
    turn_heads(call, block->k_norm, c->kv_heads, saved->k_raw, saved->rstd_k, saved->k);
}

void ql_block_tail(const ql_block_call *call, ql_saved *saved, float *out)
{
    const ql_block *block = &call->model->blocks[call->index];
    size_t d = call->model->config.hidden_size, f = call->model->config.intermediate_size;
    linear(call, QL_O, saved->att, saved, saved->mid);
    ql_add(call->m * d, saved->x, saved->mid, call->workers);
    block_norm(call, block->post_norm, saved->mid);
    linear(call, QL_GATE, call->pass->norm, saved, saved->gate);
    linear(call, QL_UP, call->pass->norm, saved, saved->up);
    ql_glu_forward(QL_SWIGLU, call->m, f, saved->gate, f, saved->up, f, call->pass->act, f, call->workers);
    linear(call, QL_DOWN, call->pass->act, saved, out);
    ql_add(call->m * d, saved->mid, out, call->workers);
}

void ql_block_forward(const ql_block_call *call, const ql_attention *attention, ql_saved *saved, float *out)
{
    size_t q = attention->heads * attention->head_dim, kv = attention->kv_heads * attention->head_dim;
    ql_block_qkv(call, saved);
    ql_mark(call->workers, QL_PART_ATTENTION);
    ql_attention_forward(attention, saved->q, q, saved->k, saved->v, kv, saved->att, q, saved->lse, call->workers);
    ql_mark(call->workers, QL_PART_OTHER);
    ql_block_tail(call, saved, out);
}

static void mlp_backward(const ql_block_call *call, ql_saved *saved)
{
    const ql_block *block = &call->model->blocks[call->index];
    ql_pass *pass = call->pass;
    size_t f = call->model->config.intermediate_size;
    ql_glu_forward(QL_SWIGLU, call->m, f, saved->gate, f, saved->up, f, pass->act, f, call->workers);
    linear_backward(call, QL_DOWN, pass->act, pass->d, saved, pass->dact, false);
    float *dgate = saved->gate, *dup = saved->up;
    ql_glu_backward(QL_SWIGLU, call->m, f, saved->gate, f, saved->up, f, pass->dact, f, dgate, f, dup, f, call->workers);
    block_norm(call, block->post_norm, saved->mid);
    linear_backward(call, QL_GATE, pass->norm, dgate, saved, pass->dnorm, false);
    linear_backward(call, QL_UP, pass->norm, dup, saved, pass->dnorm, true);
    block_norm_backward(call, block->post_norm, saved->mid);
}

void ql_block_backward(const ql_block_call *call, const ql_attention *attention, ql_saved *saved)
{
    const ql_block *block = &call->model->blocks[call->index];
    const ql_model_config *c = &call->model->config;
    ql_pass *pass = call->pass;
    size_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    mlp_backward(call, saved);
    linear_backward(call, QL_O, saved->att, pass->d, saved, pass->datt, false);
    float *dq = pass->datt;
    ql_attention_grads grads = {
        .q = saved->q,
        .k = saved->k,
        .v = saved->v,
        .o = saved->att,
        .dout = pass->datt,
        .lse = saved->lse,
        .dq = dq,
        .dk = pass->dk,
        .dv = pass->dv,
        .ldq = q,
        .ldkv = kv,
        .ldo = q,
        .lddo = q,
        .lddq = q,
        .lddkv = kv,
    };
    ql_mark(call->workers, QL_PART_ATTENTION);
    ql_attention_backward(attention, &grads, call->workers);
    ql_mark(call->workers, QL_PART_OTHER);
    turn_heads_back(call, block->q_norm, c->heads, saved->q_raw, saved->rstd_q, dq);
    turn_heads_back(call, block->k_norm, c->kv_heads, saved->k_raw, saved->rstd_k, pass->dk);
    block_norm(call, block->input_norm, saved->x);
    float *dx = call->index > 0 ? pass->dnorm : NULL; /* nothing is trained below the first block */
    linear_backward(call, QL_Q, pass->norm, dq, saved, dx, false);
    linear_backward(call, QL_K, pass->norm, pass->dk, saved, dx, true);
    linear_backward(call, QL_V, pass->norm, pass->dv, saved, dx, true);
    if (dx)
        block_norm_backward(call, block->input_norm, saved->x);
}
