/* qlora-bench lora: the thin products of adapters at the shapes of named models, in processor time of one thread,
 * beside the fused multiply-add rate of the same run. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "commands.h"
#include "lora/outer.h"
#include "lora/ways.h"
#include "roof.h"

typedef struct shape {
    const char *name;
    size_t k, n;
} shape;

static const shape shapes[] = {
    {"135m q", 576, 576},    {"135m up", 576, 1536},  {"135m down", 1536, 576},
    {"0.5b up", 896, 4864},  {"1.1b q", 2048, 2048},  {"1.1b up", 2048, 5632},
};

typedef struct layer {
    size_t m;
    bool bf16; /* gradients may round their inputs */
    ql_adapter adapter;
    ql_ways ways;
    float *x, *y, *h, *work, *grad;
} layer;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void panels(layer *l)
{
    l->ways = ql_ways_at(&l->adapter, false, l->work);
    ql_ways_fill(&l->ways, 1, NULL);
}

static void down(layer *l)
{
    ql_ways_go_down(&(ql_ways_down){.ways = &l->ways, .x = l->x, .ldx = l->adapter.k, .low = l->h}, 1, l->m, NULL);
}

static void up(layer *l)
{
    ql_ways_up_tile(&(ql_ways_up){&l->ways, l->h, l->y, l->adapter.n}, (ql_tile){0, l->m, 0, l->adapter.n});
}

static void gradient_a(layer *l)
{
    ql_outer_add(&(ql_outer){.m = l->m, .r = l->adapter.r, .cols = l->adapter.k, .s = l->h, .x = l->x,
                             .ldx = l->adapter.k, .out = l->grad, .stride_i = l->adapter.k, .stride_j = 1},
                 1, l->bf16, NULL);
}

static void gradient_b(layer *l)
{
    ql_outer_add(&(ql_outer){.m = l->m, .r = l->adapter.r, .cols = l->adapter.n, .s = l->h, .x = l->y,
                             .ldx = l->adapter.n, .out = l->grad, .stride_i = 1, .stride_j = l->adapter.r},
                 1, l->bf16, NULL);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static float *random_floats(size_t count)
{
    float *x = ql_alloc(count * sizeof *x);
    uint32_t state = 1;
    for (size_t i = 0; x && i < count; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(state >> 8) * 0x1p-23f - 1;
    }
    return x;
}

/* Median of 9 seconds, and of the shares of the FMA rate that stands beside each. */
static void measure(const char *name, void (*run)(layer *), layer *l, double operations)
{
    enum { RUNS = 9 };
    double seconds[RUNS], shares[RUNS];
    const roof *fma = roof_for(ql_cpu_features() & (QL_CPU_AVX2 | QL_CPU_AVX512));
    run(l);
    for (int i = 0; i < RUNS; i++) {
        double start = now(), rate = fma->work(50000) / (now() - start);
        start = now();
        run(l), run(l);
        seconds[i] = (now() - start) / 2;
        shares[i] = operations / seconds[i] / rate;
    }
    qsort(seconds, RUNS, sizeof *seconds, ascending);
    qsort(shares, RUNS, sizeof *shares, ascending);
    printf("  %-10s %8.3f ms", name, seconds[RUNS / 2] * 1e3);
    if (operations > 0)
        printf(" %6.1f GFLOP/s %3.0f %%", operations / seconds[RUNS / 2] * 1e-9, 100 * shares[RUNS / 2]);
    printf("\n");
}

/* Arguments: tokens (512), rank (16), and bf16. */
int bench_lora(int argc, char **argv)
{
    bool bf16 = argc > 1 && strcmp(argv[argc - 1], "bf16") == 0;
    argc -= bf16;
    int m_given = argc > 1 ? atoi(argv[1]) : 512, r_given = argc > 2 ? atoi(argv[2]) : 16;
    if (m_given < 1 || r_given < 1) {
        puts("usage: qlora-bench lora [TOKENS [RANK]] [bf16]");
        return 2;
    }
    size_t m = (size_t)m_given, r = (size_t)r_given;
    printf("%s, %zu tokens, rank %zu\n", ql_cpu_describe(), m, r);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        size_t k = shapes[i].k, n = shapes[i].n;
        layer l = {.m = m, .bf16 = bf16, .adapter = {.k = k, .n = n, .r = r, .scaling = 1}};
        uint16_t *values = ql_alloc((k + n) * r * sizeof *values);
        l.adapter.a = values, l.adapter.b = values + k * r;
        l.x = random_floats(m * k), l.y = random_floats(m * n), l.h = random_floats(m * r);
        l.grad = random_floats(r * (k > n ? k : n));
        l.work = random_floats(ql_ways_work(&l.adapter));
        if (!values || !l.x || !l.y || !l.h || !l.grad || !l.work)
            return 1;
        printf("%s, %zu to %zu\n", shapes[i].name, k, n);
        measure("panels", panels, &l, 0);
        measure("down", down, &l, 2.0 * (double)(m * k * r));
        measure("up", up, &l, 2.0 * (double)(m * n * r));
        measure("dA", gradient_a, &l, 2.0 * (double)(m * k * r));
        measure("dB", gradient_b, &l, 2.0 * (double)(m * n * r));
        free(values), free(l.x), free(l.y), free(l.h), free(l.grad), free(l.work);
    }
    return 0;
}
