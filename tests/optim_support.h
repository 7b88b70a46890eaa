/* What the tests of the optimizer share: adapters to train, and gradients for them. */
#ifndef QL_TESTS_OPTIM_SUPPORT_H
#define QL_TESTS_OPTIM_SUPPORT_H

#include "qlora/optim.h"
#include "support.h"

static inline ql_adapters *make_set(size_t in, size_t out, size_t rank)
{
    ql_adapters *set;
    ql_adapter_shape shape = {.in_features = in, .out_features = out, .rank = rank, .scaling = 1};
    ck_assert_int_eq(ql_adapters_create(&set, &shape, 1, true, NULL), QL_OK);
    return set;
}

/* Of parameter i at a step: the tables that come from PyTorch were made with it. */
static inline float table_grad(size_t i, size_t step)
{
    return (float)((int)((i * 53 + step * 29) % 101) - 50) / 64 * (i % 3 ? 1.0f : 0x1p-12f);
}

#endif
