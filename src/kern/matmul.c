#include "kern/matmul.h"

#include "kern/kernels.h"

const ql_matmul_kernel *const ql_matmul_kernels[] = {
    &ql_matmul_scalar,
    &ql_matmul_portable,
#ifdef __x86_64__
    &ql_matmul_avx2,
    &ql_matmul_avx512,
    &ql_matmul_avx512_bf16,
    &ql_matmul_amx,
    &ql_matmul_avx512_int8,
#elif defined __aarch64__
    &ql_matmul_neon,
#endif
};
const size_t ql_matmul_kernel_count = sizeof ql_matmul_kernels / sizeof *ql_matmul_kernels;

const ql_matmul_kernel *ql_matmul_select(const ql_wview *w, uint32_t features, unsigned allowed)
{
    for (size_t i = ql_matmul_kernel_count; i-- > 1;) {
        const ql_matmul_kernel *kernel = ql_matmul_kernels[i];
        if ((kernel->cpu & ~features) || !kernel->accepts(w) || (kernel->bf16_inputs && !(allowed & QL_ROUND_BF16)) ||
            (kernel->int8_inputs && !(allowed & QL_ROUND_INT8)))
            continue;
        if (!kernel->pays || kernel->pays())
            return kernel;
    }
    return ql_matmul_kernels[0];
}

ql_plan ql_kernel_plan(const ql_matmul_kernel *kernel, const ql_product *p, size_t threads)
{
    ql_plan plan = ql_way_of(kernel, p)->plan(p, threads);
    for (size_t i = 0; i < kernel->way_count; i++) {
        size_t packed = kernel->ways[i].packed(p);
        plan.packed = plan.packed > packed ? plan.packed : packed;
    }
    return plan;
}
