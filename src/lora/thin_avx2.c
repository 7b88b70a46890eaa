/* 6 tokens at a time, each with the two vectors of a block of 16 ranks or features. */
#ifdef __x86_64__
#include <immintrin.h>

#include "base/cpu.h"
#include "lora/thin.h"

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline))

enum { LANES = QL_THIN_LANES };

/* `lanes` floats; past the last they are not touched. */
AVX2 static void store_some(float *to, __m256 low, __m256 high, size_t lanes)
{
    if (lanes >= LANES) {
        _mm256_storeu_ps(to, low);
        _mm256_storeu_ps(to + 8, high);
        return;
    }
    float all[LANES];
    _mm256_storeu_ps(all, low);
    _mm256_storeu_ps(all + 8, high);
    for (size_t l = 0; l < lanes; l++)
        to[l] = all[l];
}

/* sum[tokens] += a[t][depth] * panel[depth][16]; `tokens` is a constant in every call. */
AVX2 INLINE void multiply(const size_t tokens, size_t depth, const float *a, size_t lda, const float *panel,
                          __m256 low[6], __m256 high[6])
{
    const float *a3 = a + 3 * lda;
    for (size_t j = 0; j < depth; j++) {
        __m256 p0 = _mm256_loadu_ps(panel + j * LANES), p1 = _mm256_loadu_ps(panel + j * LANES + 8);
#pragma GCC unroll 6
        for (size_t t = 0; t < tokens; t++) {
            __m256 s = _mm256_broadcast_ss((t < 3 ? a + t * lda : a3 + (t - 3) * lda) + j);
            low[t] = _mm256_fmadd_ps(s, p0, low[t]);
            high[t] = _mm256_fmadd_ps(s, p1, high[t]);
        }
    }
}

AVX2 INLINE void project_some(const size_t tokens, size_t k, size_t r, const float *x, size_t ldx, const float *panel,
                              float factor, float *h, size_t lanes)
{
    __m256 low[6], high[6], f = _mm256_set1_ps(factor);
#pragma GCC unroll 6
    for (size_t t = 0; t < tokens; t++)
        low[t] = high[t] = _mm256_setzero_ps();
    multiply(tokens, k, x, ldx, panel, low, high);
#pragma GCC unroll 6
    for (size_t t = 0; t < tokens; t++)
        store_some(h + t * r, _mm256_mul_ps(f, low[t]), _mm256_mul_ps(f, high[t]), lanes);
}

AVX2 static void project(size_t m, size_t k, size_t r, const float *x, size_t ldx, const float *panel, float factor,
                         float *h)
{
    for (size_t i = 0; i < r; i += LANES, panel += k * LANES) {
        size_t t = 0;
        for (; t + 6 <= m; t += 6)
            project_some(6, k, r, x + t * ldx, ldx, panel, factor, h + t * r + i, r - i);
        for (; t + 2 <= m; t += 2)
            project_some(2, k, r, x + t * ldx, ldx, panel, factor, h + t * r + i, r - i);
        for (; t < m; t++)
            project_some(1, k, r, x + t * ldx, ldx, panel, factor, h + t * r + i, r - i);
    }
}

AVX2 INLINE void expand_some(const size_t tokens, size_t r, const float *h, const float *panel, float *y, size_t ldy,
                             size_t lanes)
{
    __m256 low[6], high[6];
    float ragged[6][LANES];
#pragma GCC unroll 6
    for (size_t t = 0; t < tokens; t++) {
        const float *line = y + t * ldy;
        if (lanes < LANES) {
            for (size_t l = 0; l < LANES; l++)
                ragged[t][l] = l < lanes ? line[l] : 0;
            line = ragged[t];
        }
        low[t] = _mm256_loadu_ps(line);
        high[t] = _mm256_loadu_ps(line + 8);
    }
    multiply(tokens, r, h, r, panel, low, high);
#pragma GCC unroll 6
    for (size_t t = 0; t < tokens; t++)
        store_some(y + t * ldy, low[t], high[t], lanes);
}

AVX2 static void expand(size_t m, size_t r, size_t cols, const float *h, const float *panel, float *y, size_t ldy)
{
    size_t t = 0;
    for (; t + 6 <= m; t += 6)
        for (size_t j = 0; j < cols; j += LANES)
            expand_some(6, r, h + t * r, panel + j * r, y + t * ldy + j, ldy, cols - j);
    for (; t + 2 <= m; t += 2)
        for (size_t j = 0; j < cols; j += LANES)
            expand_some(2, r, h + t * r, panel + j * r, y + t * ldy + j, ldy, cols - j);
    for (; t < m; t++)
        for (size_t j = 0; j < cols; j += LANES)
            expand_some(1, r, h + t * r, panel + j * r, y + t * ldy + j, ldy, cols - j);
}

/* 8 halves, of which `cols` are there. */
AVX2 static __m256 load_some(const uint16_t *src, size_t cols)
{
    if (cols >= 8)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)src));
    uint16_t all[8] = {0};
    for (size_t l = 0; l < cols; l++)
        all[l] = src[l];
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)all));
}

AVX2 static void widen(size_t rows, size_t cols, const uint16_t *src, size_t ld, float *panel)
{
    for (size_t i = 0; i < rows; i++) {
        _mm256_storeu_ps(panel + i * LANES, load_some(src + i * ld, cols));
        _mm256_storeu_ps(panel + i * LANES + 8, cols > 8 ? load_some(src + i * ld + 8, cols - 8) : _mm256_setzero_ps());
    }
}

/* The lanes with bit `by` change between a and b, `by` places apart. */
AVX2 INLINE void exchange(__m256 *a, __m256 *b, const int by)
{
    __m256 x = *a, y = *b;
    if (by == 4) {
        *a = _mm256_permute2f128_ps(x, y, 0x20);
        *b = _mm256_permute2f128_ps(x, y, 0x31);
    } else if (by == 2) {
        *a = _mm256_shuffle_ps(x, y, 0x44);
        *b = _mm256_shuffle_ps(x, y, 0xee);
    } else {
        *a = _mm256_blend_ps(x, _mm256_moveldup_ps(y), 0xaa);
        *b = _mm256_blend_ps(_mm256_movehdup_ps(x), y, 0xaa);
    }
}

AVX2 static void turn(size_t rows, size_t cols, const uint16_t *src, size_t ld, float *panel)
{
    for (size_t j = 0; j < cols; j += 8)
        for (size_t part = 0; part < LANES; part += 8) {
            __m256 line[8];
#pragma GCC unroll 8
            for (size_t l = 0; l < 8; l++)
                line[l] = part + l < rows ? load_some(src + (part + l) * ld + j, cols - j) : _mm256_setzero_ps();
#pragma GCC unroll 3
            for (int by = 4; by; by /= 2)
#pragma GCC unroll 8
                for (int l = 0; l < 8; l++)
                    if (!(l & by))
                        exchange(&line[l], &line[l | by], by);
#pragma GCC unroll 8
            for (size_t l = 0; l < 8; l++)
                if (j + l < cols)
                    _mm256_storeu_ps(panel + (j + l) * LANES + part, line[l]);
        }
}

const ql_thin_kernels ql_thin_avx2 = {"avx2", QL_CPU_AVX2, project, expand, widen, turn};
#endif
