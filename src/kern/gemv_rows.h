/* How a decoding kernel goes through its rows and tokens. A file of an instruction set defines one_row() and
 * decode_scales() and then includes this once, so that the compiler makes a loop of its own for every code and
 * number of tokens. */
#ifndef QL_SRC_KERN_GEMV_ROWS_H
#define QL_SRC_KERN_GEMV_ROWS_H

#include "kern/decode.h"
#include "kern/gemv.h"

static inline __attribute__((always_inline)) void some_rows(const ql_product *p, size_t row, size_t rows, size_t token,
                                                            size_t tokens, const float *packed)
{
    size_t groups = ql_row_groups(p->w);
    float scales[QL_GEMV_SCALES + QL_GEMV_SLACK];
    decode_scales(p->w, row * groups, rows * groups, scales);
    for (size_t i = 0; i < rows; i++) {
        const float *own = scales + i * groups;
        switch (p->w->format.code) {
        case QL_CODE_F32:
            one_row(p, row + i, token, tokens, QL_CODE_F32, 32, own, packed);
            break;
        case QL_CODE_F16:
            one_row(p, row + i, token, tokens, QL_CODE_F16, 16, own, packed);
            break;
        case QL_CODE_BF16:
            one_row(p, row + i, token, tokens, QL_CODE_BF16, 16, own, packed);
            break;
        case QL_CODE_INT8:
            one_row(p, row + i, token, tokens, QL_CODE_INT8, 8, own, packed);
            break;
        default:
            one_row(p, row + i, token, tokens, QL_CODE_NF4, 4, own, packed);
        }
    }
}

static inline __attribute__((always_inline)) void all_rows(const ql_product *p, ql_tile t, size_t token, size_t tokens,
                                                           const float *packed)
{
    size_t most = ql_is_dense(p->w) ? t.cols : QL_GEMV_SCALES / ql_row_groups(p->w);
    for (size_t at = 0; at < t.cols; at += most)
        some_rows(p, t.col + at, t.cols - at < most ? t.cols - at : most, token, tokens, packed);
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
