/* The descriptors, one a file. */
#ifndef QL_SRC_KERN_KERNELS_H
#define QL_SRC_KERN_KERNELS_H

#include "kern/matmul.h"

extern const ql_matmul_kernel ql_matmul_scalar, ql_matmul_portable;
extern const ql_matmul_kernel ql_matmul_avx2, ql_matmul_avx512, ql_matmul_avx512_bf16, ql_matmul_amx; /* x86-64 */
extern const ql_matmul_kernel ql_matmul_avx512_int8, ql_matmul_amx_int8;
extern const ql_matmul_kernel ql_matmul_neon; /* aarch64 */
extern const ql_matmul_kernel ql_matmul_amx_emulated, ql_matmul_amx_int8_emulated; /* for tests only: in no list */

enum { QL_AMX_INT8_PART = 512 }; /* terms of x, or of a row of W, that share a factor */

#endif
