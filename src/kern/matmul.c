#include "kern/matmul.h"

#include "kern/blocked.h"
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
    &ql_matmul_amx_int8,
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

static size_t way_packed(const ql_way *way, const ql_product *p)
{
    return way->blocked ? ql_blocked_plan(way->blocked, p, 1).packed : way->packed(p);
}

ql_plan ql_way_plan(const ql_way *way, const ql_product *p, size_t threads)
{
    return way->blocked ? ql_blocked_plan(way->blocked, p, threads) : way->plan(p, threads);
}

ql_plan ql_kernel_plan(const ql_matmul_kernel *kernel, const ql_product *p, size_t threads)
{
    ql_plan plan = ql_way_plan(ql_way_of(kernel, p), p, threads);
    for (size_t i = 0; i < kernel->way_count; i++) {
        size_t packed = way_packed(&kernel->ways[i], p);
        plan.packed = plan.packed > packed ? plan.packed : packed;
    }
    return plan;
}

void ql_way_pack(const ql_way *way, const ql_product *p, ql_plan plan, size_t index)
{
    if (way->blocked)
        ql_blocked_pack(way->blocked, p, plan, index);
    else
        way->pack(p, plan, index);
}

void ql_way_tile(const ql_way *way, const ql_product *p, ql_tile t, void *scratch)
{
    if (way->blocked)
        ql_blocked_tile(way->blocked, p, t, scratch);
    else
        way->tile(p, t, scratch);
}
