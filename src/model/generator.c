/* Generation: the blocks' forward pass over a key/value cache. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/pass.h"

enum { PREFILL = 128 }; /* tokens computed at once */

struct ql_generator {
    const ql_model *model;
    ql_workers *workers;
    size_t position, capacity; /* tokens in the cache and at most */
    float *keys, *values;      /* [layers][capacity][kv_heads * head_dim] */
    float *logits;
    uint32_t positions[PREFILL];
    ql_pass pass;
};

/* Rows of a fused q, k and v into the cache, which keeps k and v apart. */
static void keep_rows(float *to, const float *from, size_t m, size_t width, size_t ld)
{
    for (size_t i = 0; i < m; i++)
        memcpy(to + i * width, from + i * ld, width * sizeof *to);
}

static size_t kv_width(const ql_model *model)
{
    return model->config.kv_heads * model->config.head_dim;
}

static ql_status allocate(ql_generator *gen, ql_error *err)
{
    const ql_model_config *c = &gen->model->config;
    size_t cache = c->layers * gen->capacity * kv_width(gen->model);
    gen->keys = ql_alloc(2 * cache * sizeof(float));
    gen->logits = ql_alloc(c->vocab_size * sizeof(float));
    if (!gen->keys || !gen->logits)
        return ql_fail(err, QL_ERR_MEMORY, "a key/value cache of %zu tokens needs %zu bytes, which are not to be had",
                       gen->capacity, 2 * cache * sizeof(float));
    gen->values = gen->keys + cache;
    size_t chunk = gen->capacity < PREFILL ? gen->capacity : PREFILL;
    ql_scratch head = ql_matmul_scratch(gen->model->head, 1, ql_workers_count(gen->workers));
    ql_attention attention = ql_model_attention(gen->model, 0, 0, NULL);
    ql_status status = ql_workers_reserve(gen->workers, head, err);
    if (!status)
        status = ql_workers_reserve(gen->workers, ql_attention_scratch(&attention, gen->capacity, false), err);
    return status ? status
                  : ql_pass_init(&gen->pass, gen->model, chunk, gen->capacity, (ql_pass_kind){0}, gen->workers, err);
}

ql_status ql_generator_create(ql_generator **out, const ql_model *model, size_t max_tokens, ql_workers *workers,
                              ql_error *err)
{
    *out = NULL;
    if (!max_tokens || max_tokens > model->config.max_positions)
        return ql_fail(err, QL_ERR_SHAPE, "%zu tokens: the model has positions for 1 to %zu", max_tokens,
                       model->config.max_positions);
    ql_generator *gen = calloc(1, sizeof *gen);
    if (!gen)
        return ql_fail(err, QL_ERR_MEMORY, "generator: out of memory");
    gen->model = model;
    gen->workers = workers;
    gen->capacity = max_tokens;
    ql_status status = allocate(gen, err);
    if (status) {
        ql_generator_destroy(gen);
        return status;
    }
    *out = gen;
    return QL_OK;
}

void ql_generator_destroy(ql_generator *gen)
{
    if (!gen)
        return;
    ql_pass_free(&gen->pass);
    free(gen->keys);
    free(gen->logits);
    free(gen);
}

size_t ql_generator_position(const ql_generator *gen)
{
    return gen->position;
}

void ql_generator_reset(ql_generator *gen)
{
    gen->position = 0;
}

/* m tokens through all blocks; their keys and values are computed right where the cache keeps them. */
static void run_chunk(ql_generator *gen, const int32_t *ids, size_t m)
{
    const ql_model *model = gen->model;
    const ql_model_config *c = &model->config;
    size_t d = c->hidden_size, kv = kv_width(model), q = c->heads * c->head_dim;
    for (size_t i = 0; i < m; i++)
        gen->positions[i] = (uint32_t)(gen->position + i);
    float *x = gen->pass.saved[0].x;
    ql_embed(model->embed, ql_embedding_scale(c), m, ids, x, d, gen->workers);
    for (size_t layer = 0; layer < model->config.layers; layer++) {
        ql_saved saved = gen->pass.saved[layer];
        float *keys = gen->keys + layer * gen->capacity * kv, *values = gen->values + layer * gen->capacity * kv;
        float *new_keys = keys + gen->position * kv, *new_values = values + gen->position * kv;
        if (!c->fused) {
            saved.k = saved.k_raw = new_keys;
            saved.v = new_values;
        }
        const float *residual = layer ? gen->pass.saved[layer - 1].mid : NULL;
        ql_block_call call = {model, layer, m, gen->positions, NULL, residual, &gen->pass, gen->workers};
        ql_block_qkv(&call, &saved);
        if (c->fused) {
            keep_rows(new_keys, saved.k, m, kv, ql_ldkv(c));
            keep_rows(new_values, saved.v, m, kv, ql_ldkv(c));
        }
        ql_attention attention = ql_model_attention(model, layer, 0, NULL);
        ql_attention_decode(&attention, gen->position, m, saved.q, ql_ldq(c), keys, values, kv, saved.att, q, gen->workers);
        ql_block_tail(&call, &saved, x);
    }
    ql_add(m * d, gen->pass.saved[model->config.layers - 1].mid, x, gen->workers);
    gen->position += m;
}

static void last_logits(ql_generator *gen, size_t m)
{
    const ql_model *model = gen->model;
    size_t d = model->config.hidden_size, vocab = model->config.vocab_size;
    ql_rmsnorm norm = {1, d, model->final_norm, (float)model->config.rms_norm_eps};
    ql_rmsnorm_forward(&norm, 1, gen->pass.saved[0].x + (m - 1) * d, d, gen->pass.norm, d, NULL, gen->workers);
    ql_matmul(model->head, 1, gen->pass.norm, d, gen->logits, vocab, false, gen->workers);
    if (model->config.logit_softcap > 0)
        ql_softcap(gen->logits, vocab, (float)model->config.logit_softcap);
}

ql_status ql_generator_feed(ql_generator *gen, const int32_t *ids, size_t count, const float **logits, ql_error *err)
{
    if (!count)
        return ql_fail(err, QL_ERR_SHAPE, "generation needs at least one token to go on from");
    if (count > gen->capacity - gen->position)
        return ql_fail(err, QL_ERR_SHAPE, "%zu tokens after %zu: the cache holds %zu", count, gen->position,
                       gen->capacity);
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || (size_t)ids[i] >= gen->model->config.vocab_size)
            return ql_fail(err, QL_ERR_SHAPE, "token %zu has id %d: the model has a vocabulary of %zu", i, (int)ids[i],
                           gen->model->config.vocab_size);
    size_t m = 0;
    for (size_t done = 0; done < count; done += m) {
        m = count - done < PREFILL ? count - done : PREFILL;
        run_chunk(gen, ids + done, m);
    }
    last_logits(gen, m);
    *logits = gen->logits;
    return QL_OK;
}
