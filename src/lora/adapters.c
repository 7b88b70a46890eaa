/* The set of all adapters of a model in flat arrays. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "lora/streams.h"
#include "qlora/lora.h"

ql_status ql_adapters_measure(size_t *count, const ql_adapter_shape *shapes, size_t layers, ql_error *err)
{
    *count = 0;
    for (size_t i = 0; i < layers; i++) {
        const ql_adapter_shape *s = &shapes[i];
        if (!s->in_features || !s->out_features || !s->rank)
            return ql_fail(err, QL_ERR_SHAPE, "adapter %zu: %zu inputs, %zu outputs, rank %zu: none may be 0", i,
                           s->in_features, s->out_features, s->rank);
        if (!isfinite(s->scaling))
            return ql_fail(err, QL_ERR_VALUE, "adapter %zu: its scaling is %g", i, s->scaling);
        size_t sides, own, limit = SIZE_MAX / 16; /* so that bytes cannot overflow either */
        if (__builtin_add_overflow(s->in_features, s->out_features, &sides) ||
            __builtin_mul_overflow(sides, s->rank, &own) || own > limit || *count > limit - own)
            return ql_fail(err, QL_ERR_SHAPE, "adapter %zu: %zu x %zu with rank %zu is larger than memory can address",
                           i, s->out_features, s->in_features, s->rank);
        *count += own;
    }
    return QL_OK;
}

/* Measures the set with arena->base NULL, lays it out otherwise. */
static ql_adapters *carve(ql_arena *arena, size_t layers, size_t count, bool trainable)
{
    ql_adapters *set = ql_take(arena, 1, ql_adapters);
    ql_adapter *layer = ql_take(arena, layers, ql_adapter);
    uint16_t *value = ql_take(arena, count, uint16_t);
    float *master = trainable ? ql_take(arena, count, float) : NULL;
    float *grad = trainable ? ql_take(arena, count, float) : NULL;
    if (set)
        *set = (ql_adapters){.layers = layers, .layer = layer, .count = count, .value = value, .master = master,
                             .grad = grad};
    return set;
}

static ql_status place(ql_adapters *set, ql_adapter *a, const ql_adapter_shape *shape, size_t offset, ql_error *err)
{
    size_t to_b = offset + shape->rank * shape->in_features;
    *a = (ql_adapter){.k = shape->in_features, .n = shape->out_features, .r = shape->rank,
                      .scaling = (float)shape->scaling, .offset = offset};
    if (set->value)
        a->a = set->value + offset, a->b = set->value + to_b;
    if (set->master) {
        a->master_a = set->master + offset, a->master_b = set->master + to_b;
        a->grad_a = set->grad + offset, a->grad_b = set->grad + to_b;
    }
    ql_status status = ql_weight_borrow(&a->view_a, a->a, QL_F16, a->r, a->k, err);
    return status ? status : ql_weight_borrow(&a->view_b, a->b, QL_F16, a->n, a->r, err);
}

static ql_status place_all(ql_adapters **out, ql_adapters *set, const ql_adapter_shape *shapes, ql_error *err)
{
    ql_status status = QL_OK;
    for (size_t i = 0, offset = 0; i < set->layers && !status; i++) {
        status = place(set, &set->layer[i], &shapes[i], offset, err);
        offset += shapes[i].rank * (shapes[i].in_features + shapes[i].out_features);
    }
    if (status)
        ql_adapters_destroy(set);
    else
        *out = set;
    return status;
}

ql_status ql_adapters_create(ql_adapters **out, const ql_adapter_shape *shapes, size_t layers, bool trainable,
                             ql_error *err)
{
    *out = NULL;
    size_t count;
    ql_status status = ql_adapters_measure(&count, shapes, layers, err);
    if (status)
        return status;
    ql_arena arena = {0};
    carve(&arena, layers, count, trainable);
    size_t bytes = arena.used;
    arena = (ql_arena){.base = ql_alloc(bytes)};
    if (!arena.base)
        return ql_fail(err, QL_ERR_MEMORY, "adapters: %zu bytes for %zu parameters are not to be had", bytes, count);
    return place_all(out, carve(&arena, layers, count, trainable), shapes, err);
}

ql_status ql_adapters_plan(ql_adapters **out, const ql_adapter_shape *shapes, size_t layers, ql_error *err)
{
    *out = NULL;
    size_t count;
    ql_status status = ql_adapters_measure(&count, shapes, layers, err);
    if (status)
        return status;
    ql_adapters *set = calloc(1, sizeof *set + layers * sizeof *set->layer);
    if (!set)
        return ql_fail(err, QL_ERR_MEMORY, "adapters of %zu layers: out of memory", layers);
    *set = (ql_adapters){.layers = layers, .layer = (ql_adapter *)(set + 1), .count = count};
    return place_all(out, set, shapes, err);
}

static void store(ql_adapters *set, size_t i, float x)
{
    set->value[i] = ql_f32_to_f16(x);
    if (set->master)
        set->master[i] = x;
}

void ql_adapters_init(ql_adapters *set, uint64_t seed)
{
    for (size_t i = 0; i < set->layers; i++) {
        const ql_adapter *a = &set->layer[i];
        float bound = (float)(1 / sqrt((double)a->k));
        ql_rng rng = {.seed = seed, .stream = QL_STREAM_INIT | i};
        for (size_t j = 0; j < a->r * a->k; j++)
            store(set, a->offset + j, (2 * ql_uniform(ql_rng_next(&rng)) - 1) * bound);
        for (size_t j = 0; j < a->n * a->r; j++)
            store(set, a->offset + a->r * a->k + j, 0);
    }
}

void ql_adapters_set(ql_adapters *set, size_t first, size_t count, const float *src)
{
    assert(first <= set->count && count <= set->count - first);
    for (size_t i = 0; i < count; i++)
        store(set, first + i, src[i]);
}

void ql_adapters_zero_grad(ql_adapters *set)
{
    if (set->grad)
        memset(set->grad, 0, set->count * sizeof *set->grad);
}

size_t ql_adapters_bytes(const ql_adapters *set)
{
    return set->count * (sizeof *set->value + (set->master ? sizeof *set->master + sizeof *set->grad : 0));
}

void ql_adapters_destroy(ql_adapters *set)
{
    if (!set)
        return;
    for (size_t i = 0; i < set->layers; i++) {
        ql_weight_destroy(set->layer[i].view_a);
        ql_weight_destroy(set->layer[i].view_b);
    }
    free(set);
}
