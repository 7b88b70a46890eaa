/* AVX-512 with VNNI: x rounded to signed bytes with a factor for every 64 of them, 4-bit tables to bytes too, integer
 * sums of a group. Forward only; dx = dy W goes the way of fp32. */
#include "base/cpu.h"
#include "kern/decode.h"
#include "kern/few.h"
#include "kern/gemv.h"
#include "kern/kernels.h"
#include "kern/wide_avx512.h"

static bool accepts(const ql_wview *w)
{
    return ql_row_groups(w) && ql_row_groups(w) <= QL_GEMV_SCALES;
}

static bool gemv_fits(const ql_product *p)
{
    return !p->transposed && p->m <= 2;
}

static bool forward(const ql_product *p)
{
    return !p->transposed;
}

static const ql_way ways[] = {
    {.fits = gemv_fits, .packed = ql_gemv_int8_packed, .plan = ql_gemv_int8_plan,
     .pack = ql_gemv_int8_pack, .tile = ql_gemv_int8_tile},
    {.fits = forward, .packed = ql_few_int8_packed, .plan = ql_few_int8_plan,
     .pack = ql_few_int8_pack, .tile = ql_few_int8_tile},
    WIDE_WAY,
};
enum { WAYS = sizeof ways / sizeof *ways };

const ql_matmul_kernel ql_matmul_avx512_int8 = {.name = "avx512-int8",
                                                .cpu = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_VNNI,
                                                .accepts = accepts,
                                                .ways = ways,
                                                .way_count = WAYS,
                                                .int8_inputs = true};
