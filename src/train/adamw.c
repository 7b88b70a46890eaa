/* AdamW in one pass over the flat arrays. Every operation is a correctly rounded fp32 one in torch's order,
 * so all instruction sets and numbers of threads give the same bits. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "base/arena.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/half.h"
#include "base/workers.h"
#include "qlora/optim.h"

enum { CHUNK = 1 << 14 }; /* elements a task: 7 arrays of a chunk fit in L2 */

ql_status ql_adamw_init(ql_adamw *out, size_t count, double beta1, double beta2, double eps, double weight_decay,
                        ql_error *err)
{
    *out = (ql_adamw){0};
    if (!(beta1 >= 0 && beta1 < 1) || !(beta2 >= 0 && beta2 < 1))
        return ql_fail(err, QL_ERR_ARG, "AdamW: betas are %g and %g; they must be in [0, 1)", beta1, beta2);
    if (!(eps > 0 && isfinite(eps)))
        return ql_fail(err, QL_ERR_ARG, "AdamW: eps is %g; it must be above 0", eps);
    if (!(weight_decay >= 0 && isfinite(weight_decay)))
        return ql_fail(err, QL_ERR_ARG, "AdamW: weight decay is %g; it must be 0 or more", weight_decay);
    float *m = count <= SIZE_MAX / sizeof *m ? ql_alloc(count * sizeof *m) : NULL;
    float *v = m ? ql_alloc(count * sizeof *v) : NULL;
    if (!v) {
        free(m);
        return ql_fail(err, QL_ERR_MEMORY, "AdamW: moments of %zu parameters are not to be had", count);
    }
    *out = (ql_adamw){beta1, beta2, eps, weight_decay, count, 0, m, v};
    return QL_OK;
}

void ql_adamw_free(ql_adamw *opt)
{
    if (!opt)
        return;
    free(opt->m);
    free(opt->v);
    *opt = (ql_adamw){0};
}

/* The scalars of one step, as torch rounds them to fp32. */
typedef struct factors {
    float grad_scale, decay, one_minus_beta1, beta2, one_minus_beta2, root_correction, eps, minus_step;
} factors;

static factors prepare(const ql_adamw *opt, double lr, double grad_scale)
{
    double steps = (double)opt->step;
    double correction1 = 1 - pow(opt->beta1, steps), correction2 = 1 - pow(opt->beta2, steps);
    return (factors){
        .grad_scale = (float)grad_scale,
        .decay = (float)(1 - lr * opt->weight_decay),
        .one_minus_beta1 = (float)(1 - opt->beta1),
        .beta2 = (float)opt->beta2,
        .one_minus_beta2 = (float)(1 - opt->beta2),
        .root_correction = (float)sqrt(correction2),
        .eps = (float)opt->eps,
        .minus_step = (float)(-lr / correction1),
    };
}

#define INLINE static inline __attribute__((always_inline))

INLINE void update(const factors *f, size_t count, const float *restrict grad, float *restrict m, float *restrict v,
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

static update_part *select_update(void)
{
#ifdef __x86_64__
    if (ql_cpu_features() & QL_CPU_AVX512)
        return update_avx512;
    if (ql_cpu_features() & QL_CPU_AVX2)
        return update_avx2;
#endif
    return update_plain;
}

typedef struct step_work {
    const ql_adamw *opt;
    const ql_adapters *set;
    factors f;
    update_part *update;
} step_work;

static void task(void *ctx, size_t index, size_t worker)
{
    const step_work *w = ctx;
    (void)worker;
    size_t at = index * CHUNK, count = w->set->count - at < CHUNK ? w->set->count - at : CHUNK;
    w->update(&w->f, count, w->set->grad + at, w->opt->m + at, w->opt->v + at, w->set->master + at,
              w->set->value + at);
}

void ql_adamw_step(ql_adamw *opt, ql_adapters *set, double lr, double grad_scale, ql_workers *workers)
{
    assert(set->count == opt->count && set->master && set->grad);
    opt->step++;
    step_work work = {opt, set, prepare(opt, lr, grad_scale), select_update()};
    ql_parallel(workers, (set->count + CHUNK - 1) / CHUNK, task, &work);
}
