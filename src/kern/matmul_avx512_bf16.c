/* AVX-512 with vdpbf16ps: x and decoded weights rounded to bf16, sums in fp32. Weights stored in fp32 are
 * multiplied as they are. */
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
#include "kern/pairs_avx512.h"

enum { DEPTH = 512, PART = 64, APART = WIDTH * DEPTH / 2 /* panels */ };

static inline __m512 step(__m512 sum, __m512 x, __m512 w)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
}

static void multiply(size_t rows, size_t depth, const float *a, const float *panel, ql_sums to)
{
    multiply_avx512(step, rows, depth, a, panel, to);
}

/* Rounded to nearest even, two neighbours in a word. */
static inline __m512i load_pairs(const float *x, size_t count)
{
    uint32_t bits = count >= 32 ? ~0u : (1u << count) - 1;
    __m512 first = _mm512_maskz_loadu_ps((__mmask16)bits, x);
    __m512 second = _mm512_maskz_loadu_ps((__mmask16)(bits >> 16), x + 16);
    return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

static void pack_micro(const float *x, size_t ldx, size_t depth, size_t tokens, float *out)
{
    pack_avx512(load_pairs, 2, x, ldx, depth, tokens, out);
}

/* out[i][32] = bf16 pairs of lines 2i and 2i + 1 of part[depth][32]. */
static void join_pairs(float *part, size_t depth, float *out)
{
    if (depth % 2)
        memset(part + depth * WIDTH, 0, WIDTH * sizeof *part);
    for (size_t i = 0; i < depth; i += 2)
        for (size_t l = 0; l < WIDTH; l += 16)
            _mm512_store_si512(out + i / 2 * WIDTH + l, join_bf16(_mm512_load_ps(part + i * WIDTH + l),
                                                                  _mm512_load_ps(part + (i + 1) * WIDTH + l)));
}

/* Up to 32 numbers. */
static inline __m512i load_bf16(const uint16_t *at, size_t count)
{
    return _mm512_maskz_loadu_epi16(count >= 32 ? ~0u : (1u << count) - 1, at);
}

/* W in bf16 as it is: its pairs of terms are the panel's words, to be turned. */
static void fill_forward_bf16(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel)
{
    for (size_t part = 0; part < cols; part += 16, panel += 16) {
        const char *rows[16];
        for (size_t r = 0; r < 16; r++) /* past the last row: the last again, never stored */
            rows[r] = (const char *)w->codes + (col + (part + r < cols ? part + r : cols - 1)) * w->row_bytes;
        for (size_t at = 0; at < depth; at += 32) {
            __m512i line[16];
            for (size_t r = 0; r < 16; r++)
                line[r] = load_bf16((const uint16_t *)(const void *)rows[r] + from + at, depth - at);
            turn16(line);
            for (size_t i = 0; i < 16 && at + 2 * i < depth; i++)
                _mm512_store_si512(panel + (at / 2 + i) * WIDTH, line[i]);
        }
    }
}

/* The same transposed: neighbouring rows side by side. */
static void fill_backward_bf16(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel)
{
    const __m512i low = pair_order(0), high = pair_order(16);
    const char *codes = (const char *)w->codes + from * w->row_bytes + 2 * col;
    for (size_t i = 0; i < depth; i += 2, codes += 2 * w->row_bytes, panel += WIDTH) {
        __m512i even = load_bf16((const uint16_t *)(const void *)codes, cols), odd = _mm512_setzero_si512();
        if (i + 1 < depth)
            odd = load_bf16((const uint16_t *)(const void *)(codes + w->row_bytes), cols);
        _mm512_store_si512(panel, _mm512_permutex2var_epi16(even, low, odd));
        _mm512_store_si512(panel + 16, _mm512_permutex2var_epi16(even, high, odd));
    }
}

static void fill(const ql_product *p, size_t col, size_t cols, size_t from, size_t depth, float *panel)
{
    if (p->w->format.code == QL_CODE_BF16) {
        for (size_t at = 0; at < cols; at += WIDTH, panel += APART)
            (p->transposed ? fill_backward_bf16 : fill_forward_bf16)(
                p->w, col + at, cols - at < WIDTH ? cols - at : WIDTH, from, depth, panel);
        return;
    }
    _Alignas(64) float parts[2][PART * WIDTH];
    for (size_t at = 0; at < depth; at += PART) {
        size_t count = depth - at < PART ? depth - at : PART;
        if (!ql_is_dense(p->w) && !ql_row_groups(p->w) && !ql_code_is_ggml(p->w->format.code))
            ql_blocked_fill(p, WIDTH, col, cols, from + at, count, parts[0], PART * WIDTH);
        else if (p->transposed)
            ql_fill_backward_avx512(p->w, col, cols, from + at, count, parts[0], PART * WIDTH);
        else
            ql_fill_forward_avx512(p->w, col, cols, from + at, count, parts[0]);
        for (size_t i = 0; i * WIDTH < cols; i++)
            join_pairs(parts[i], count, panel + i * APART + at / 2 * WIDTH);
    }
}

static const ql_blocked blocked = {
    .tokens = TOKENS, .width = WIDTH, .depth = DEPTH, .together = QL_BLOCK, .pairs = true, .fill = fill,
    .pack = pack_micro, .multiply = multiply};

/* Processor cycles, or whatever the time-stamp counter ticks in, of the better of some runs. */
static uint64_t least_ticks(bool bf16)
{
    uint64_t least = UINT64_MAX;
    for (int run = 0; run < 16; run++) {
        uint64_t start = __rdtsc();
        for (int i = 0; i < 400; i++) {
            if (bf16)
                __asm__ volatile("vpxor %%xmm15, %%xmm15, %%xmm15\n\t"
                                 ".irp r, 0,1,2,3,4,5,6,7,8,9,10,11\n\tvdpbf16ps %%zmm15, %%zmm15, %%zmm\\r\n\t.endr"
                                 :
                                 :
                                 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                                   "xmm10", "xmm11", "xmm15");
            else
                __asm__ volatile("vpxor %%xmm15, %%xmm15, %%xmm15\n\t"
                                 ".irp r, 0,1,2,3,4,5,6,7,8,9,10,11\n\tvfmadd231ps %%zmm15, %%zmm15, %%zmm\\r\n\t.endr"
                                 :
                                 :
                                 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                                   "xmm10", "xmm11", "xmm15");
        }
        uint64_t ticks = __rdtsc() - start;
        least = ticks < least ? ticks : least;
    }
    return least;
}

/* A dot product does twice the work of an FMA, but some processors take four times as long over it and
 * some no longer: it must not take much more than once. */
static bool pays(void)
{
    return least_ticks(true) * 2 < least_ticks(false) * 3;
}

static bool accepts(const ql_wview *w)
{
    return w->format.code != QL_CODE_F32; /* an LM head in 16 bits is a quarter of a small model's work */
}

static bool few_pairs_fit(const ql_product *p)
{
    return p->w->table && ql_few_fits(p);
}

static bool gemv_pairs_fit(const ql_product *p)
{
    return p->w->table && p->m <= 2 && ql_gemv_fits(p);
}

static const ql_way ways[] = {
    {.fits = few_pairs_fit, .packed = ql_few_packed, .plan = ql_few_plan,
     .pack = ql_few_avx512_bf16_pack, .tile = ql_few_avx512_bf16_tile},
    {.fits = gemv_pairs_fit, .packed = ql_gemv_packed, .plan = ql_gemv_plan,
     .pack = ql_gemv_avx512_bf16_pack, .tile = ql_gemv_avx512_bf16_tile},
    {.fits = ql_few_fits, .packed = ql_few_packed, .plan = ql_few_plan,
     .pack = ql_few_avx512_pack, .tile = ql_few_avx512_tile},
    {.fits = ql_gemv_fits, .packed = ql_gemv_packed, .plan = ql_gemv_plan,
     .pack = ql_gemv_avx512_pack, .tile = ql_gemv_avx512_tile},
    {.fits = ql_ggml_few_fits, .packed = ql_ggml_few_packed, .plan = ql_ggml_few_plan, .tile = ql_ggml_few_avx512},
    {.fits = ql_takes_everything, .blocked = &blocked},
};
enum { WAYS = sizeof ways / sizeof *ways };

const ql_matmul_kernel ql_matmul_avx512_bf16 = {.name = "avx512-bf16",
                                                .cpu = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_BF16,
                                                .accepts = accepts,
                                                .ways = ways,
                                                .way_count = WAYS,
                                                .bf16_inputs = true,
                                                .pays = pays};
