/* qlora-bench ops: what a transformer block does besides its linear layers, at the shapes of named models, in
 * processor time of one thread. Attention stands beside the fused multiply-add rate of the same run. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "base/workers.h"
#include "commands.h"
#include "model/ops.h"
#include "roof.h"

typedef struct model {
    const char *name;
    size_t layers, hidden, heads, kv_heads, head_dim, mlp;
} model;

static const model models[] = {
    {"smollm2-135m", 30, 576, 9, 3, 64, 1536},
    {"qwen2.5-0.5b", 24, 896, 14, 2, 64, 4864},
    {"tinyllama-1.1b", 22, 2048, 32, 4, 64, 5632},
    {"head-dim-128", 1, 2048, 16, 8, 128, 6144},
};

/* The arrays of one layer, big enough for any operation. */
typedef struct arrays {
    float *a, *b, *c, *d, *e, *f, *g, *lse, *w;
    uint32_t *position;
    size_t m;
    bool bf16;
    const model *model;
    ql_rope rope;
    ql_workers *workers;
} arrays;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static ql_attention attention(const arrays *x, const size_t *start)
{
    const model *m = x->model;
    return (ql_attention){.heads = m->heads,
                          .kv_heads = m->kv_heads,
                          .head_dim = m->head_dim,
                          .scale = 1 / sqrtf((float)m->head_dim),
                          .sequences = 1,
                          .start = start,
                          .bf16 = x->bf16};
}

static void attention_forward(const arrays *x)
{
    size_t ldq = x->model->heads * x->model->head_dim, ldkv = x->model->kv_heads * x->model->head_dim;
    ql_attention config = attention(x, (const size_t[]){0, x->m});
    ql_attention_forward(&config, x->a, ldq, x->b, x->c, ldkv, x->d, ldq, x->lse, x->workers);
}

static void attention_backward(const arrays *x)
{
    size_t ldq = x->model->heads * x->model->head_dim, ldkv = x->model->kv_heads * x->model->head_dim;
    ql_attention config = attention(x, (const size_t[]){0, x->m});
    ql_attention_grads g = {x->a, x->b, x->c, x->d, x->d, x->lse, x->e, x->f,
                            x->g, ldq,  ldkv, ldq,  ldq,  ldq,    ldkv};
    ql_attention_backward(&config, &g, x->workers);
}

static void attention_decode(const arrays *x)
{
    size_t ldq = x->model->heads * x->model->head_dim, ldkv = x->model->kv_heads * x->model->head_dim;
    ql_attention config = attention(x, (const size_t[]){0, x->m});
    ql_attention_decode(&config, x->m - 1, 1, x->a, ldq, x->b, x->c, ldkv, x->d, ldq, x->workers);
}

static void norms(const arrays *x)
{
    size_t d = x->model->hidden;
    ql_rmsnorm norm = {1, d, x->w, 1e-5f};
    for (int i = 0; i < 2; i++)
        ql_rmsnorm_forward(&norm, x->m, x->a, d, x->d, d, x->lse, NULL);
}

static void norms_backward(const arrays *x)
{
    size_t d = x->model->hidden;
    ql_rmsnorm norm = {1, d, x->w, 1e-5f};
    for (int i = 0; i < 2; i++)
        ql_rmsnorm_backward(&norm, x->m, x->a, d, x->lse, x->d, d, x->e, d, true, NULL);
}

static void rope(const arrays *x)
{
    const model *m = x->model;
    const ql_heads heads[] = {{.heads = m->heads, .x = x->a, .ld = m->heads * m->head_dim},
                              {.heads = m->kv_heads, .x = x->b, .ld = m->kv_heads * m->head_dim}};
    ql_heads_forward(&x->rope, m->head_dim, 0, x->m, x->position, heads, 2, NULL);
}

static void swiglu(const arrays *x)
{
    size_t d = x->model->mlp;
    ql_glu_forward(QL_SWIGLU, x->m, d, &(ql_glu_in){x->a, x->b, d, d, {0}}, (ql_either){.wide = x->d}, d, NULL, NULL);
}

static void swiglu_backward(const arrays *x)
{
    size_t d = x->model->mlp;
    ql_glu_backward(QL_SWIGLU, x->m, d, &(ql_glu_in){x->a, x->b, d, d, {0}}, x->d, d,
                    &(ql_glu_out){{.wide = x->e}, {.wide = x->f}, {0}, d}, NULL);
}

typedef struct operation {
    const char *name;
    void (*run)(const arrays *x);
    double products; /* of attention, [m x m] / 2 times head_dim; 0: none counted */
} operation;

static const operation operations[] = {
    {"attention forward", attention_forward, 2},
    {"attention backward", attention_backward, 5},
    {"attention decode", attention_decode, 0},
    {"two norms forward", norms, 0},
    {"two norms backward", norms_backward, 0},
    {"rope of q and k", rope, 0},
    {"swiglu forward", swiglu, 0},
    {"swiglu backward", swiglu_backward, 0},
};

