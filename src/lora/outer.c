/* Strips of columns go to threads; a strip walks the tokens in blocks whose part of x stays in L1 while
 * every block of rows passes over it. */
#include "lora/outer.h"

#include "base/cpu.h"
#include "base/workers.h"
#include "lora/dropout.h"

#include <string.h>

enum { TOKENS = 128, RANKS = 64 };

void ql_outer_scalar(size_t m, size_t rows, const float *s, size_t lds, const float *x, size_t ldx, float *acc)
{
    for (size_t t = 0; t < m; t++)
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < QL_OUTER_COLS; j++)
                acc[i * QL_OUTER_COLS + j] += s[t * lds + i] * x[t * ldx + j];
}

ql_outer_kernel *ql_outer_select(uint32_t features)
{
#ifdef __x86_64__
    if (features & QL_CPU_AVX512)
        return ql_outer_avx512;
    if (features & QL_CPU_AVX2)
        return ql_outer_avx2;
#else
    (void)features;
#endif
    return ql_outer_scalar;
}

/* A rectangle of the result: columns [col, col + cols), rows [rank, rank + ranks) of it. */
typedef struct strip {
    size_t col, cols, rank, ranks;
} strip;

/* x of a block of tokens: in place, or a copy when it is ragged or under dropout. */
static const float *block_of_x(const ql_outer *o, strip s, size_t token, size_t tokens,
                               float copy[TOKENS][QL_OUTER_COLS], size_t *ldx)
{
    const float *x = o->x + token * o->ldx + s.col;
    *ldx = o->ldx;
    if (!o->dropout && s.cols == QL_OUTER_COLS)
        return x;
    for (size_t t = 0; t < tokens; t++) {
        if (o->dropout)
            ql_dropout_apply(o->dropout, token + t, s.col, s.cols, x + t * o->ldx, copy[t]);
        else
            memcpy(copy[t], x + t * o->ldx, s.cols * sizeof *x);
        memset(copy[t] + s.cols, 0, (QL_OUTER_COLS - s.cols) * sizeof *x);
    }
    *ldx = QL_OUTER_COLS;
    return copy[0];
}

static void run_strip(const ql_outer *o, strip s, ql_outer_kernel *kernel)
{
    _Alignas(64) float acc[RANKS * QL_OUTER_COLS] = {0};
    _Alignas(64) float copy[TOKENS][QL_OUTER_COLS];
    for (size_t token = 0; token < o->m; token += TOKENS) {
        size_t tokens = o->m - token < TOKENS ? o->m - token : TOKENS, ldx;
        const float *x = block_of_x(o, s, token, tokens, copy, &ldx);
        for (size_t i = 0; i < s.ranks; i += QL_OUTER_ROWS) {
            size_t rows = s.ranks - i < QL_OUTER_ROWS ? s.ranks - i : QL_OUTER_ROWS;
            kernel(tokens, rows, o->s + token * o->r + s.rank + i, o->r, x, ldx, acc + i * QL_OUTER_COLS);
        }
    }
    float *out = o->out + s.rank * o->stride_i + s.col * o->stride_j;
    for (size_t i = 0; i < s.ranks; i++)
        for (size_t j = 0; j < s.cols; j++)
            out[i * o->stride_i + j * o->stride_j] += acc[i * QL_OUTER_COLS + j];
}

static size_t strips(const ql_outer *o)
{
    return (o->cols + QL_OUTER_COLS - 1) / QL_OUTER_COLS * ((o->r + RANKS - 1) / RANKS);
}

static void task(void *ctx, size_t index, size_t worker)
{
    const ql_outer *o = ctx;
    (void)worker;
    for (; index >= strips(o); o++)
        index -= strips(o);
    size_t across = (o->cols + QL_OUTER_COLS - 1) / QL_OUTER_COLS;
    strip s = {.col = index % across * QL_OUTER_COLS, .rank = index / across * RANKS};
    s.cols = o->cols - s.col < QL_OUTER_COLS ? o->cols - s.col : QL_OUTER_COLS;
    s.ranks = o->r - s.rank < RANKS ? o->r - s.rank : RANKS;
    run_strip(o, s, ql_outer_select(ql_cpu_features()));
}

void ql_outer_add(const ql_outer *outer, size_t count, ql_workers *workers)
{
    size_t tasks = 0;
    for (size_t i = 0; i < count; i++)
        tasks += strips(&outer[i]);
    ql_parallel(workers, tasks, task, (void *)outer);
}
