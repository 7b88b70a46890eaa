/* The way of fp32, for kernels that have none of their own for dx = dy W. */
#ifndef QL_SRC_KERN_WIDE_AVX512_H
#define QL_SRC_KERN_WIDE_AVX512_H

#include "kern/kernels.h"

static size_t wide_packed(const ql_product *p)
{
    return p->transposed ? ql_kernel_plan(&ql_matmul_avx512, p, 1).packed : 0;
}

static ql_plan wide_plan(const ql_product *p, size_t threads)
{
    return ql_kernel_plan(&ql_matmul_avx512, p, threads);
}

static void wide_pack(const ql_product *p, ql_plan plan, size_t index)
{
    ql_way_pack(ql_way_of(&ql_matmul_avx512, p), p, plan, index);
}

static void wide_tile(const ql_product *p, ql_tile t, void *scratch)
{
    ql_way_tile(ql_way_of(&ql_matmul_avx512, p), p, t, scratch);
}

#define WIDE_WAY                                                                                                       \
    {                                                                                                                  \
        .fits = ql_takes_everything, .packed = wide_packed, .plan = wide_plan, .pack = wide_pack, .tile = wide_tile    \
    }

#endif
