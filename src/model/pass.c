/* Memory of a pass and the way through the blocks, forward and backward. */
#include "model/pass.h"

#include <math.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/rng.h"
#include "base/workers.h"
#include "lora/streams.h"

static float *behind(float *x, size_t floats)
{
    return x ? x + floats : NULL;
}

/* Rows of q, k and v, joined where they are fused. */
static void take_qkv(ql_arena *arena, const ql_model_config *c, size_t t, float **q, float **k, float **v)
{
    *q = ql_take(arena, t * ql_ldq(c), float);
    *k = c->fused ? behind(*q, c->heads * c->head_dim) : ql_take(arena, t * ql_ldkv(c), float);
    *v = c->fused ? behind(*k, c->kv_heads * c->head_dim) : ql_take(arena, t * ql_ldkv(c), float);
}

/* What attention's backward pass reads. Without one the norms of q and k and the softmax work in place. */
static void list_attention(const ql_pass *pass, ql_arena *arena, ql_saved *s)
{
    const ql_model_config *c = &pass->model->config;
    size_t t = pass->capacity;
    bool backward = pass->kind.backward, raw = backward && c->qk_norm;
    take_qkv(arena, c, t, &s->q, &s->k, &s->v);
    s->att = ql_take(arena, t * c->heads * c->head_dim, float);
    s->lse = backward ? ql_take(arena, t * c->heads, float) : NULL;
    s->rstd_q = raw ? ql_take(arena, t * c->heads, float) : NULL;
    s->rstd_k = raw ? ql_take(arena, t * c->kv_heads, float) : NULL;
    for (int i = 0; i < QL_MODULES; i++)
        s->h[i] = pass->model->lora.modules >> i & 1 ? ql_take(arena, t * pass->model->lora.rank, float) : NULL;
}

static void list_others(const ql_pass *pass, ql_arena *arena, ql_saved *s)
{
    const ql_model_config *c = &pass->model->config;
    size_t t = pass->capacity;
    bool raw = pass->kind.backward && c->qk_norm;
    s->q_raw = raw ? ql_take(arena, t * c->heads * c->head_dim, float) : s->q;
    s->k_raw = raw ? ql_take(arena, t * c->kv_heads * c->head_dim, float) : s->k;
    s->att_out = c->out_norms ? ql_take(arena, t * c->hidden_size, float) : NULL;
    s->mlp_out = c->out_norms ? ql_take(arena, t * c->hidden_size, float) : NULL;
    s->mid = ql_take(arena, t * c->hidden_size, float);
    s->gate = ql_take(arena, t * ql_ldgate(c), float);
    s->up = c->fused ? behind(s->gate, c->intermediate_size) : ql_take(arena, t * c->intermediate_size, float);
}

enum { MOST_WAITING = 4 };

static bool is_last(const ql_pass *pass, size_t index)
{
    return index + 1 == pass->model->config.layers;
}

/* Whether more than the input of a block waits in bf16: the last one is still there when its turn comes. */
static bool waits_whole(const ql_pass *pass, size_t index)
{
    return pass->kind.bf16 && index >= pass->kind.recompute && !is_last(pass, index);
}

/* The arrays of a block that wait in bf16, of m tokens, but for those that the backward pass reads there: x, mid, gate and
 * up. Attention's do not: the gradient of a softmax is a difference of nearly equal numbers, and rounding k alone moved
 * gradients by 9 % of their largest entry where the rest of them moves by half a percent. */
static size_t list_waiting(const ql_pass *pass, const ql_saved *s, size_t index, size_t m,
                           ql_waiting out[MOST_WAITING])
{
    const ql_model_config *c = &pass->model->config;
    size_t d = c->hidden_size;
    const struct {
        float *wide;
        size_t width; /* 0: the model has none of its own */
    } all[MOST_WAITING] = {
        {s->q_raw, c->qk_norm ? c->heads * c->head_dim : 0},
        {s->k_raw, c->qk_norm ? c->kv_heads * c->head_dim : 0},
        {s->att_out, c->out_norms ? d : 0},
        {s->mlp_out, c->out_norms ? d : 0},
    };
    size_t count = 0, at = 0;
    for (size_t i = 0; i < (waits_whole(pass, index) ? MOST_WAITING : 0); i++) {
        if (!all[i].width)
            continue;
        out[count++] = (ql_waiting){all[i].wide, s->narrow ? s->narrow + at : NULL, m * all[i].width};
        at += pass->capacity * all[i].width;
    }
    return count;
}

