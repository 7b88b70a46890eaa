/* 4 rows x 3 YMM, over the left and the right half of a strip. */
#ifdef __x86_64__
#include <immintrin.h>

#include "base/cpu.h"
#include "lora/outer.h"

#define AVX2 __attribute__((target("avx2,fma")))

/* `rows` is a constant in every call, so the loops over it unroll and acc lives in registers. */
AVX2 static inline __attribute__((always_inline)) void pass(size_t m, const int rows, const float *s, size_t lds,
                                                            const float *x, size_t ldx, float *out)
{
    __m256 acc[4][3];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
        for (int v = 0; v < 3; v++)
            acc[i][v] = _mm256_loadu_ps(out + i * QL_OUTER_COLS + 8 * v);
    for (size_t t = 0; t < m; t++, s += lds, x += ldx) {
        __m256 x0 = _mm256_loadu_ps(x), x1 = _mm256_loadu_ps(x + 8), x2 = _mm256_loadu_ps(x + 16);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            __m256 si = _mm256_broadcast_ss(s + i);
            acc[i][0] = _mm256_fmadd_ps(si, x0, acc[i][0]);
            acc[i][1] = _mm256_fmadd_ps(si, x1, acc[i][1]);
            acc[i][2] = _mm256_fmadd_ps(si, x2, acc[i][2]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
        for (int v = 0; v < 3; v++)
            _mm256_storeu_ps(out + i * QL_OUTER_COLS + 8 * v, acc[i][v]);
}

AVX2 static void rows_of_strip(size_t m, size_t rows, const float *s, size_t lds, const float *x, size_t ldx,
                               float *acc)
{
    for (int half = 0; half < 2; half++) {
        const float *xh = x + half * (QL_OUTER_COLS / 2);
        float *out = acc + half * (QL_OUTER_COLS / 2);
        size_t i = 0;
        for (; i + 4 <= rows; i += 4)
            pass(m, 4, s + i, lds, xh, ldx, out + i * QL_OUTER_COLS);
        for (; i < rows; i++)
            pass(m, 1, s + i, lds, xh, ldx, out + i * QL_OUTER_COLS);
    }
}

static void strip(const ql_outer *o, ql_outer_strip s)
{
    ql_outer_by_rows(o, s, rows_of_strip);
}

const ql_outer_kernel ql_outer_avx2 = {"avx2", QL_CPU_AVX2, false, QL_OUTER_COLS, QL_OUTER_COLS, QL_OUTER_RANKS,
                                     strip};
#endif
