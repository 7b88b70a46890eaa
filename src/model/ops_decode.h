/* What decoding adds to ql_attention_scratch(). */
#ifndef QL_SRC_MODEL_OPS_DECODE_H
#define QL_SRC_MODEL_OPS_DECODE_H

#include "model/ops.h"

ql_scratch ql_decode_scratch(const ql_attention *config);

#endif
