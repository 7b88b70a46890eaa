/* AVX-512, fp32: panels decoded into the first-level cache, a 14 x 32 FMA micro-tile. */
#include "base/cpu.h"
#include "kern/blocked.h"
#include "kern/decode.h"
#include "kern/few.h"
#include "kern/fill_avx512.h"
#include "kern/gemv.h"
#include "kern/ggml_few.h"
#include "kern/kernels.h"
#include "kern/micro_avx512.h"
#include "kern/pack_avx512.h"

enum { DEPTH = 256 };

static inline __m512 step(__m512 sum, __m512 x, __m512 w)
{
    return _mm512_fmadd_ps(x, w, sum);
}

static void multiply(size_t rows, size_t depth, const float *a, const float *panel, ql_sums to)
{
    multiply_avx512(step, rows, depth, a, panel, to);
}

static inline __m512i load_terms(const float *x, size_t count)
{
    return _mm512_maskz_loadu_epi32((__mmask16)(count >= 16 ? 0xffffu : (1u << count) - 1), x);
}

static void pack_micro(const float *x, size_t ldx, size_t depth, size_t tokens, float *out)
{
    pack_avx512(load_terms, 1, x, ldx, depth, tokens, out);
}

static void fill(const ql_product *p, size_t col, size_t cols, size_t from, size_t depth, float *panel)
{
    if (!ql_is_dense(p->w) && !ql_row_groups(p->w) && !ql_code_is_ggml(p->w->format.code))
        ql_blocked_fill(p, WIDTH, col, cols, from, depth, panel, WIDTH * DEPTH);
    else if (p->transposed)
        ql_fill_backward_avx512(p->w, col, cols, from, depth, panel, WIDTH * DEPTH);
    else
        ql_fill_forward_avx512(p->w, col, cols, from, depth, panel);
}

static const ql_blocked blocked = {
    .tokens = TOKENS, .width = WIDTH, .depth = DEPTH, .together = QL_BLOCK, .fill = fill, .pack = pack_micro,
    .multiply = multiply};

static const ql_way ways[] = {
    {.fits = ql_few_fits, .packed = ql_few_packed, .plan = ql_few_plan,
     .pack = ql_few_avx512_pack, .tile = ql_few_avx512_tile},
    {.fits = ql_gemv_fits, .packed = ql_gemv_packed, .plan = ql_gemv_plan,
     .pack = ql_gemv_avx512_pack, .tile = ql_gemv_avx512_tile},
    {.fits = ql_ggml_few_fits, .packed = ql_ggml_few_packed, .plan = ql_ggml_few_plan, .tile = ql_ggml_few_avx512},
    {.fits = ql_takes_everything, .blocked = &blocked},
};
enum { WAYS = sizeof ways / sizeof *ways };

const ql_matmul_kernel ql_matmul_avx512 = {.name = "avx512",
                                           .cpu = QL_CPU_AVX2 | QL_CPU_AVX512,
                                           .accepts = ql_accepts_everything,
                                           .ways = ways,
                                           .way_count = WAYS};
