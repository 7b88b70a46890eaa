/* Panels of W as signed bytes for AMX, with a factor for every part of a row. */
#ifndef QL_SRC_KERN_FILL_AMX_INT8_H
#define QL_SRC_KERN_FILL_AMX_INT8_H

#include "kern/kernels.h"

/* Terms of a panel, at most. */
enum { QL_AMX_INT8_TERMS = 4096 };

/* Terms [from, from + depth) of outputs [col, col + cols), from a multiple of the part: a panel is [blocks of 32
 * outputs][steps of 64 terms][2 tiles of 16 outputs][16 outputs][64 bytes], and factors[part][width] is what a unit of
 * their bytes means. What is past depth or cols may be anything. Only coded weights whose rows start groups of
 * their own. */
void ql_fill_amx_int8(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, char *panel,
                      float *factors, size_t width);

#endif
