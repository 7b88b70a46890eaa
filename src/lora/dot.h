/* A sum of products in double, in one order wherever it is taken. */
#ifndef QL_SRC_LORA_DOT_H
#define QL_SRC_LORA_DOT_H

#include <stddef.h>

static inline double ql_dot(const float *x, const float *y, size_t count)
{
    double lane[8] = {0}, sum = 0;
    size_t j = 0;
    for (; j + 8 <= count; j += 8)
        for (size_t i = 0; i < 8; i++)
            lane[i] += (double)x[j + i] * y[j + i];
    for (; j < count; j++)
        lane[0] += (double)x[j] * y[j];
    for (size_t i = 0; i < 8; i++)
        sum += lane[i];
    return sum;
}

#endif
