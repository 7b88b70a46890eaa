/* AVX-512 with VNNI: x rounded to signed bytes with a factor for every 64 of them, 4-bit tables to bytes too, integer
 * sums of a group. Forward only; dx = dy W goes the way of fp32. */
#include "base/cpu.h"
#include "kern/kernels.h"

#define OTHER ql_matmul_avx512
#include "kern/ways_int8.h"

static const ql_way ways[] = {
    ONE_OR_TWO_WAY,
    VNNI_WAY(forward),
    OTHER_WAY(.rounds = 0),
};
enum { WAYS = sizeof ways / sizeof *ways };

const ql_matmul_kernel ql_matmul_avx512_int8 = {.name = "avx512-int8",
                                                .cpu = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_VNNI,
                                                .accepts = accepts,
                                                .ways = ways,
                                                .way_count = WAYS,
                                                .int8_inputs = true};
