/* Storing the scales of groups in a format's own precision. */
#ifndef QL_SRC_QUANT_SCALES_H
#define QL_SRC_QUANT_SCALES_H

#include "quant/weight.h"

/* Stores scales[first, first + count) of the matrix as FP16, double-quantized or FP32 ones, and replaces
 * each by what it decodes to. With double quantization `first` is a multiple of 256 and count at most
 * 256. Returns the offset of the first scale that is too large for the format; count when none is. */
size_t ql_scales_store(ql_wview *view, float *scales, size_t first, size_t count);

/* Stores all scales in bitsandbytes' nested quantization and leaves them as they are: its codes
 * are found with the scales of before. */
void ql_scales_store_nested(ql_wview *view, const float *scales);

/* bitsandbytes' signed dynamic 8-bit map: ascending, map[127] = 0, map[255] = 1. */
void ql_bnb_dynamic_map(float map[256]);

#endif
