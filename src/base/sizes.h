/* Arithmetic of sizes. */
#ifndef QL_SRC_BASE_SIZES_H
#define QL_SRC_BASE_SIZES_H

#include <stddef.h>

/* How many pieces of `piece` hold `length`. */
static inline size_t ql_pieces(size_t length, size_t piece)
{
    return (length + piece - 1) / piece;
}

static inline size_t ql_least(size_t a, size_t b)
{
    return a < b ? a : b;
}

#endif
