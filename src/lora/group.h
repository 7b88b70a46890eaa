/* Layers that share x (forward) or dx (backward), without dropout or DoRA. */
#ifndef QL_SRC_LORA_GROUP_H
#define QL_SRC_LORA_GROUP_H

#include "qlora/lora.h"

/* Rows of x in fp32 or, where it is not NULL, in bf16. */
typedef struct ql_group_x {
    const float *wide;
    const uint16_t *narrow;
    size_t ld;
} ql_group_x;

/* As ql_linears_forward and the others, which call them. */
bool ql_group_takes_bf16(const ql_linear *const *layers, size_t count, size_t m);
ql_scratch ql_group_scratch(const ql_linear *const *layers, size_t count, size_t m, size_t threads);
size_t ql_group_work(const ql_linear *const *layers, size_t count, size_t m);
void ql_group_forward(const ql_linear_use *uses, size_t count, size_t m, ql_group_x x, float *work,
                      ql_workers *workers);
void ql_group_backward(const ql_linear_use *uses, size_t count, size_t m, ql_group_x x, float *dx, size_t lddx,
                       bool add_dx, const ql_late *late, float *work, ql_workers *workers);

#endif
