/* Numbers and weights for the tests of layers and adapters. */
#ifndef QL_TESTS_LORA_SUPPORT_H
#define QL_TESTS_LORA_SUPPORT_H

#include <check.h>
#include <stdlib.h>

#include "base/rng.h"
#include "qlora/quant.h"

/* Seeded numbers in [-1, 1). */
static inline float *numbers(size_t count, uint64_t stream)
{
    float *x = malloc(count * sizeof *x);
    ql_rng rng = {.seed = 11, .stream = stream};
    for (size_t i = 0; i < count; i++)
        x[i] = 2 * ql_uniform(ql_rng_next(&rng)) - 1;
    return x;
}

static inline ql_weight *quantized(ql_format format, size_t n, size_t k)
{
    ql_weight *w;
    ql_error err = {0};
    float *src = numbers(n * k, 1);
    ck_assert_msg(!ql_weight_quantize(&w, format, "w", src, QL_F32, k, n, k, NULL, &err), "%s", err.message);
    free(src);
    return w;
}

/* Every format, group and kind of scale, with rows that fill their groups and rows that do not. */

#endif