static bool make(arrays *x, const model *like, size_t m)
{
    size_t widest = like->mlp > like->heads * like->head_dim ? like->mlp : like->heads * like->head_dim;
    size_t floats = m * widest;
    *x = (arrays){.m = m, .model = like, .rope = {.positions = m, .half = like->head_dim / 2}};
    float **all[] = {&x->a, &x->b, &x->c, &x->d, &x->e, &x->f, &x->g};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (!(*all[i] = ql_alloc(floats * sizeof(float))))
            return false;
        uint32_t state = 1;
        for (size_t j = 0; j < floats; j++) {
            state = state * 1664525u + 1013904223u;
            (*all[i])[j] = (float)(state >> 8) * 0x1p-23f - 1;
        }
    }
    x->lse = ql_alloc(m * like->heads * sizeof(float));
    x->w = ql_alloc(like->hidden * sizeof(float));
    x->position = ql_alloc(m * sizeof *x->position);
    x->rope.cos = ql_alloc(m * like->head_dim * sizeof(float));
    x->rope.sin = ql_alloc(m * like->head_dim * sizeof(float));
    if (!x->lse || !x->w || !x->position || !x->rope.cos || !x->rope.sin)
        return false;
    for (size_t t = 0; t < m; t++)
        x->position[t] = (uint32_t)t;
    ql_attention config = attention(x, NULL);
    return ql_workers_create(&x->workers, 1, NULL) == QL_OK &&
           ql_workers_reserve(x->workers, ql_attention_scratch(&config, m, true), NULL) == QL_OK;
}

static void drop(arrays *x)
{
    float *all[] = {x->a, x->b, x->c, x->d, x->e, x->f, x->g, x->lse, x->w, x->rope.cos, x->rope.sin};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(x->position);
    ql_workers_destroy(x->workers);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double fma_rate(void)
{
    const roof *r = roof_for(ql_cpu_features() & (QL_CPU_AVX2 | QL_CPU_AVX512));
    double start = now();
    return r->work(100000) / (now() - start);
}

/* Medians over the runs; each run of the operation stands beside one of the roof. */
static void measure(const operation *op, const arrays *x)
{
    enum { RUNS = 9 };
    double seconds[RUNS], shares[RUNS];
    op->run(x);
    double start = now();
    op->run(x);
    size_t times = (size_t)(0.02 / (now() - start + 1e-7)) + 1;
    double pairs = (double)x->m * (double)(x->m + 1) / 2 * (double)(x->model->heads * x->model->head_dim);
    for (int i = 0; i < RUNS; i++) {
        double rate = fma_rate();
        start = now();
        for (size_t j = 0; j < times; j++)
            op->run(x);
        seconds[i] = (now() - start) / (double)times;
        shares[i] = 2 * op->products * pairs / seconds[i] / rate;
    }
    qsort(seconds, RUNS, sizeof *seconds, ascending);
    qsort(shares, RUNS, sizeof *shares, ascending);
    double typical = seconds[RUNS / 2];
    printf("%-15s %5zu  %-19s %9.3f ms a layer %9.1f ms a model", x->model->name, x->m, op->name, typical * 1e3,
           typical * 1e3 * (double)x->model->layers);
    if (op->products > 0)
        printf("  %6.1f GFLOP/s, %4.1f %% of the FMA rate", 2 * op->products * pairs / typical * 1e-9,
               100 * shares[RUNS / 2]);
    printf("\n");
}

static const char help[] =
    "usage: qlora-bench ops [TOKENS ...] [bf16] [WORDS]\n"
    "\n"
    "Times the operations whose names contain the words (all of them without any), for these numbers of tokens\n"
    "(512 and 2048 without any). bf16 lets attention round to it where the processor has a way. Example:\n"
    "  qlora-bench ops 512 bf16 attention\n";

int bench_ops(int argc, char **argv)
{
    const char *only = "";
    bool bf16 = false;
    size_t tokens[16] = {512, 2048}, count = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            fputs(help, stdout);
            return 0;
        }
        if (strcmp(argv[i], "bf16") == 0)
            bf16 = true;
        else if (atoi(argv[i]) > 0 && count < 16)
            tokens[count++] = (size_t)atoi(argv[i]);
        else
            only = argv[i];
    }
    count = count ? count : 2;
    printf("%s\n", ql_cpu_describe());
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        for (size_t j = 0; j < count; j++) {
            arrays x;
            if (!make(&x, &models[i], tokens[j])) {
                fprintf(stderr, "qlora-bench: out of memory\n");
                return 1;
            }
            x.bf16 = bf16;
            for (size_t k = 0; k < sizeof operations / sizeof *operations; k++)
                if (strstr(operations[k].name, only))
                    measure(&operations[k], &x);
            drop(&x);
        }
    return 0;
}
