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

/* The linear layers that share x, from `first` on: their order is that of ql_module. */
typedef struct linears {
    ql_linear_use use[QL_LINEARS];
    ql_dropout dropout[QL_LINEARS];
    size_t count; /* of those that are there: fused ones hold others */
} linears;

static void list_linears(linears *l, const ql_block_call *call, ql_module first, size_t count, ql_saved *saved)
{
    const ql_model_config *c = &call->model->config;
    l->count = 0;
    for (size_t i = 0; i < count; i++) {
        ql_module module = first + (ql_module)i;
        if (!ql_module_present(c, module))
            continue;
        l->use[l->count] = (ql_linear_use){
            .layer = &call->model->blocks[call->index].linear[module],
            .ldy = ql_module_outputs(c, module),
            .h = saved->h[module],
            .dropout = dropout_of(call, module, &l->dropout[i]),
        };
        l->count++;
    }
}

/* A buffer of the pass in the width in which the layers that share it as x read it. Gate and up read bf16 where they
 * give it too. */
static ql_either buffer_for(const ql_block_call *call, ql_module first, size_t count, float *buffer)
{
    const ql_linear *layer[QL_LINEARS];
    size_t present = 0;
    for (size_t i = 0; i < count; i++)
        if (ql_module_present(&call->model->config, first + (ql_module)i))
            layer[present++] = &call->model->blocks[call->index].linear[first + i];
    bool narrow = first == QL_GATE ? ql_linears_give_bf16(layer, present, call->m)
                                   : ql_linears_take_bf16(layer, present, call->m);
    if (narrow && !(call->dropout && call->dropout->p > 0))
        return (ql_either){.narrow = (uint16_t *)(void *)buffer};
    return (ql_either){.wide = buffer};
}

/* y[i] is what module `first` + i gives. */
static void linear(const ql_block_call *call, ql_module first, size_t count, ql_either x, ql_saved *saved,
                   const ql_either *y)
{
    const ql_model_config *c = &call->model->config;
    size_t inputs = ql_module_inputs(c, first);
    linears l;
    list_linears(&l, call, first, count, saved);
    for (size_t i = 0; i < l.count; i++)
        l.use[i].y = y[i].wide, l.use[i].narrow_y = y[i].narrow;
    if (x.narrow)
        ql_linears_forward_bf16(l.use, l.count, call->m, x.narrow, inputs, call->pass->work, call->workers);
    else
        ql_linears_forward(l.use, l.count, call->m, x.wide, inputs, call->pass->work, call->workers);
    ql_mark(call->workers, QL_PART_OTHER);
}

static void linear_backward(const ql_block_call *call, ql_module first, size_t count, ql_either x, const ql_either *dy,
                            ql_saved *saved, float *dx)
{
    const ql_model_config *c = &call->model->config;
    size_t inputs = ql_module_inputs(c, first);
    float *work = call->pass->work;
    linears l;
    list_linears(&l, call, first, count, saved);
    for (size_t i = 0; i < l.count; i++)
        l.use[i].dy = dy[i].wide, l.use[i].narrow_dy = dy[i].narrow;
    if (x.narrow)
        ql_linears_backward_bf16(l.use, l.count, call->m, x.narrow, inputs, dx, inputs, false, work, call->workers);
    else
        ql_linears_backward(l.use, l.count, call->m, x.wide, inputs, dx, inputs, false, work, call->workers);
    ql_mark(call->workers, QL_PART_OTHER);
}

/* ---- norms and rope ---- */

static ql_rmsnorm norm_of(const ql_model *model, const float *w, size_t heads, size_t d)
{
    return (ql_rmsnorm){heads, d, w, (float)model->config.rms_norm_eps};
}

/* x += add, unless that is NULL, and its norm into y; x in bf16 to where it waits. */
static void block_norm(const ql_block_call *call, const float *w, float *x, const float *add, uint16_t *narrow,
                       ql_either y)
{
    ql_rmsnorm norm = norm_of(call->model, w, 1, call->model->config.hidden_size);
    ql_residual_rmsnorm(&norm, call->m, &(ql_residual){x, add, narrow}, y, call->pass->rstd, call->workers);
}

/* The same norm in the backward pass, from where x waits. */
static void block_norm_again(const ql_block_call *call, const float *w, float *x, const uint16_t *narrow, ql_either y)
{
    ql_rmsnorm norm = norm_of(call->model, w, 1, call->model->config.hidden_size);
    if (narrow)
        ql_rmsnorm_again(&norm, call->m, narrow, y, call->pass->rstd, call->workers);
    else
        block_norm(call, w, x, NULL, NULL, y);
}

