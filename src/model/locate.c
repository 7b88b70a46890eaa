/* Where numbers stopped being finite: for the message of a step that failed. */
#include <assert.h>
#include <stdio.h>

#include "base/finite.h"
#include "model/pass.h"

/* Of what may be in bf16, which `narrow` then is. */
static bool is_finite(const float *wide, const uint16_t *narrow, size_t count)
{
    if (!narrow)
        return ql_all_finite(wide, count);
    for (size_t i = 0; i < count; i++)
        if ((narrow[i] & 0x7f80) == 0x7f80)
            return false;
    return true;
}

/* What a block computed last, in the order in which it does. */
static const char *bad_part(const ql_pass *pass, const ql_saved *s, size_t tokens)
{
    const ql_model_config *c = &pass->model->config;
    size_t q = ql_ldq(c), kv = c->fused ? 0 : ql_ldkv(c), up = ql_module_outputs(c, QL_UP);
    const struct {
        const char *name;
        const float *x;
        size_t width;
    } parts[] = {
        {ql_module_name(c, QL_Q), s->q_raw, q},
        {"k_proj", s->k_raw, kv},
        {"v_proj", s->v, kv},
        {"the norm or rotation of q", s->q, q},
        {"the norm or rotation of k", s->k, kv},
        {"attention", s->att, c->heads * c->head_dim},
        {"o_proj", s->mid, c->hidden_size},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!ql_all_finite(parts[i].x, tokens * parts[i].width))
            return parts[i].name;
    if (!is_finite(s->gate, pass->made.gate, tokens * ql_ldgate(c)))
        return ql_module_name(c, QL_GATE);
    if (!is_finite(s->up, pass->made.up, tokens * up))
        return "up_proj";
    if (!is_finite(pass->act, pass->act_narrow, tokens * c->intermediate_size))
        return c->gelu ? "gelu(gate) * up" : "silu(gate) * up";
    return "down_proj";
}

const char *ql_pass_locate(ql_pass *pass, const ql_batch *batch, const ql_dropout *dropout, ql_workers *workers,
                           char text[QL_LOCATE_BYTES])
{
    const ql_model *model = pass->model;
    size_t layers = model->config.layers, all = batch->tokens * model->config.hidden_size;
    assert(pass->kind.backward);
    snprintf(text, QL_LOCATE_BYTES, "the embedding");
    if (!ql_all_finite(ql_pass_input(pass, batch, 0, workers), all))
        return text;
    for (size_t i = 0; i < layers; i++) {
        if (ql_all_finite(i + 1 < layers ? ql_pass_input(pass, batch, i + 1, workers) : pass->final_x, all))
            continue;
        ql_pass_input(pass, batch, i, workers);
        ql_attention attention = ql_model_attention(model, i, batch->sequences, batch->start);
        ql_block_call call = {model, i, batch->tokens, batch->position, dropout, NULL, pass, workers};
        ql_block_forward(&call, &attention, &pass->saved[i], pass->out);
        snprintf(text, QL_LOCATE_BYTES, "layer %zu, %s", i, bad_part(pass, &pass->saved[i], batch->tokens));
        return text;
    }
    snprintf(text, QL_LOCATE_BYTES, "the final norm or the LM head");
    return text;
}
