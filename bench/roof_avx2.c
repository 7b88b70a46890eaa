#include <immintrin.h>

#include "base/cpu.h"
#include "roof.h"

static double work(size_t rounds)
{
    static const uint32_t one = 0x3f803f80; /* near 1 as fp32, 1 and 1 as bf16 */
    size_t left = rounds;
    __asm__ volatile("vbroadcastss %1, %%ymm14\n\t"
                     "vbroadcastss %1, %%ymm15\n"
                     "1:\n\t"
                     ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13\n\t"
                     "vfmadd231ps %%ymm14, %%ymm15, %%ymm\\r\n\t"
                     ".endr\n\t"
                     "dec %0\n\t"
                     "jnz 1b\n\t"
                     "vzeroupper"
                     : "+r"(left)
                     : "m"(one)
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                       "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    return 2.0 * 8 * 14 * (double)rounds;
}

static uint64_t read_all(const void *p, size_t bytes)
{
    const __m256i *v = p;
    __m256i sum[8];
    for (int j = 0; j < 8; j++)
        sum[j] = _mm256_setzero_si256();
    for (size_t i = 0; i < bytes / 32; i += 8)
#pragma GCC unroll 8
        for (size_t j = 0; j < 8; j++)
            sum[j] = _mm256_xor_si256(sum[j], _mm256_load_si256(v + i + j));
    for (int j = 1; j < 8; j++)
        sum[0] = _mm256_xor_si256(sum[0], sum[j]);
    return (uint64_t)_mm256_extract_epi64(sum[0], 0) ^ (uint64_t)_mm256_extract_epi64(sum[0], 3);
}

const roof roof_avx2 = {"AVX2 FMA", QL_CPU_AVX2, work, read_all};