static void block_norm_backward(const ql_block_call *call, const float *w, const float *x, const uint16_t *narrow)
{
    ql_pass *pass = call->pass;
    size_t d = call->model->config.hidden_size;
    ql_rmsnorm norm = norm_of(call->model, w, 1, d);
    if (narrow)
        ql_rmsnorm_backward_narrow(&norm, call->m, narrow, pass->rstd, pass->dnorm, pass->d, call->workers);
    else
        ql_rmsnorm_backward(&norm, call->m, x, d, pass->rstd, pass->dnorm, d, pass->d, d, true, call->workers);
}

/* The norm after attention or MLP (Gemma), from what they gave into y. */
static void out_norm(const ql_block_call *call, const float *w, const float *x, float *y)
{
    size_t d = call->model->config.hidden_size;
    ql_rmsnorm norm = norm_of(call->model, w, 1, d);
    ql_rmsnorm_forward(&norm, call->m, x, d, y, d, call->pass->rstd, call->workers);
}

/* The gradient of what attention or MLP gave, before such a norm: pass->d itself where there is none. */
static ql_either out_norm_backward(const ql_block_call *call, const float *w, const float *x)
{
    ql_pass *pass = call->pass;
    size_t d = call->model->config.hidden_size;
    if (!w)
        return (ql_either){.wide = pass->d};
    ql_rmsnorm norm = norm_of(call->model, w, 1, d);
    out_norm(call, w, x, pass->norm); /* for its rstd */
    ql_rmsnorm_backward(&norm, call->m, x, d, pass->rstd, pass->d, d, pass->dnorm, d, false, call->workers);
    return (ql_either){.wide = pass->dnorm};
}

/* The rotation of the block at hand; NULL: it has none. */
static const ql_rope *rope_of(const ql_block_call *call)
{
    const ql_model_config *c = &call->model->config;
    if (ql_layer_in(&c->unturned, call->index))
        return NULL;
    return c->local_rope_theta > 0 && ql_layer_in(&c->windowed, call->index) ? &call->pass->local_rope
                                                                             : &call->pass->rope;
}

/* The norm (Qwen3, Gemma 3) and rope of q and k: of these themselves, or of their gradients. */
static void list_heads(const ql_block_call *call, const ql_saved *saved, float *q, float *k, ql_heads heads[2])
{
    const ql_block *block = &call->model->blocks[call->index];
    const ql_model_config *c = &call->model->config;
    heads[0] = (ql_heads){c->heads, q, ql_ldq(c), saved->q_raw, block->q_norm, saved->rstd_q};
    heads[1] = (ql_heads){c->kv_heads, k, ql_ldkv(c), saved->k_raw, block->k_norm, saved->rstd_k};
}

static void turn_heads(const ql_block_call *call, const ql_saved *saved)
{
    const ql_model_config *c = &call->model->config;
    const ql_rope *rope = rope_of(call);
    ql_heads heads[2];
    list_heads(call, saved, saved->q, saved->k, heads);
    if (rope || heads[0].w || heads[1].w)
        ql_heads_forward(rope, c->head_dim, (float)c->rms_norm_eps, call->m, call->position, heads, 2, call->workers);
}

static void turn_heads_back(const ql_block_call *call, const ql_saved *saved)
{
    const ql_rope *rope = rope_of(call);
    ql_heads heads[2];
    list_heads(call, saved, call->pass->dq, call->pass->dk, heads);
    if (rope || heads[0].w || heads[1].w)
        ql_heads_backward(rope, call->model->config.head_dim, call->m, call->position, heads, 2, call->workers);
}

/* ---- the block ---- */

ql_attention ql_model_attention(const ql_model *model, size_t layer, size_t sequences, const size_t *start)
{
    const ql_model_config *c = &model->config;
    return (ql_attention){
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .head_dim = c->head_dim,
        .scale = 1.0f / sqrtf(c->attention_scalar > 0 ? (float)c->attention_scalar : (float)c->head_dim),
        .sequences = sequences,
        .start = start,
        .window = ql_layer_in(&c->windowed, layer) ? c->window : 0,
        .softcap = (float)c->attention_softcap,
        .bf16 = model->bf16,
    };
}

float ql_embedding_scale(const ql_model_config *c)
{
    return c->scaled_embedding ? sqrtf((float)c->hidden_size) : 1;
}

