/* What the kernels of 8-bit activations have in common: which weights they take, few tokens by VNNI, and the way of dx =
 * dy W, which they leave to another kernel. The file names it, OTHER. */
#ifndef QL_SRC_KERN_WAYS_INT8_H
#define QL_SRC_KERN_WAYS_INT8_H

#include "kern/decode.h"
#include "kern/few.h"
#include "kern/gemv.h"
#include "kern/kernels.h"

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

static size_t other_packed(const ql_product *p)
{
    return p->transposed ? ql_kernel_plan(&OTHER, p, 1).packed : 0;
}

static ql_plan other_plan(const ql_product *p, size_t threads)
{
    return ql_kernel_plan(&OTHER, p, threads);
}

static void other_pack(const ql_product *p, ql_plan plan, size_t index)
{
    ql_way_pack(ql_way_of(&OTHER, p), p, plan, index);
}

static void other_tile(const ql_product *p, ql_tile t, void *scratch)
{
    ql_way_tile(ql_way_of(&OTHER, p), p, t, scratch);
}

#define ONE_OR_TWO_WAY                                                                                                 \
    {                                                                                                                  \
        .fits = gemv_fits, .packed = ql_gemv_int8_packed, .plan = ql_gemv_int8_plan, .pack = ql_gemv_int8_pack,        \
        .tile = ql_gemv_int8_tile, .rounds = QL_ROUND_INT8                                                             \
    }

#define VNNI_WAY(which)                                                                                                \
    {                                                                                                                  \
        .fits = which, .packed = ql_few_int8_packed, .plan = ql_few_int8_plan, .pack = ql_few_int8_pack,               \
        .tile = ql_few_int8_tile, .rounds = QL_ROUND_INT8                                                              \
    }

#define OTHER_WAY(...)                                                                                                 \
    {                                                                                                                  \
        .fits = ql_takes_everything, .packed = other_packed, .plan = other_plan, .pack = other_pack,                   \
        .tile = other_tile, __VA_ARGS__                                                                                \
    }

#endif
