/* AVX-512, fp32: panels decoded into the first-level cache, a 14 x 32 FMA micro-tile. */
#include "base/cpu.h"
#include "kern/blocked.h"
#include "kern/decode.h"
#include "kern/fill_avx512.h"
#include "kern/gemv_avx512.h"
#include "kern/ggml_few.h"
#include "kern/kernels.h"
#include "kern/micro_avx512.h"

enum { DEPTH = 256 };

static inline __m512 step(__m512 sum, __m512 x, __m512 w)
{
    return _mm512_fmadd_ps(x, w, sum);
}

static void multiply(size_t rows, size_t depth, const float *a, const float *panel, float *y, size_t ldy, size_t cols,
                     bool add)
{
    multiply_avx512(step, rows, depth, a, panel, y, ldy, cols, add);
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
