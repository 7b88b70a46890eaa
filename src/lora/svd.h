/* The largest singular values of a weight, by random projection (Halko, Martinsson & Tropp 2011). */
#ifndef QL_SRC_LORA_SVD_H
#define QL_SRC_LORA_SVD_H

#include "qlora/quant.h"

/* W[n][k] ~ sum over i < rank of s[i] u[i] v[i]^T with u[rank][n] and v[rank][k] of orthonormal rows, s descending;
 * rank at most n and k. Grows the workers' scratch. The result depends on seed and stream, not on the number of
 * threads. */
ql_status ql_svd(const ql_weight *w, size_t rank, uint64_t seed, uint64_t stream, float *u, float *s, float *v,
                 ql_workers *workers, ql_error *err);

#endif
