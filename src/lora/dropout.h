/* Dropout masks made from Philox whenever they are needed, never stored. */
#ifndef QL_SRC_LORA_DROPOUT_H
#define QL_SRC_LORA_DROPOUT_H

#include <stddef.h>

#include "qlora/lora.h"

/* dst[j] = mask(row, col + j) * src[j] / (1-p) for j < count; col is a multiple of 4. dst may be src. */
void ql_dropout_apply(const ql_dropout *dropout, size_t row, size_t col, size_t count, const float *src, float *dst);

#endif
