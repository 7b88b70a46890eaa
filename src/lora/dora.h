/* Weight-decomposed adapters: what linear.c hands over. */
#ifndef QL_SRC_LORA_DORA_H
#define QL_SRC_LORA_DORA_H

#include "qlora/lora.h"

/* Floats that ql_dora_refresh works in. */
size_t ql_dora_work(const ql_adapter_shape *shape);

/* Floats that forward and backward of m tokens work in, and the scratch of the workers. */
size_t ql_dora_pass_work(const ql_linear *layer, size_t m);
ql_scratch ql_dora_scratch(const ql_linear *layer, size_t m, size_t threads);

/* As ql_linear_forward and ql_linear_backward, which they call for the part that is no DoRA. */
void ql_dora_forward(const ql_linear *layer, size_t m, const float *x, size_t ldx, float *y, size_t ldy, float *h,
                     float *work, ql_workers *workers);
void ql_dora_backward(const ql_linear *layer, size_t m, const float *x, size_t ldx, const float *dy, size_t lddy,
                      const float *h, float *dx, size_t lddx, bool add_dx, float *work, ql_workers *workers);

/* Brings a row of W + s B A, `row` of the adapter's, to its magnitude. */
void ql_dora_scale_row(const ql_adapter *adapter, size_t row, float *x);

#endif
