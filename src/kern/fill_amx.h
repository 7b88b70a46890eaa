/* Panels of W in bf16 as AMX wants them. */
#ifndef QL_SRC_KERN_FILL_AMX_H
#define QL_SRC_KERN_FILL_AMX_H

#include "base/sizes.h"
#include "kern/matmul.h"

enum { QL_AMX_OUTPUTS = 256, QL_AMX_TERMS = 2048 }; /* of a panel, at most */

/* Steps of 32 terms; a panel is [blocks of 32 outputs][steps][2 tiles of 16 outputs][512 bf16]. */
static inline size_t ql_amx_steps(size_t terms)
{
    return (terms + 31) / 32;
}

/* Terms [from, from + depth) of outputs [col, col + cols); from and col: multiples of 64. A tile of a forward
 * product is [output][32 terms], of a transposed one [pair of terms][output][2]. What is past depth is finite;
 * what is past cols may be anything. */
void ql_fill_amx(const ql_product *p, size_t col, size_t cols, size_t from, size_t depth, uint16_t *panel);

#endif