static void list_narrow_mlp(const ql_pass *pass, ql_arena *arena, ql_saved *s)
{
    const ql_model_config *c = &pass->model->config;
    s->mlp.gate = ql_take(arena, pass->capacity * ql_ldgate(c), uint16_t);
    if (!c->fused)
        s->mlp.up = ql_take(arena, pass->capacity * c->intermediate_size, uint16_t);
    else if (s->mlp.gate)
        s->mlp.up = s->mlp.gate + c->intermediate_size;
}

static size_t waiting_floats(const ql_pass *pass, size_t index)
{
    ql_waiting arrays[MOST_WAITING];
    size_t floats = 0;
    for (size_t i = list_waiting(pass, &(ql_saved){0}, index, pass->capacity, arrays); i-- > 0;)
        floats += arrays[i].count;
    return floats;
}

static void list_narrow(const ql_pass *pass, ql_arena *arena, size_t index, ql_saved *s)
{
    size_t floats = pass->capacity * pass->model->config.hidden_size;
    bool whole = pass->kind.backward && waits_whole(pass, index);
    s->x_narrow = pass->kind.backward && pass->kind.bf16 ? ql_take(arena, floats, uint16_t) : NULL;
    s->mid_narrow = whole ? ql_take(arena, floats, uint16_t) : NULL;
    s->narrow = whole ? ql_take(arena, waiting_floats(pass, index), uint16_t) : NULL;
    s->mlp = (ql_glu_waiting){0};
    if (whole)
        list_narrow_mlp(pass, arena, s);
}

static void list_buffers(ql_pass *pass, ql_arena *arena, size_t work)
{
    const ql_model_config *c = &pass->model->config;
    size_t t = pass->capacity, d = t * c->hidden_size, f = t * c->intermediate_size;
    bool backward = pass->kind.backward;
    pass->out = ql_take(arena, d, float);
    pass->norm = ql_take(arena, d, float);
    pass->act = ql_take(arena, f, float);
    pass->rstd = ql_take(arena, t, float);
    pass->rope.cos = ql_take(arena, pass->rope.positions * pass->rope.half, float);
    pass->rope.sin = ql_take(arena, pass->rope.positions * pass->rope.half, float);
    pass->local_rope.cos = ql_take(arena, pass->local_rope.positions * pass->rope.half, float);
    pass->local_rope.sin = ql_take(arena, pass->local_rope.positions * pass->rope.half, float);
    pass->work = ql_take(arena, work, float);
    pass->loss_buffer = ql_take(arena, ql_loss_buffer_bytes(pass->model->head, t, backward), char);
    if (!backward)
        return;
    pass->final_x = ql_take(arena, d, float);
    pass->final_rstd = ql_take(arena, t, float);
    pass->dact = ql_take(arena, f, float);
    pass->d = ql_take(arena, d, float);
    pass->dnorm = ql_take(arena, d, float);
    take_qkv(arena, c, t, &pass->dq, &pass->dk, &pass->dv);
    pass->datt = c->fused ? ql_take(arena, t * c->heads * c->head_dim, float) : pass->dq;
}

static void list_pass(ql_pass *pass, ql_arena *arena, size_t work)
{
    const ql_model_config *c = &pass->model->config;
    ql_saved *saved = ql_take(arena, c->layers, ql_saved);
    ql_saved measured = {0};
    pass->saved = saved;
    bool backward = pass->kind.backward, bf16 = pass->kind.bf16;
    for (size_t i = 0; i < c->layers; i++) {
        ql_saved *s = saved ? &saved[i] : &measured;
        bool own = backward && i > pass->kind.recompute; /* the first that is kept has the arrays of those before it */
        if (i > 0 && saved)
            *s = saved[0];
        if (i == 0 || (backward && !bf16))
            s->x = ql_take(arena, pass->capacity * c->hidden_size, float);
        if (i == 0 || own)
            list_attention(pass, arena, s);
        if (i == 0 || (own && !bf16))
            list_others(pass, arena, s);
        else if (!c->qk_norm)
            s->q_raw = s->q, s->k_raw = s->k;
        list_narrow(pass, arena, i, s);
    }
    list_buffers(pass, arena, work);
}

