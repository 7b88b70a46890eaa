/* AVX2 and FMA, fp32: panels decoded into the first-level cache, a 6 x 16 FMA micro-tile. */
#include <immintrin.h>

#include "base/cpu.h"
#include "kern/blocked.h"
#include "kern/decode.h"
#include "kern/few.h"
#include "kern/fill_avx2.h"
#include "kern/gemv.h"
#include "kern/ggml_few.h"
#include "kern/kernels.h"

enum { TOKENS = 6, WIDTH = 16, DEPTH = 256 };

static inline __m256 plus(__m256 sum, const float *more)
{
    return _mm256_add_ps(sum, _mm256_loadu_ps(more));
}

static inline void store(float *line, __m256 low, __m256 high, size_t cols, bool add)
{
    if (cols >= WIDTH) {
        _mm256_storeu_ps(line, add ? plus(low, line) : low);
        _mm256_storeu_ps(line + 8, add ? plus(high, line + 8) : high);
        return;
    }
    float sum[WIDTH];
    _mm256_storeu_ps(sum, low);
    _mm256_storeu_ps(sum + 8, high);
    for (size_t i = 0; i < cols; i++)
        line[i] = add ? sum[i] + line[i] : sum[i];
}

/* In place: once several steps follow each other, compilers move sums among registers and to memory. */
static inline void add_product(__m256 *sum, __m256 x, __m256 w)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(*sum) : "x"(x), "x"(w));
}

static inline __attribute__((always_inline)) void one_step(size_t rows, const float *a, const float *panel,
                                                           __m256 low[TOKENS], __m256 high[TOKENS])
{
    __m256 w0 = _mm256_load_ps(panel), w1 = _mm256_load_ps(panel + 8);
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++) {
        __m256 x = _mm256_broadcast_ss(a + r);
        add_product(&low[r], x, w0);
        add_product(&high[r], x, w1);
    }
}

/* Four steps at a time, since the additions that count them would take the ports of multiply-adds. Besides, a line of the
 * next tokens' x is fetched every two, and a row of what is added to and written every four. */
static inline __attribute__((always_inline)) void micro(size_t rows, size_t depth, const float *a, const float *panel,
                                                        ql_sums to)
{
    __m256 low[TOKENS], high[TOKENS];
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++)
        low[r] = high[r] = _mm256_setzero_ps();
    const float *line = to.y, *before = to.before ? to.before : to.y;
    size_t i = 0;
    for (; i + 4 <= depth; i += 4, a += 4 * rows, panel += 4 * WIDTH) {
        bool more = i < 4 * (rows - 1);
        __builtin_prefetch(line, 1);
        __builtin_prefetch(line + WIDTH - 1, 1);
        __builtin_prefetch(before);
        line += more ? to.ld : 0;
        before += more ? WIDTH : 0;
        __builtin_prefetch(a + depth * rows);
        one_step(rows, a, panel, low, high);
        one_step(rows, a + rows, panel + WIDTH, low, high);
        __builtin_prefetch(a + (depth + 2) * rows);
        one_step(rows, a + 2 * rows, panel + 2 * WIDTH, low, high);
        one_step(rows, a + 3 * rows, panel + 3 * WIDTH, low, high);
    }
    for (; i < depth; i++, a += rows, panel += WIDTH)
        one_step(rows, a, panel, low, high);
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++) {
        if (to.before) {
            low[r] = plus(low[r], to.before + r * WIDTH);
            high[r] = plus(high[r], to.before + r * WIDTH + 8);
        }
        store(to.y + r * to.ld, low[r], high[r], to.cols, to.add);
    }
}

static void multiply(size_t rows, size_t depth, const float *a, const float *panel, ql_sums to)
{
    switch (rows) {
    case 1:
        micro(1, depth, a, panel, to);
        break;
    case 2:
        micro(2, depth, a, panel, to);
        break;
    case 3:
        micro(3, depth, a, panel, to);
        break;
    case 4:
        micro(4, depth, a, panel, to);
        break;
    case 5:
        micro(5, depth, a, panel, to);
        break;
    default:
        micro(6, depth, a, panel, to);
    }
}

static void fill(const ql_product *p, size_t col, size_t cols, size_t from, size_t depth, float *panel)
{
    if (!ql_is_dense(p->w) && !ql_row_groups(p->w))
        ql_blocked_fill(p, WIDTH, col, cols, from, depth, panel, WIDTH * DEPTH);
    else if (p->transposed)
        ql_fill_backward_avx2(p->w, col, cols, from, depth, panel, WIDTH * DEPTH);
    else
        ql_fill_forward_avx2(p->w, col, cols, from, depth, panel);
}

static const ql_blocked blocked = {
    .tokens = TOKENS, .width = WIDTH, .depth = DEPTH, .together = QL_BLOCK, .fill = fill, .multiply = multiply};

static const ql_way ways[] = {
    {.fits = ql_few_avx2_fits, .packed = ql_few_packed, .plan = ql_few_avx2_plan,
     .pack = ql_few_avx2_pack, .tile = ql_few_avx2_tile},
    {.fits = ql_gemv_fits, .packed = ql_gemv_packed, .plan = ql_gemv_plan,
     .pack = ql_gemv_avx2_pack, .tile = ql_gemv_avx2_tile},
    {.fits = ql_ggml_few_fits, .packed = ql_ggml_few_packed, .plan = ql_ggml_few_plan, .tile = ql_ggml_few_avx2},
    {.fits = ql_takes_everything, .blocked = &blocked},
};
enum { WAYS = sizeof ways / sizeof *ways };

const ql_matmul_kernel ql_matmul_avx2 = {
    .name = "avx2", .cpu = QL_CPU_AVX2, .accepts = ql_accepts_everything, .ways = ways, .way_count = WAYS};
