/* AdamW in one pass over the flat arrays. Every operation is a correctly rounded fp32 one in torch's order,
 * so all instruction sets and numbers of threads give the same bits. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "base/arena.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/half.h"
#include "base/workers.h"
#include "qlora/optim.h"
#include "train/moments8.h"

enum { CHUNK = 1 << 14 }; /* elements a task, whole blocks of moments: 7 arrays of a chunk fit in L2 */

static const char *const names[] = {[QL_OPTIM_ADAMW] = "adamw", [QL_OPTIM_ADAMW_8BIT] = "adamw8bit"};

ql_status ql_optim_parse(ql_optim *out, const char *name, ql_error *err)
{
    for (int i = 0; i < 2; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (ql_optim)i;
            return QL_OK;
        }
    return ql_fail(err, QL_ERR_ARG, "there is no optimizer \"%s\": there are adamw and adamw8bit", name);
}

const char *ql_optim_name(ql_optim kind)
{
    return names[kind];
}

ql_adamw_options ql_adamw_options_defaults(void)
{
    return (ql_adamw_options){.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .b_ratio = 1};
}

static ql_status check(const ql_adamw_options *o, ql_error *err)
{
    if (!(o->beta1 >= 0 && o->beta1 < 1) || !(o->beta2 >= 0 && o->beta2 < 1))
        return ql_fail(err, QL_ERR_ARG, "AdamW: betas are %g and %g; they must be in [0, 1)", o->beta1, o->beta2);
    if (!(o->eps > 0 && isfinite(o->eps)))
        return ql_fail(err, QL_ERR_ARG, "AdamW: eps is %g; it must be above 0", o->eps);
    if (!(o->weight_decay >= 0 && isfinite(o->weight_decay)))
        return ql_fail(err, QL_ERR_ARG, "AdamW: weight decay is %g; it must be 0 or more", o->weight_decay);
    if (!(o->b_ratio > 0 && isfinite(o->b_ratio)))
        return ql_fail(err, QL_ERR_ARG, "LoRA+: the learning rate of B is %g times that of A; it must be above 0",
                       o->b_ratio);
    if (o->kind != QL_OPTIM_ADAMW && o->kind != QL_OPTIM_ADAMW_8BIT)
        return ql_fail(err, QL_ERR_ARG, "AdamW: there is no kind %d", (int)o->kind);
    return QL_OK;
}

static void list_moments(ql_adamw *opt, ql_arena *arena)
{
    if (opt->options.kind == QL_OPTIM_ADAMW) {
        opt->m = ql_take(arena, opt->count, float);
        opt->v = ql_take(arena, opt->count, float);
        return;
    }
    size_t blocks = opt->count / QL_MOMENT_BLOCK + (opt->count % QL_MOMENT_BLOCK != 0);
    opt->m8 = ql_take(arena, opt->count, uint8_t);
    opt->v8 = ql_take(arena, opt->count, uint8_t);
    opt->m_scale = ql_take(arena, blocks, float);
    opt->v_scale = ql_take(arena, blocks, float);
}

size_t ql_adamw_bytes(ql_optim kind, size_t count)
{
    ql_arena plan = {0};
    list_moments(&(ql_adamw){.options.kind = kind, .count = count}, &plan);
    return plan.used;
}

ql_status ql_adamw_init(ql_adamw *out, size_t count, const ql_adamw_options *options, ql_error *err)
{
    *out = (ql_adamw){0};
    ql_status status = check(options, err);
    if (status)
        return status;
    size_t bytes = ql_adamw_bytes(options->kind, count);
    ql_arena real = {.base = bytes < SIZE_MAX / 4 ? ql_alloc(bytes) : NULL};
    if (!real.base)
        return ql_fail(err, QL_ERR_MEMORY, "AdamW: moments of %zu parameters are not to be had", count);
    *out = (ql_adamw){.options = *options, .count = count, .memory = real.base};
    list_moments(out, &real);
    return QL_OK;
}

void ql_adamw_free(ql_adamw *opt)
{
    if (!opt)
        return;
    free(opt->memory);
    *opt = (ql_adamw){0};
}

/* The scalars of one step, as torch rounds them to fp32. */
typedef struct factors {
    float grad_scale, decay, one_minus_beta1, beta2, one_minus_beta2, root_correction, eps, minus_step;
} factors;

static factors prepare(const ql_adamw *opt, double lr, double grad_scale)
{
    const ql_adamw_options *o = &opt->options;
    double steps = (double)opt->step;
    double correction1 = 1 - pow(o->beta1, steps), correction2 = 1 - pow(o->beta2, steps);
    return (factors){
        .grad_scale = (float)grad_scale,
        .decay = (float)(1 - lr * o->weight_decay),
        .one_minus_beta1 = (float)(1 - o->beta1),
        .beta2 = (float)o->beta2,
        .one_minus_beta2 = (float)(1 - o->beta2),
        .root_correction = (float)sqrt(correction2),
        .eps = (float)o->eps,
        .minus_step = (float)(-lr / correction1),
    };
}

QL_INLINE void update(const factors *f, size_t count, const float *restrict grad, float *restrict m, float *restrict v,
                   float *restrict master)
{
    const factors c = *f;
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        float g = grad[i] * c.grad_scale;
        m[i] += c.one_minus_beta1 * (g - m[i]);
        v[i] = v[i] * c.beta2 + c.one_minus_beta2 * g * g;
        float root = sqrtf(v[i]) / c.root_correction + c.eps;
        master[i] = master[i] * c.decay + c.minus_step * m[i] / root;
    }
}

