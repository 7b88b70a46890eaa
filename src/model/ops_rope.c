#include <assert.h>
#include <math.h>

#include "base/cpu.h"
#include "base/workers.h"
#include "model/ops.h"
#include "model/ops_kernels.h"

enum { TOKENS = 16 }; /* a piece of work */

static const double two_pi = 6.283185307179586476925;

/* Llama 3 slows the low frequencies by `factor`, leaves the high ones, and blends in between. */
static double llama3_frequency(const ql_rope_config *config, double frequency)
{
    double wavelength = two_pi / frequency, trained = config->original_max_positions;
    if (wavelength < trained / config->high_freq_factor)
        return frequency;
    if (wavelength > trained / config->low_freq_factor)
        return frequency / config->factor;
    double smooth = (trained / wavelength - config->low_freq_factor) /
                    (config->high_freq_factor - config->low_freq_factor);
    return (1 - smooth) * frequency / config->factor + smooth * frequency;
}

void ql_rope_frequencies(const ql_rope_config *config, double *frequency)
{
    for (size_t i = 0; i < config->head_dim / 2; i++) {
        frequency[i] = pow(config->theta, -2.0 * (double)i / (double)config->head_dim);
        if (config->linear > 0)
            frequency[i] /= config->linear;
        if (config->llama3)
            frequency[i] = llama3_frequency(config, frequency[i]);
        if (config->divisors)
            frequency[i] /= (double)config->divisors[i];
    }
}

typedef struct fill_job {
    const ql_rope *rope;
    double gain;
    double frequency[128];
} fill_job;

static void fill_positions(void *ctx, size_t index, size_t worker)
{
    const fill_job *job = ctx;
    const ql_rope *rope = job->rope;
    (void)worker;
    size_t end = (index + 1) * TOKENS < rope->positions ? (index + 1) * TOKENS : rope->positions;
    for (size_t p = index * TOKENS; p < end; p++)
        for (size_t i = 0; i < rope->half; i++) {
            rope->cos[p * rope->half + i] = (float)(job->gain * cos((double)p * job->frequency[i]));
            rope->sin[p * rope->half + i] = (float)(job->gain * sin((double)p * job->frequency[i]));
        }
}

void ql_rope_fill(const ql_rope *rope, const ql_rope_config *config, ql_workers *workers)
{
    fill_job job = {.rope = rope, .gain = config->gain > 0 ? config->gain : 1};
    assert(rope->half == config->head_dim / 2 && 2 * rope->half <= rope->head_dim);
    assert(rope->half <= sizeof job.frequency / sizeof *job.frequency);
    ql_rope_frequencies(config, job.frequency);
    ql_parallel(workers, (rope->positions + TOKENS - 1) / TOKENS, fill_positions, &job);
}

typedef struct heads_job {
    const ql_row_kernels *kernels;
    const ql_rope *rope;
    size_t head_dim, m, count;
    float eps;
    const uint32_t *position;
    const ql_heads *arrays;
} heads_job;

static void turn(const heads_job *job, size_t t, bool inverse, float *x)
{
    if (!job->rope)
        return;
    assert(job->position[t] < job->rope->positions);
    size_t half = job->rope->half, row = job->position[t] * half;
    job->kernels->rotate(half, job->rope->cos + row, job->rope->sin + row, inverse, x);
}

static void forward_heads(const heads_job *job, const ql_heads *a, size_t t)
{
    for (size_t h = 0; h < a->heads; h++) {
        size_t at = t * a->ld + h * job->head_dim;
        if (a->w) {
            float rstd =
                job->kernels->rmsnorm(job->head_dim, a->raw + at, NULL, a->w, job->eps, (ql_either){.wide = a->x + at});
            if (a->rstd)
                a->rstd[t * a->heads + h] = rstd;
        }
        turn(job, t, false, a->x + at);
    }
}

static void backward_heads(const heads_job *job, const ql_heads *a, size_t t)
{
    for (size_t h = 0; h < a->heads; h++) {
        size_t at = t * a->ld + h * job->head_dim;
        float *x = a->x + at;
        turn(job, t, true, x);
        if (a->w)
            job->kernels->rmsnorm_backward(job->head_dim, a->raw + at, a->w, a->rstd[t * a->heads + h], x, x, false);
    }
}

static void forward_tokens(void *ctx, size_t index, size_t worker)
{
    const heads_job *job = ctx;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++)
        for (size_t i = 0; i < job->count; i++)
            forward_heads(job, &job->arrays[i], t);
}

static void backward_tokens(void *ctx, size_t index, size_t worker)
{
    const heads_job *job = ctx;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++)
        for (size_t i = 0; i < job->count; i++)
            backward_heads(job, &job->arrays[i], t);
}

void ql_heads_forward(const ql_rope *rope, size_t head_dim, float eps, size_t m, const uint32_t *position,
                      const ql_heads *arrays, size_t count, ql_workers *workers)
{
    heads_job job = {ql_ops_select(ql_cpu_features())->rows, rope, head_dim, m, count, eps, position, arrays};
    ql_parallel(workers, (m + TOKENS - 1) / TOKENS, forward_tokens, &job);
}

void ql_heads_backward(const ql_rope *rope, size_t head_dim, size_t m, const uint32_t *position, const ql_heads *arrays,
                       size_t count, ql_workers *workers)
{
    heads_job job = {ql_ops_select(ql_cpu_features())->rows, rope, head_dim, m, count, 0, position, arrays};
    ql_parallel(workers, (m + TOKENS - 1) / TOKENS, backward_tokens, &job);
}