static ql_scratch scratch_needed(const ql_pass *pass, size_t threads, size_t *work)
{
    const ql_model *model = pass->model;
    ql_attention attention = ql_model_attention(model, 0, 0, NULL);
    ql_scratch need = ql_attention_scratch(&attention, pass->capacity, pass->kind.backward);
    need = ql_scratch_max(need, ql_loss_scratch(model->head, pass->capacity));
    *work = 0;
    ql_block_size size = {pass->capacity, threads, (float)model->lora.dropout};
    ql_blocks_need(model->blocks, model->config.layers, &size, &need, work);
    return need;
}

/* Lays the pass out with a NULL base: how many bytes, and how many floats of work. */
static size_t measure(ql_pass *pass, size_t positions, size_t threads, ql_scratch *need, size_t *work)
{
    const ql_model_config *c = &pass->model->config;
    pass->rope = (ql_rope){.positions = positions, .half = ql_model_rope(pass->model, false).head_dim / 2,
                            .head_dim = c->head_dim};
    pass->local_rope = pass->rope;
    pass->local_rope.positions = c->local_rope_theta > 0 ? positions : 0;
    *need = scratch_needed(pass, threads, work);
    ql_arena plan = {0};
    list_pass(pass, &plan, *work);
    return plan.used;
}

static ql_pass_kind possible(ql_pass_kind kind, const ql_model *model)
{
    if (kind.recompute >= model->config.layers)
        kind.recompute = model->config.layers - 1;
    return kind;
}

size_t ql_pass_measure(const ql_model *model, size_t tokens, size_t positions, ql_pass_kind kind, size_t threads,
                       ql_scratch *need)
{
    size_t work;
    ql_pass pass = {.model = model, .kind = possible(kind, model), .capacity = tokens};
    return measure(&pass, positions, threads, need, &work);
}

ql_status ql_pass_init(ql_pass *pass, const ql_model *model, size_t tokens, size_t positions, ql_pass_kind kind,
                       ql_workers *workers, ql_error *err)
{
    *pass = (ql_pass){.model = model, .kind = possible(kind, model), .capacity = tokens};
    ql_scratch need;
    size_t work, bytes = measure(pass, positions, ql_workers_count(workers), &need, &work);
    ql_status status = ql_workers_reserve(workers, need, err);
    if (status)
        return status;
    pass->memory = ql_alloc(bytes);
    if (!pass->memory)
        return ql_fail(err, QL_ERR_MEMORY,
                       "activations of %zu tokens need %zu bytes, which are not to be had: "
                       "use shorter sequences, smaller batches or recomputation",
                       tokens, bytes);
    pass->bytes = bytes;
    ql_arena real = {.base = pass->memory};
    list_pass(pass, &real, work);
    ql_rope_config rope = ql_model_rope(model, false), local = ql_model_rope(model, true);
    ql_rope_fill(&pass->rope, &rope, workers);
    ql_rope_fill(&pass->local_rope, &local, workers);
    return QL_OK;
}

void ql_pass_free(ql_pass *pass)
{
    free(pass->memory);
    *pass = (ql_pass){0};
}

static ql_block_call call_of(ql_pass *pass, const ql_batch *batch, size_t index, const ql_dropout *dropout,
                             ql_workers *workers)
{
    return (ql_block_call){pass->model, index, batch->tokens, batch->position, dropout, NULL, pass, workers};
}

typedef struct noise_job {
    const ql_noise *noise;
    size_t first, d; /* token of the batch */
    float reach, *x;
} noise_job;

static void noise_token(void *ctx, size_t index, size_t worker)
{
    const noise_job *job = ctx;
    (void)worker;
    size_t token = job->first + index, blocks = (job->d + 3) / 4;
    float *x = job->x + token * job->d;
    for (size_t block = 0; block < blocks; block++) {
        uint32_t bits[4];
        ql_philox(job->noise->seed, QL_STREAM_NOISE | job->noise->step, token * blocks + block, bits);
        for (size_t i = 0; i < 4 && 4 * block + i < job->d; i++)
            x[4 * block + i] += job->reach * (2 * ql_uniform(bits[i]) - 1);
    }
}

/* The input of the blocks. */
static void embed(ql_pass *pass, const ql_batch *batch, ql_workers *workers)
{
    size_t d = pass->model->config.hidden_size;
    ql_embed(pass->model->embed, ql_embedding_scale(&pass->model->config), batch->tokens, batch->ids, pass->saved[0].x, d,
             workers);
    for (size_t i = 0; i < batch->sequences && batch->noise.alpha > 0; i++) {
        size_t tokens = batch->start[i + 1] - batch->start[i];
        noise_job job = {&batch->noise, batch->start[i], d, batch->noise.alpha / sqrtf((float)(tokens * d)),
                         pass->saved[0].x};
        ql_parallel(workers, tokens, noise_token, &job);
    }
}