void ql_block_qkv(const ql_block_call *call, ql_saved *saved)
{
    const ql_block *block = &call->model->blocks[call->index];
    ql_either norm = buffer_for(call, QL_Q, QL_WITH_Q, call->pass->norm);
    block_norm(call, block->input_norm, saved->x, call->residual, saved->x_narrow, norm);
    linear(call, QL_Q, QL_WITH_Q, norm, saved,
           (const ql_either[]){{.wide = saved->q_raw}, {.wide = saved->k_raw}, {.wide = saved->v}});
    turn_heads(call, saved);
}

static ql_glu glu_of(const ql_block_call *call)
{
    return call->model->config.gelu ? QL_GEGLU : QL_SWIGLU;
}

/* Where gate and up are made in bf16: where they wait for the backward pass or, where they do not, where they would be
 * in fp32. */
static ql_glu_waiting place_gate_up(const ql_block_call *call, const ql_saved *saved)
{
    const ql_model_config *c = &call->model->config;
    uint16_t *gate = (uint16_t *)(void *)saved->gate, *up = (uint16_t *)(void *)saved->up;
    if (saved->mlp.gate)
        return saved->mlp;
    return (ql_glu_waiting){gate, c->fused ? gate + c->intermediate_size : up};
}

/* gate and up as the layers make them, and for the backward pass. `made`: in bf16, if anywhere. */
static ql_glu_in glu_in(const ql_block_call *call, const ql_saved *saved, ql_glu_waiting made)
{
    size_t ld = ql_ldgate(&call->model->config);
    return (ql_glu_in){saved->gate, saved->up, ld, ld, made};
}

static void activate(const ql_block_call *call, const ql_saved *saved, ql_glu_waiting made, ql_either act)
{
    size_t f = call->model->config.intermediate_size;
    ql_glu_in in = glu_in(call, saved, made);
    bool narrows = saved->mlp.gate && !made.gate;
    ql_glu_forward(glu_of(call), call->m, f, &in, act, f, narrows ? &saved->mlp : NULL, call->workers);
}

void ql_block_tail(const ql_block_call *call, ql_saved *saved, float *out)
{
    const ql_block *block = &call->model->blocks[call->index];
    const ql_model_config *c = &call->model->config;
    ql_either norm = buffer_for(call, QL_GATE, QL_WITH_GATE, call->pass->norm);
    ql_either act = buffer_for(call, QL_DOWN, 1, call->pass->act);
    linear(call, QL_O, 1, (ql_either){.wide = saved->att}, saved,
           &(ql_either){.wide = c->out_norms ? saved->att_out : saved->mid});
    if (c->out_norms)
        out_norm(call, block->att_out_norm, saved->att_out, saved->mid);
    block_norm(call, block->mlp_norm, saved->mid, saved->x, saved->mid_narrow, norm);
    ql_glu_waiting made = norm.narrow ? place_gate_up(call, saved) : (ql_glu_waiting){0};
    linear(call, QL_GATE, QL_WITH_GATE, norm, saved,
           (const ql_either[]){{saved->gate, made.gate}, {saved->up, made.up}});
    activate(call, saved, made, act);
    call->pass->made = made;
    call->pass->act_narrow = act.narrow;
    linear(call, QL_DOWN, 1, act, saved, &(ql_either){.wide = c->out_norms ? saved->mlp_out : out});
    if (c->out_norms)
        out_norm(call, block->mlp_out_norm, saved->mlp_out, out);
}

void ql_block_forward(const ql_block_call *call, const ql_attention *attention, ql_saved *saved, float *out)
{
    const ql_model_config *c = &call->model->config;
    ql_block_qkv(call, saved);
    ql_mark(call->workers, QL_PART_ATTENTION);
    ql_attention_forward(attention, saved->q, ql_ldq(c), saved->k, saved->v, ql_ldkv(c), saved->att,
                         c->heads * c->head_dim, saved->lse, call->workers);
    ql_mark(call->workers, QL_PART_OTHER);
    ql_block_tail(call, saved, out);
}

/* Where the gradients of gate and up go: over these themselves, in fp32 or bf16. */
static ql_glu_out place_gradients(const ql_block_call *call, const ql_saved *saved, bool narrow)
{
    ql_glu_waiting made = narrow ? place_gate_up(call, saved) : (ql_glu_waiting){0};
    return (ql_glu_out){.dgate = {narrow ? NULL : saved->gate, made.gate},
                        .dup = {narrow ? NULL : saved->up, made.up},
                        .ld = ql_ldgate(&call->model->config)};
}

