/* 12 tokens at a time: going down their sums are 12 vectors of ranks, going up 12 x 2 vectors of features. */
#ifdef __x86_64__
#include <immintrin.h>

#include "base/cpu.h"
#include "lora/thin.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#define INLINE static inline __attribute__((always_inline))

enum { LANES = QL_THIN_LANES };

static __mmask16 first(size_t lanes)
{
    return lanes >= LANES ? 0xffff : (__mmask16)((1u << lanes) - 1);
}

/* `tokens` and `wide` are constants in every call, so the loops over them unroll and sums live in registers. */
AVX512 INLINE void project_some(const size_t tokens, size_t k, size_t r, const float *x, size_t ldx,
                                const float *panel, __m512 factor, float *h, __mmask16 mask)
{
    __m512 sum[12];
#pragma GCC unroll 12
    for (size_t t = 0; t < tokens; t++)
        sum[t] = _mm512_setzero_ps();
    const float *x4 = x + 4 * ldx, *x8 = x + 8 * ldx;
    for (size_t j = 0; j < k; j++) {
        __m512 p = _mm512_loadu_ps(panel + j * LANES);
#pragma GCC unroll 12
        for (size_t t = 0; t < tokens; t++) {
            const float *row = t < 4 ? x + t * ldx : t < 8 ? x4 + (t - 4) * ldx : x8 + (t - 8) * ldx;
            sum[t] = _mm512_fmadd_ps(_mm512_set1_ps(row[j]), p, sum[t]);
        }
    }
#pragma GCC unroll 12
    for (size_t t = 0; t < tokens; t++)
        _mm512_mask_storeu_ps(h + t * r, mask, _mm512_mul_ps(factor, sum[t]));
}

AVX512 static void project(size_t m, size_t k, size_t r, const float *x, size_t ldx, const float *panel, float factor,
                           float *h)
{
    __m512 f = _mm512_set1_ps(factor);
    for (size_t i = 0; i < r; i += LANES, panel += k * LANES) {
        size_t t = 0;
        for (; t + 12 <= m; t += 12)
            project_some(12, k, r, x + t * ldx, ldx, panel, f, h + t * r + i, first(r - i));
        for (; t + 4 <= m; t += 4)
            project_some(4, k, r, x + t * ldx, ldx, panel, f, h + t * r + i, first(r - i));
        for (; t < m; t++)
            project_some(1, k, r, x + t * ldx, ldx, panel, f, h + t * r + i, first(r - i));
    }
}

/* Features of `wide` blocks, the last of which has those of `mask`. */
AVX512 INLINE void expand_some(const size_t tokens, const size_t wide, size_t r, const float *h, const float *panel,
                               float *y, size_t ldy, __mmask16 mask)
{
    __m512 sum[12][2];
#pragma GCC unroll 12
    for (size_t t = 0; t < tokens; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < wide; v++)
            sum[t][v] = _mm512_maskz_loadu_ps(v + 1 < wide ? 0xffff : mask, y + t * ldy + v * LANES);
    const float *h4 = h + 4 * r, *h8 = h + 8 * r;
    for (size_t i = 0; i < r; i++) {
        __m512 p[2];
#pragma GCC unroll 2
        for (size_t v = 0; v < wide; v++)
            p[v] = _mm512_loadu_ps(panel + (v * r + i) * LANES);
#pragma GCC unroll 12
        for (size_t t = 0; t < tokens; t++) {
            const float *row = t < 4 ? h + t * r : t < 8 ? h4 + (t - 4) * r : h8 + (t - 8) * r;
            __m512 s = _mm512_set1_ps(row[i]);
#pragma GCC unroll 2
            for (size_t v = 0; v < wide; v++)
                sum[t][v] = _mm512_fmadd_ps(s, p[v], sum[t][v]);
        }
    }
#pragma GCC unroll 12
    for (size_t t = 0; t < tokens; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < wide; v++)
            _mm512_mask_storeu_ps(y + t * ldy + v * LANES, v + 1 < wide ? 0xffff : mask, sum[t][v]);
}

AVX512 INLINE void expand_row(const size_t tokens, size_t r, size_t cols, const float *h, const float *panel, float *y,
                              size_t ldy)
{
    size_t j = 0;
    for (; j + LANES < cols; j += 2 * LANES)
        expand_some(tokens, 2, r, h, panel + j * r, y + j, ldy, first(cols - j - LANES));
    if (j < cols)
        expand_some(tokens, 1, r, h, panel + j * r, y + j, ldy, first(cols - j));
}

AVX512 static void expand(size_t m, size_t r, size_t cols, const float *h, const float *panel, float *y, size_t ldy)
{
    size_t t = 0;
    for (; t + 12 <= m; t += 12)
        expand_row(12, r, cols, h + t * r, panel, y + t * ldy, ldy);
    for (; t + 4 <= m; t += 4)
        expand_row(4, r, cols, h + t * r, panel, y + t * ldy, ldy);
    for (; t < m; t++)
        expand_row(1, r, cols, h + t * r, panel, y + t * ldy, ldy);
}

AVX512 static void widen(size_t rows, size_t cols, const uint16_t *src, size_t ld, float *panel)
{
    for (size_t i = 0; i < rows; i++)
        _mm512_storeu_ps(panel + i * LANES, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(cols), src + i * ld)));
}

/* One step of a transposition: the lanes with bit `by` change between a and b, `by` places apart. */
AVX512 INLINE void exchange(__m512 *a, __m512 *b, const int by)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 odd = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(by));
    __m512i low = _mm512_mask_add_epi32(lane, odd, lane, _mm512_set1_epi32(LANES - by));
    __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(by));
    __m512 x = _mm512_permutex2var_ps(*a, low, *b);
    *b = _mm512_permutex2var_ps(*a, high, *b);
    *a = x;
}

AVX512 static void turn(size_t rows, size_t cols, const uint16_t *src, size_t ld, float *panel)
{
    for (size_t j = 0; j < cols; j += LANES) {
        __m512 line[LANES];
#pragma GCC unroll 16
        for (size_t l = 0; l < LANES; l++) {
            line[l] = _mm512_setzero_ps();
            if (l < rows)
                line[l] = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(cols - j), src + l * ld + j));
        }
#pragma GCC unroll 4
        for (int by = LANES / 2; by; by /= 2)
#pragma GCC unroll 16
            for (int l = 0; l < LANES; l++)
                if (!(l & by))
                    exchange(&line[l], &line[l | by], by);
#pragma GCC unroll 16
        for (size_t l = 0; l < LANES; l++)
            if (j + l < cols)
                _mm512_storeu_ps(panel + (j + l) * LANES, line[l]);
    }
}

const ql_thin_kernels ql_thin_avx512 = {"avx512", QL_CPU_AVX512, project, expand, widen, turn};
#endif
