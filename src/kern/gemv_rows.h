/* How a decoding kernel goes through its rows and tokens: included once by the file of each instruction set, after its
 * one_row(), so that the compiler makes a loop of its own for every code and number of tokens. */
#ifndef QL_SRC_KERN_GEMV_ROWS_H
#define QL_SRC_KERN_GEMV_ROWS_H

#include "kern/matmul.h"

static inline __attribute__((always_inline)) void all_rows(const ql_product *p, ql_tile t, size_t token, size_t tokens,
                                                           const float *packed)
{
    for (size_t row = t.col; row < t.col + t.cols; row++) {
        switch (p->w->format.code) {
        case QL_CODE_F32:
            one_row(p, row, token, tokens, QL_CODE_F32, 32, packed);
            break;
        case QL_CODE_F16:
            one_row(p, row, token, tokens, QL_CODE_F16, 16, packed);
            break;
        case QL_CODE_BF16:
            one_row(p, row, token, tokens, QL_CODE_BF16, 16, packed);
            break;
        case QL_CODE_INT8:
            one_row(p, row, token, tokens, QL_CODE_INT8, 8, packed);
            break;
        default:
            one_row(p, row, token, tokens, QL_CODE_NF4, 4, packed);
        }
    }
}

static inline __attribute__((always_inline)) void all_tokens(const ql_product *p, ql_tile t, const float *packed)
{
    size_t token = 0;
    for (; token + 4 <= p->m; token += 4)
        all_rows(p, t, token, 4, packed);
    for (; token + 2 <= p->m; token += 2)
        all_rows(p, t, token, 2, packed);
    if (token < p->m)
        all_rows(p, t, token, 1, packed);
}

#endif
