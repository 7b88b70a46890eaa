/* 8 rows x 3 ZMM: 24 accumulators cover the latency of the FMA twice over. */
#ifdef __x86_64__
#include <immintrin.h>

#include "base/cpu.h"
#include "lora/outer.h"

#define AVX512 __attribute__((target("avx512f")))

/* `rows` is a constant in every call, so the loops over it unroll and acc lives in registers. */
AVX512 static inline __attribute__((always_inline)) void pass(size_t m, const int rows, const float *s, size_t lds,
                                                              const float *x, size_t ldx, float *out)
{
    __m512 acc[8][3];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
        for (int v = 0; v < 3; v++)
            acc[i][v] = _mm512_loadu_ps(out + i * QL_OUTER_COLS + 16 * v);
    for (size_t t = 0; t < m; t++, s += lds, x += ldx) {
        __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16), x2 = _mm512_loadu_ps(x + 32);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            __m512 si = _mm512_set1_ps(s[i]);
            acc[i][0] = _mm512_fmadd_ps(si, x0, acc[i][0]);
            acc[i][1] = _mm512_fmadd_ps(si, x1, acc[i][1]);
            acc[i][2] = _mm512_fmadd_ps(si, x2, acc[i][2]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
        for (int v = 0; v < 3; v++)
            _mm512_storeu_ps(out + i * QL_OUTER_COLS + 16 * v, acc[i][v]);
}

AVX512 static void rows_of_strip(size_t m, size_t rows, const float *s, size_t lds, const float *x, size_t ldx,
                                 float *acc)
{
    if (rows == 8) {
        pass(m, 8, s, lds, x, ldx, acc);
        return;
    }
    if (rows & 4) {
        pass(m, 4, s, lds, x, ldx, acc);
        s += 4, acc += 4 * QL_OUTER_COLS;
    }
    for (size_t i = 0; i < (rows & 3); i++)
        pass(m, 1, s + i, lds, x, ldx, acc + i * QL_OUTER_COLS);
}

static void strip(const ql_outer *o, ql_outer_strip s)
{
    ql_outer_by_rows(o, s, rows_of_strip);
}

const ql_outer_kernel ql_outer_avx512 = {"avx512", QL_CPU_AVX512, false, QL_OUTER_COLS, QL_OUTER_COLS, QL_OUTER_RANKS,
                                       strip};
#endif
