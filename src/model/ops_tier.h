/* Names of the tables that each instruction set exports: ql_rows_avx2 and so on. */
#ifndef QL_SRC_MODEL_OPS_TIER_H
#define QL_SRC_MODEL_OPS_TIER_H

#include "model/ops_kernels.h"

#define QL_TIER_JOIN(name, tier) name##_##tier
#define QL_TIER_EXPAND(name, tier) QL_TIER_JOIN(name, tier)
#define QL_TIER_NAME(name) QL_TIER_EXPAND(name, QL_TIER)

extern const ql_row_kernels ql_rows_plain, ql_rows_avx2, ql_rows_avx512, ql_rows_avx512_bf16;
extern const ql_attention_kernels ql_attention_plain, ql_attention_avx2, ql_attention_avx512;

#endif
