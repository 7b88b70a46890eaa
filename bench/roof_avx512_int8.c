#include "base/cpu.h"
#include "roof.h"

static double work(size_t rounds)
{
    static const uint32_t one = 0x01010101;
    size_t left = rounds;
    __asm__ volatile("vbroadcastss %1, %%zmm14\n\t"
                     "vbroadcastss %1, %%zmm15\n"
                     "1:\n\t"
                     ".irp r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13\n\t"
                     "vpdpbusd %%zmm14, %%zmm15, %%zmm\\r\n\t"
                     ".endr\n\t"
                     "dec %0\n\t"
                     "jnz 1b\n\t"
                     "vzeroupper"
                     : "+r"(left)
                     : "m"(one)
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                       "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    return 2.0 * 64 * 14 * (double)rounds;
}

const roof roof_avx512_int8 = {"AVX-512 VNNI", QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_VNNI, work, NULL};