typedef void update_part(const factors *f, size_t count, const float *grad, float *m, float *v, float *master,
                         uint16_t *value);

static void update_plain(const factors *f, size_t count, const float *grad, float *m, float *v, float *master,
                         uint16_t *value)
{
    update(f, count, grad, m, v, master);
    for (size_t i = 0; i < count; i++)
        value[i] = ql_f32_to_f16(master[i]);
}

#ifdef __x86_64__
__attribute__((target("avx2,f16c"))) static void update_avx2(const factors *f, size_t count, const float *grad,
                                                             float *m, float *v, float *master, uint16_t *value)
{
    update(f, count, grad, m, v, master);
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((__m128i *)(value + i), _mm256_cvtps_ph(_mm256_loadu_ps(master + i), 0));
    for (; i < count; i++)
        value[i] = ql_f32_to_f16(master[i]);
}

__attribute__((target("avx512f"))) static void update_avx512(const factors *f, size_t count, const float *grad,
                                                             float *m, float *v, float *master, uint16_t *value)
{
    update(f, count, grad, m, v, master);
    size_t i = 0;
    for (; i + 16 <= count; i += 16)
        _mm256_storeu_si256((__m256i *)(value + i), _mm512_cvtps_ph(_mm512_loadu_ps(master + i), 0));
    for (; i < count; i++)
        value[i] = ql_f32_to_f16(master[i]);
}
#endif

typedef struct step_work {
    const ql_adamw *opt;
    const ql_adapters *set;
    factors f[2]; /* of A and of the rest */
    const struct tier *tier;
} step_work;

/* A step of parameters [at, at + count): fp32 moments; a block of them in 8 bits. */
typedef struct tier {
    update_part *update;
    void (*block8)(const step_work *w, size_t at, size_t count);
} tier;

/* Whether parameter `at` is one of an A, and where the run of such ends. Adapters lie one after another, A first. */
static bool in_a(const ql_adapters *set, size_t at, size_t *end)
{
    size_t low = 0, high = set->layers;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (set->layer[middle].offset <= at)
            low = middle;
        else
            high = middle;
    }
    const ql_adapter *a = &set->layer[low];
    size_t end_a = a->offset + a->r * a->k;
    *end = at < end_a ? end_a : low + 1 < set->layers ? set->layer[low + 1].offset : set->count;
    return at < end_a;
}

/* Parameters [at, at + count), whose moments are m and v. */
static void update_range(const step_work *w, size_t at, size_t count, float *m, float *v)
{
    for (size_t done = 0, end; done < count; done = end) {
        end = count;
        const factors *f = &w->f[0];
        if (w->opt->options.b_ratio != 1) {
            f = &w->f[in_a(w->set, at + done, &end) ? 0 : 1];
            end = end - at < count ? end - at : count;
        }
        size_t i = at + done;
        w->tier->update(f, end - done, w->set->grad + i, m + done, v + done, w->set->master + i, w->set->value + i);
    }
}

QL_INLINE void block8(const step_work *w, size_t at, size_t count)
{
    const ql_adamw *opt = w->opt;
    float m[QL_MOMENT_BLOCK], v[QL_MOMENT_BLOCK];
    size_t block = at / QL_MOMENT_BLOCK;
    ql_moment1_decode(opt->m8 + at, count, opt->m_scale[block], m);
    ql_moment2_decode(opt->v8 + at, count, opt->v_scale[block], v);
    update_range(w, at, count, m, v);
    opt->m_scale[block] = ql_moment1_encode(m, count, opt->m8 + at);
    opt->v_scale[block] = ql_moment2_encode(v, count, opt->v8 + at);
}

static void block8_plain(const step_work *w, size_t at, size_t count)
{
    block8(w, at, count);
}

#ifdef __x86_64__
__attribute__((target("avx2,f16c"))) static void block8_avx2(const step_work *w, size_t at, size_t count)
{
    block8(w, at, count);
}

__attribute__((target("avx512f"))) static void block8_avx512(const step_work *w, size_t at, size_t count)
{
    block8(w, at, count);
}
#endif

static const tier *select_tier(void)
{
    static const tier plain = {update_plain, block8_plain};
#ifdef __x86_64__
    static const tier avx2 = {update_avx2, block8_avx2}, avx512 = {update_avx512, block8_avx512};
    if (ql_cpu_features() & QL_CPU_AVX512)
        return &avx512;
    if (ql_cpu_features() & QL_CPU_AVX2)
        return &avx2;
#endif
    return &plain;
}

static void task(void *ctx, size_t index, size_t worker)
{
    const step_work *w = ctx;
    (void)worker;
    size_t at = index * CHUNK, end = w->set->count - at < CHUNK ? w->set->count : at + CHUNK;
    if (w->opt->options.kind == QL_OPTIM_ADAMW)
        update_range(w, at, end - at, w->opt->m + at, w->opt->v + at);
    else
        for (; at < end; at += QL_MOMENT_BLOCK)
            w->tier->block8(w, at, end - at < QL_MOMENT_BLOCK ? end - at : QL_MOMENT_BLOCK);
}

void ql_adamw_step(ql_adamw *opt, ql_adapters *set, double lr, double grad_scale, ql_workers *workers)
{
    assert(set->count == opt->count && set->master && set->grad);
    opt->step++;
    step_work work = {
        .opt = opt,
        .set = set,
        .f = {prepare(opt, lr, grad_scale), prepare(opt, lr * opt->options.b_ratio, grad_scale)},
        .tier = select_tier(),
    };
    ql_parallel(workers, (set->count + CHUNK - 1) / CHUNK, task, &work);
}