typedef struct gate_job {
    const ql_block_call *call;
    ql_glu_in in;
    ql_glu_out out;
} gate_job;

static void gate_backward(void *self)
{
    const gate_job *job = self;
    const ql_block_call *call = job->call;
    size_t f = call->model->config.intermediate_size;
    ql_glu_backward(glu_of(call), call->m, f, &job->in, call->pass->dact, f, &job->out, call->workers);
}

/* down_proj, and gate and up: what their gradients are made of gives the activation too, which the adapter's gradients
 * want, but for those that read it before. */
static void down_backward(const ql_block_call *call, const ql_either *dout, ql_saved *saved, const ql_glu_out *out)
{
    ql_pass *pass = call->pass;
    size_t f = call->model->config.intermediate_size;
    ql_either act = buffer_for(call, QL_DOWN, 1, pass->act);
    bool narrow = out->dgate.narrow;
    gate_job job = {call, glu_in(call, saved, narrow ? place_gate_up(call, saved) : saved->mlp), *out};
    linears l;
    list_linears(&l, call, QL_DOWN, 1, saved);
    if ((act.narrow != NULL) == narrow && ql_linears_may_be_late(l.use, 1)) {
        job.out.act = act;
        l.use[0].dy = dout->wide;
        ql_linears_backward_late(l.use, 1, call->m, act.wide, act.narrow, f, pass->dact, f,
                                 &(ql_late){gate_backward, &job}, pass->work, call->workers);
        ql_mark(call->workers, QL_PART_OTHER);
        return;
    }
    ql_glu_forward(glu_of(call), call->m, f, &job.in, act, f, NULL, call->workers);
    linear_backward(call, QL_DOWN, 1, act, dout, saved, pass->dact);
    gate_backward(&job);
}

static void mlp_backward(const ql_block_call *call, ql_saved *saved)
{
    const ql_block *block = &call->model->blocks[call->index];
    ql_pass *pass = call->pass;
    const ql_either norm = buffer_for(call, QL_GATE, QL_WITH_GATE, pass->norm);
    const ql_either dout = out_norm_backward(call, block->mlp_out_norm, saved->mlp_out);
    ql_glu_out out = place_gradients(call, saved, norm.narrow);
    down_backward(call, &dout, saved, &out);
    block_norm_again(call, block->mlp_norm, saved->mid, saved->mid_narrow, norm);
    linear_backward(call, QL_GATE, QL_WITH_GATE, norm, (const ql_either[]){out.dgate, out.dup}, saved, pass->dnorm);
    block_norm_backward(call, block->mlp_norm, saved->mid, saved->mid_narrow);
}

void ql_block_backward(const ql_block_call *call, const ql_attention *attention, ql_saved *saved)
{
    const ql_block *block = &call->model->blocks[call->index];
    const ql_model_config *c = &call->model->config;
    ql_pass *pass = call->pass;
    size_t ldq = ql_ldq(c), ldkv = ql_ldkv(c), ldo = c->heads * c->head_dim;
    mlp_backward(call, saved);
    const ql_either dout = out_norm_backward(call, block->att_out_norm, saved->att_out);
    linear_backward(call, QL_O, 1, (ql_either){.wide = saved->att}, &dout, saved, pass->datt);
    ql_attention_grads grads = {
        .q = saved->q,
        .k = saved->k,
        .v = saved->v,
        .o = saved->att,
        .dout = pass->datt,
        .lse = saved->lse,
        .dq = pass->dq,
        .dk = pass->dk,
        .dv = pass->dv,
        .ldq = ldq,
        .ldkv = ldkv,
        .ldo = ldo,
        .lddo = ldo,
        .lddq = ldq,
        .lddkv = ldkv,
    };
    ql_mark(call->workers, QL_PART_ATTENTION);
    ql_attention_backward(attention, &grads, call->workers);
    ql_mark(call->workers, QL_PART_OTHER);
    turn_heads_back(call, saved);
    const ql_either norm = buffer_for(call, QL_Q, QL_WITH_Q, pass->norm),
                    dqkv[] = {{.wide = pass->dq}, {.wide = pass->dk}, {.wide = pass->dv}};
    block_norm_again(call, block->input_norm, saved->x, saved->x_narrow, norm);
    float *dx = call->index > 0 ? pass->dnorm : NULL; /* nothing is trained below the first block */
    linear_backward(call, QL_Q, QL_WITH_Q, norm, dqkv, saved, dx);
    if (dx)
        block_norm_backward(call, block->input_norm, saved->x, saved->x_narrow);
}
