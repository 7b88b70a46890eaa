/* AVX-512, fp32: panels decoded into the first-level cache, a 14 x 32 FMA micro-tile. */
#include <immintrin.h>

#include "base/cpu.h"
#include "kern/blocked.h"
#include "kern/decode.h"
#include "kern/fill_avx512.h"
#include "kern/gemv_avx512.h"
#include "kern/ggml_few.h"
#include "kern/kernels.h"

enum { TOKENS = 14, WIDTH = 32, DEPTH = 256 };

static inline __attribute__((always_inline)) void micro(size_t rows, size_t depth, const float *a, const float *panel,
                                                        float *y, size_t ldy, size_t cols, bool add)
{
    __m512 low[TOKENS], high[TOKENS];
#pragma GCC unroll 14
    for (size_t r = 0; r < rows; r++) {
        low[r] = high[r] = _mm512_setzero_ps();
        __builtin_prefetch(y + r * ldy, 1);
        __builtin_prefetch(y + r * ldy + 16, 1);
    }
    for (size_t i = 0; i < depth; i++) {
        __m512 b0 = _mm512_load_ps(panel + i * WIDTH), b1 = _mm512_load_ps(panel + i * WIDTH + 16);
#pragma GCC unroll 14
        for (size_t r = 0; r < rows; r++) {
            __m512 x = _mm512_set1_ps(a[i * rows + r]);
            low[r] = _mm512_fmadd_ps(x, b0, low[r]);
            high[r] = _mm512_fmadd_ps(x, b1, high[r]);
        }
    }
    uint32_t bits = cols < WIDTH ? (1u << cols) - 1 : ~0u;
    __mmask16 m0 = (__mmask16)bits, m1 = (__mmask16)(bits >> 16);
#pragma GCC unroll 14
    for (size_t r = 0; r < rows; r++) {
        float *line = y + r * ldy;
        if (add) {
            low[r] = _mm512_add_ps(low[r], _mm512_maskz_loadu_ps(m0, line));
            high[r] = _mm512_add_ps(high[r], _mm512_maskz_loadu_ps(m1, line + 16));
        }
        _mm512_mask_storeu_ps(line, m0, low[r]);
        _mm512_mask_storeu_ps(line + 16, m1, high[r]);
    }
}

static void multiply(size_t rows, size_t depth, const float *a, const float *panel, float *y, size_t ldy, size_t cols,
                     bool add)
{
    switch (rows) {
    case 1: micro(1, depth, a, panel, y, ldy, cols, add); break;
    case 2: micro(2, depth, a, panel, y, ldy, cols, add); break;
    case 3: micro(3, depth, a, panel, y, ldy, cols, add); break;
    case 4: micro(4, depth, a, panel, y, ldy, cols, add); break;
    case 5: micro(5, depth, a, panel, y, ldy, cols, add); break;
    case 6: micro(6, depth, a, panel, y, ldy, cols, add); break;
    case 7: micro(7, depth, a, panel, y, ldy, cols, add); break;
    case 8: micro(8, depth, a, panel, y, ldy, cols, add); break;
    case 9: micro(9, depth, a, panel, y, ldy, cols, add); break;
    case 10: micro(10, depth, a, panel, y, ldy, cols, add); break;
    case 11: micro(11, depth, a, panel, y, ldy, cols, add); break;
    case 12: micro(12, depth, a, panel, y, ldy, cols, add); break;
    case 13: micro(13, depth, a, panel, y, ldy, cols, add); break;
    default: micro(14, depth, a, panel, y, ldy, cols, add); break;
    }
}

static void fill(const ql_product *p, size_t col, size_t cols, size_t from, size_t depth, float *panel)
{
    if (!ql_is_dense(p->w) && !ql_row_groups(p->w) && !ql_code_is_ggml(p->w->format.code))
        ql_blocked_fill(p, WIDTH, col, cols, from, depth, panel);
    else if (p->transposed)
        ql_fill_backward_avx512(p->w, col, cols, from, depth, panel);
    else
        ql_fill_forward_avx512(p->w, col, cols, from, depth, panel);
}

static const ql_blocked blocked = {
    .tokens = TOKENS, .width = WIDTH, .depth = DEPTH, .fill = fill, .multiply = multiply};

static bool accepts(const ql_wview *w)
{
    (void)w;
    return true;
}

static ql_plan plan(const ql_product *p, size_t threads)
{
    if (ql_gemv_fits(p))
        return ql_gemv_plan(p, threads);
    if (ql_ggml_few_fits(p))
        return ql_ggml_few_plan(p, threads);
    ql_plan plan = ql_blocked_plan(&blocked, p, threads);
    plan.packed = plan.packed > ql_gemv_packed(p) ? plan.packed : ql_gemv_packed(p);
    return plan;
}

static void pack(const ql_product *p, ql_plan plan, size_t index, void *packed)
{
    if (ql_gemv_fits(p))
        ql_gemv_pack(p, index, packed);
    else
        ql_blocked_pack(&blocked, p, plan, index, packed);
}

static void tile(const ql_product *p, ql_tile t, const void *packed, void *scratch)
{
    if (ql_gemv_fits(p))
        ql_gemv_tile(p, t, packed);
    else if (ql_ggml_few_fits(p))
        ql_ggml_few_avx512(p, t);
    else
        ql_blocked_tile(&blocked, p, t, packed, scratch);
}

const ql_matmul_kernel ql_matmul_avx512 = {
    .name = "avx512", .cpu = QL_CPU_AVX2 | QL_CPU_AVX512, .accepts = accepts, .plan = plan, .pack = pack, .tile = tile};
