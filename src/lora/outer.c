/* Strips of columns go to threads. In fp32 a strip walks the tokens in blocks whose part of x stays in L1 while every
 * block of rows passes over it. */
#include "lora/outer.h"

#include "base/cpu.h"
#include "base/half.h"
#include "base/workers.h"
#include "lora/dropout.h"

#include <string.h>

enum { TOKENS = 128 };

static void plain_rows(size_t m, size_t rows, const float *s, size_t lds, const float *x, size_t ldx, float *acc)
{
    for (size_t t = 0; t < m; t++)
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < QL_OUTER_COLS; j++)
                acc[i * QL_OUTER_COLS + j] += s[t * lds + i] * x[t * ldx + j];
}

static void plain_strip(const ql_outer *o, ql_outer_strip s)
{
    ql_outer_by_rows(o, s, plain_rows);
}

static const ql_outer_kernel plain = {"plain", 0, false, QL_OUTER_COLS, QL_OUTER_COLS, QL_OUTER_RANKS, plain_strip};

const ql_outer_kernel *const ql_outer_kernels[] = {
    &plain,
#ifdef __x86_64__
    &ql_outer_avx2, &ql_outer_avx512, &ql_outer_avx512_bf16, &ql_outer_amx,
#endif
    NULL,
};

const ql_outer_kernel *ql_outer_select(uint32_t features, bool bf16)
{
    const ql_outer_kernel *best = ql_outer_kernels[0];
    for (size_t i = 0; ql_outer_kernels[i]; i++)
        if (!(ql_outer_kernels[i]->cpu & ~features) && (bf16 || !ql_outer_kernels[i]->bf16_inputs))
            best = ql_outer_kernels[i];
    return best;
}

/* A row of a strip, of QL_OUTER_COLS, zeros past its end. */
static void copy_row(const ql_outer *o, ql_outer_strip s, size_t token, float *copy)
{
    size_t at = token * o->ldx + s.col;
    if (o->dropout)
        ql_dropout_apply(o->dropout, token, s.col, s.cols, o->x + at, copy);
    else if (!o->narrow)
        memcpy(copy, o->x + at, s.cols * sizeof *copy);
    for (size_t j = 0; o->narrow && j < s.cols; j++)
        copy[j] = ql_bf16_to_f32(o->narrow[at + j]);
    memset(copy + s.cols, 0, (QL_OUTER_COLS - s.cols) * sizeof *copy);
}

/* x of a block of tokens: in place, or a copy when it is ragged, narrow or under dropout. */
static const float *block_of_x(const ql_outer *o, ql_outer_strip s, size_t token, size_t tokens,
                               float copy[TOKENS][QL_OUTER_COLS], size_t *ldx)
{
    *ldx = o->ldx;
    if (!o->dropout && !o->narrow && s.cols == QL_OUTER_COLS)
        return o->x + token * o->ldx + s.col;
    for (size_t t = 0; t < tokens; t++)
        copy_row(o, s, token + t, copy[t]);
    *ldx = QL_OUTER_COLS;
    return copy[0];
}

void ql_outer_by_rows(const ql_outer *o, ql_outer_strip s, ql_outer_rows *kernel)
{
    _Alignas(64) float acc[QL_OUTER_RANKS * QL_OUTER_COLS] = {0};
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
    if (o->stride_j == 1) { /* the innermost loop goes along the result's rows */
        for (size_t i = 0; i < s.ranks; i++)
            for (size_t j = 0; j < s.cols; j++)
                out[i * o->stride_i + j] += acc[i * QL_OUTER_COLS + j];
        return;
    }
    for (size_t j = 0; j < s.cols; j++)
        for (size_t i = 0; i < s.ranks; i++)
            out[j * o->stride_j + i] += acc[i * QL_OUTER_COLS + j];
}

/* ---- strips ---- */

typedef struct job {
    const ql_outer_kernel *kernel;
    const ql_outer *outer;
    size_t count, width; /* width: of a strip */
} job;

static size_t strips(const ql_outer *o, const ql_outer_kernel *kernel, size_t width)
{
    return (o->cols + width - 1) / width * ((o->r + kernel->ranks - 1) / kernel->ranks);
}

static size_t strips_of_all(const ql_outer *outer, size_t count, const ql_outer_kernel *kernel, size_t width)
{
    size_t all = 0;
    for (size_t i = 0; i < count; i++)
        all += strips(&outer[i], kernel, width);
    return all;
}

/* How many from `o` on read the same x, and for results of the same size. */
static size_t abreast(const job *j, const ql_outer *o)
{
    const ql_outer *end = j->outer + j->count, *next = o;
    while (next < end && next->x == o->x && next->narrow == o->narrow && next->cols == o->cols && next->r == o->r)
        next++;
    return (size_t)(next - o);
}

/* Results that read the same x take turns, strip by strip. */
static void task(void *ctx, size_t index, size_t worker)
{
    const job *j = ctx;
    const ql_outer *o = j->outer;
    size_t same = abreast(j, o), each = strips(o, j->kernel, j->width);
    (void)worker;
    for (; index >= same * each; same = abreast(j, o), each = strips(o, j->kernel, j->width)) {
        index -= same * each;
        o += same;
    }
    o += index % same;
    index /= same;
    size_t across = (o->cols + j->width - 1) / j->width, most = j->kernel->ranks;
    ql_outer_strip s = {.col = index % across * j->width, .rank = index / across * most};
    s.cols = o->cols - s.col < j->width ? o->cols - s.col : j->width;
    s.ranks = o->r - s.rank < most ? o->r - s.rank : most;
    j->kernel->strip(o, s);
}

void ql_outer_run(const ql_outer_kernel *kernel, const ql_outer *outer, size_t count, ql_workers *workers)
{
    enum { SHARES = 4 }; /* strips a thread, so that none waits long for another's last one */
    job j = {kernel, outer, count, kernel->cols};
    while (j.width > kernel->least && strips_of_all(outer, count, kernel, j.width) < SHARES * ql_workers_count(workers))
        j.width /= 2;
    ql_parallel(workers, strips_of_all(outer, count, kernel, j.width), task, &j);
}

void ql_outer_add(const ql_outer *outer, size_t count, bool bf16, ql_workers *workers)
{
    ql_outer_run(ql_outer_select(ql_cpu_features(), bf16), outer, count, workers);
}