static void narrow(ql_pass *pass, const ql_batch *batch, size_t index, ql_workers *workers)
{
    ql_waiting arrays[MOST_WAITING];
    ql_waiting_narrow(arrays, list_waiting(pass, &pass->saved[index], index, batch->tokens, arrays), workers);
}

static void widen(ql_pass *pass, const ql_batch *batch, size_t index, ql_workers *workers)
{
    ql_waiting arrays[MOST_WAITING];
    ql_waiting_widen(arrays, list_waiting(pass, &pass->saved[index], index, batch->tokens, arrays), workers);
}

const float *ql_pass_input(ql_pass *pass, const ql_batch *batch, size_t index, ql_workers *workers)
{
    const ql_saved *s = &pass->saved[index];
    if (s->x_narrow)
        ql_waiting_widen(&(ql_waiting){s->x, s->x_narrow, batch->tokens * pass->model->config.hidden_size}, 1, workers);
    return s->x;
}

static void forward(ql_pass *pass, const ql_batch *batch, const ql_dropout *dropout, ql_workers *workers)
{
    const ql_model *model = pass->model;
    float *last = pass->kind.backward ? pass->final_x : pass->out;
    const float *residual = NULL;
    embed(pass, batch, workers);
    for (size_t i = 0; i < model->config.layers; i++) {
        ql_block_call call = call_of(pass, batch, i, dropout, workers);
        float *out = is_last(pass, i) ? last : pass->saved[i + 1].x;
        call.residual = residual;
        ql_attention attention = ql_model_attention(model, i, batch->sequences, batch->start);
        ql_block_forward(&call, &attention, &pass->saved[i], out); /* out may be the block's x */
        narrow(pass, batch, i, workers);
        residual = pass->saved[i].mid;
    }
    ql_rmsnorm norm = {1, model->config.hidden_size, model->final_norm, (float)model->config.rms_norm_eps};
    ql_residual_rmsnorm(&norm, batch->tokens, &(ql_residual){.x = last, .add = residual},
                        (ql_either){.wide = pass->out}, pass->final_rstd, workers);
}

static void backward(ql_pass *pass, const ql_batch *batch, const ql_dropout *dropout, ql_workers *workers)
{
    const ql_model *model = pass->model;
    size_t d = model->config.hidden_size;
    ql_rmsnorm norm = {1, d, model->final_norm, (float)model->config.rms_norm_eps};
    ql_rmsnorm_backward(&norm, batch->tokens, pass->final_x, d, pass->final_rstd, pass->d, d, pass->d, d, false,
                        workers);
    for (size_t i = model->config.layers; i-- > 0;) {
        ql_block_call call = call_of(pass, batch, i, dropout, workers);
        widen(pass, batch, i, workers);
        ql_attention attention = ql_model_attention(model, i, batch->sequences, batch->start);
        if (i < pass->kind.recompute) {
            ql_pass_input(pass, batch, i, workers);
            ql_block_forward(&call, &attention, &pass->saved[i], pass->out);
        }
        ql_block_backward(&call, &attention, &pass->saved[i]);
    }
}

ql_status ql_pass_run(ql_pass *pass, const ql_batch *batch, float grad_scale, const ql_dropout *dropout,
                      float *token_loss, ql_loss_sum *loss, ql_workers *workers, ql_error *err)
{
    const ql_model *model = pass->model;
    size_t d = model->config.hidden_size;
    bool train = pass->kind.backward;
    forward(pass, batch, dropout, workers);
    ql_loss job = {
        .head = model->head,
        .m = batch->tokens,
        .x = pass->out,
        .ldx = d,
        .target = batch->target,
        .grad_scale = grad_scale,
        .dx = train ? pass->d : NULL,
        .lddx = d,
        .token_loss = token_loss,
        .softcap = (float)model->config.logit_softcap,
    };
    ql_mark(workers, QL_PART_LOSS);
    *loss = ql_loss_run(&job, pass->loss_buffer, workers);
    ql_mark(workers, QL_PART_OTHER);
    if (loss->first_bad < batch->tokens)
        return ql_fail(err, QL_ERR_VALUE, "the logits of token %zu of the batch (id %d) are not finite",
                       loss->first_bad, (int)batch->ids[loss->first_bad]);
    if (train)
        backward(pass, batch, dropout, workers);
    return QL_OK;
}
