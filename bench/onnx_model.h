/* A model of one product with weights in 4 bits, in memory. */
#ifndef QL_BENCH_ONNX_MODEL_H
#define QL_BENCH_ONNX_MODEL_H

#include <stddef.h>
#include <stdint.h>

/* y[m][n] = x[m][k] W^T by the operator MatMulNBits. */
typedef struct onnx_product {
    size_t m, n, k, group;
    int accuracy; /* as the operator has it: 1 computes in fp32, 4 rounds x to bytes */
    const uint8_t *codes; /* [n][k / group][group / 2], 8 stands for 0, the first of two low */
    const float *scales;  /* [n][k / group] */
} onnx_product;

/* An ONNX file of it: the caller frees what is returned. NULL when memory is short. */
uint8_t *onnx_model(const onnx_product *p, size_t *bytes);

#endif
