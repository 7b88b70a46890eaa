/* NEON, fp32: panels decoded into the first-level cache, a 6 x 16 FMA micro-tile. */
#include <arm_neon.h>

#include "base/cpu.h"
#include "kern/blocked.h"
#include "kern/decode.h"
#include "kern/fill_neon.h"
#include "kern/gemv.h"
#include "kern/ggml_few.h"
#include "kern/kernels.h"

enum { TOKENS = 6, WIDTH = 16, DEPTH = 256, PARTS = WIDTH / 4 };

static void store(float *line, const float32x4_t sums[PARTS], size_t cols, bool add)
{
    float sum[WIDTH];
    for (size_t i = 0; i < PARTS; i++)
        vst1q_f32(cols < WIDTH ? sum + 4 * i : line + 4 * i,
                  add && cols >= WIDTH ? vaddq_f32(sums[i], vld1q_f32(line + 4 * i)) : sums[i]);
    for (size_t i = 0; i < cols && cols < WIDTH; i++)
        line[i] = add ? sum[i] + line[i] : sum[i];
}

static inline __attribute__((always_inline)) void micro(size_t rows, size_t depth, const float *a, const float *panel,
                                                        ql_sums to)
{
    float32x4_t sums[TOKENS][PARTS];
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (size_t i = 0; i < PARTS; i++)
            sums[r][i] = vdupq_n_f32(0);
    for (size_t l = 0; l < depth; l++, panel += WIDTH, a += rows) {
        float32x4_t w[PARTS];
#pragma GCC unroll 4
        for (size_t i = 0; i < PARTS; i++)
            w[i] = vld1q_f32(panel + 4 * i);
#pragma GCC unroll 6
        for (size_t r = 0; r < rows; r++) {
            float32x4_t x = vld1q_dup_f32(a + r);
#pragma GCC unroll 4
            for (size_t i = 0; i < PARTS; i++)
                sums[r][i] = vfmaq_f32(sums[r][i], w[i], x);
        }
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < rows; r++) {
        if (to.before)
#pragma GCC unroll 4
            for (size_t i = 0; i < PARTS; i++)
                sums[r][i] = vaddq_f32(sums[r][i], vld1q_f32(to.before + r * WIDTH + 4 * i));
        store(to.y + r * to.ld, sums[r], to.cols, to.add);
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
    if (!ql_row_groups(p->w))
        ql_blocked_fill(p, WIDTH, col, cols, from, depth, panel, 0);
    else if (p->transposed)
        ql_fill_backward_neon(p->w, col, cols, from, depth, panel);
    else
        ql_fill_forward_neon(p->w, col, cols, from, depth, panel);
}

static const ql_blocked blocked = {
    .tokens = TOKENS, .width = WIDTH, .depth = DEPTH, .fill = fill, .multiply = multiply};

static const ql_way ways[] = {
    {.fits = ql_gemv_fits, .packed = ql_gemv_packed, .plan = ql_gemv_plan,
     .pack = ql_gemv_neon_pack, .tile = ql_gemv_neon_tile},
    {.fits = ql_ggml_few_fits, .packed = ql_ggml_few_packed, .plan = ql_ggml_few_plan, .tile = ql_ggml_few_neon},
    {.fits = ql_takes_everything, .blocked = &blocked},
};
enum { WAYS = sizeof ways / sizeof *ways };

const ql_matmul_kernel ql_matmul_neon = {
    .name = "neon", .cpu = QL_CPU_NEON, .accepts = ql_accepts_everything, .ways = ways, .way_count = WAYS};
