/* The set of all adapters of a model in flat arrays. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/workers.h"
#include "lora/dora.h"
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
        size_t sides, own, limit = SIZE_MAX / 32; /* so that bytes cannot overflow either */
        if (__builtin_add_overflow(s->in_features, s->out_features, &sides) ||
            __builtin_mul_overflow(sides, s->rank, &own) || own > limit || s->out_features > limit - own ||
            *count > limit - own - s->out_features)
            return ql_fail(err, QL_ERR_SHAPE, "adapter %zu: %zu x %zu with rank %zu is larger than memory can address",
                           i, s->out_features, s->in_features, s->rank);
        *count += own + (s->dora ? s->out_features : 0);
    }
    return QL_OK;
}

/* What DoRA holds of one layer, measured or carved. */
static void carve_dora(ql_arena *arena, ql_adapter *a, const ql_adapter_shape *s, bool trainable)
{
    size_t n = s->out_features;
    float *gain = ql_take(arena, n, float), *norm = ql_take(arena, n, float);
    float *magnitude = trainable ? NULL : ql_take(arena, n, float);
    double *square = ql_take(arena, n, double);
    if (a)
        a->gain = gain, a->norm = norm, a->magnitude = magnitude, a->base_square = square;
}

/* The same of all layers, and the memory in which they take turns. */
static void carve_all_dora(ql_arena *arena, ql_adapter *layer, const ql_adapter_shape *shapes, size_t layers,
                           bool trainable)
{
    size_t most = 0;
    for (size_t i = 0; i < layers; i++) {
        size_t floats = shapes[i].dora ? ql_dora_work(&shapes[i]) : 0;
        most = floats > most ? floats : most;
        if (shapes[i].dora)
            carve_dora(arena, layer ? &layer[i] : NULL, &shapes[i], trainable);
    }
    float *work = most ? ql_take(arena, most, float) : NULL;
    for (size_t i = 0; layer && i < layers; i++)
        layer[i].work = shapes[i].dora ? work : NULL;
}

/* Measures the set with arena->base NULL, lays it out otherwise. */
static ql_adapters *carve(ql_arena *arena, const ql_adapter_shape *shapes, size_t layers, size_t count, bool trainable)
{
    ql_adapters *set = ql_take(arena, 1, ql_adapters);
    ql_adapter *layer = ql_take(arena, layers, ql_adapter);
    uint16_t *value = ql_take(arena, count, uint16_t);
    float *master = trainable ? ql_take(arena, count, float) : NULL;
    float *grad = trainable ? ql_take(arena, count, float) : NULL;
    size_t before = arena->used;
    carve_all_dora(arena, layer, shapes, layers, trainable);
    if (set)
        *set = (ql_adapters){.layers = layers, .layer = layer, .count = count, .value = value, .master = master,
                             .grad = grad, .dora_bytes = arena->used - before};
    return set;
}

static ql_status place(ql_adapters *set, ql_adapter *a, const ql_adapter_shape *shape, size_t offset, ql_error *err)
{
    size_t to_b = offset + shape->rank * shape->in_features, to_m = to_b + shape->rank * shape->out_features;
    a->k = shape->in_features, a->n = shape->out_features, a->r = shape->rank;
    a->scaling = (float)shape->scaling;
    a->offset = offset;
    a->count = to_m - offset + (shape->dora ? a->n : 0);
    a->dora = shape->dora;
    if (set->value)
        a->a = set->value + offset, a->b = set->value + to_b;
    if (set->master) {
        a->master_a = set->master + offset, a->master_b = set->master + to_b;
        a->grad_a = set->grad + offset, a->grad_b = set->grad + to_b;
        if (shape->dora)
            a->magnitude = set->master + to_m, a->grad_m = set->grad + to_m;
    }
    ql_status status = ql_weight_borrow(&a->view_a, a->a, QL_F16, a->r, a->k, err);
    return status ? status : ql_weight_borrow(&a->view_b, a->b, QL_F16, a->n, a->r, err);
}

static ql_status place_all(ql_adapters **out, ql_adapters *set, const ql_adapter_shape *shapes, ql_error *err)
{
    ql_status status = QL_OK;
    for (size_t i = 0, offset = 0; i < set->layers && !status; i++) {
        status = place(set, &set->layer[i], &shapes[i], offset, err);
        offset += set->layer[i].count;
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
    carve(&arena, shapes, layers, count, trainable);
    size_t bytes = arena.used;
    arena = (ql_arena){.base = ql_alloc(bytes)};
    if (!arena.base)
        return ql_fail(err, QL_ERR_MEMORY, "adapters: %zu bytes for %zu parameters are not to be had", bytes, count);
    return place_all(out, carve(&arena, shapes, layers, count, trainable), shapes, err);
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
    ql_arena dora = {0};
    carve_all_dora(&dora, NULL, shapes, layers, true);
    *set = (ql_adapters){.layers = layers, .layer = (ql_adapter *)(set + 1), .count = count, .dora_bytes = dora.used};
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

void ql_adapters_gaussian(ql_adapters *set, uint64_t seed)
{
    for (size_t i = 0; i < set->layers; i++) {
        const ql_adapter *a = &set->layer[i];
        ql_rng rng = {.seed = seed, .stream = QL_STREAM_INIT | i};
        for (size_t j = 0; j < a->r * a->k; j++) { /* Box and Muller */
            double radius = sqrt(-2 * log(1 - (double)ql_uniform(ql_rng_next(&rng))));
            double angle = 2 * acos(-1) * (double)ql_uniform(ql_rng_next(&rng));
            store(set, a->offset + j, (float)(radius * cos(angle) / (double)a->r));
        }
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

enum { ZERO_PIECE = 1 << 16 }; /* parameters */

static void zero_piece(void *ctx, size_t index, size_t worker)
{
    const ql_adapters *set = ctx;
    size_t at = index * ZERO_PIECE, count = set->count - at < ZERO_PIECE ? set->count - at : ZERO_PIECE;
    (void)worker;
    memset(set->grad + at, 0, count * sizeof *set->grad);
}

void ql_adapters_zero_grad(ql_adapters *set, ql_workers *workers)
{
    if (set->grad)
        ql_parallel(workers, (set->count + ZERO_PIECE - 1) / ZERO_PIECE, zero_piece, set);
}

size_t ql_adapters_bytes(const ql_adapters *set)
{
    return set->count * (sizeof *set->value + (set->master ? sizeof *set->master + sizeof *set->grad : 0)) +
           set->dora_bytes;
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
