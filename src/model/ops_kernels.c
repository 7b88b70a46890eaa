#include "model/ops_kernels.h"

#include "base/cpu.h"
#include "model/ops_tier.h"

const ql_ops_tier ql_ops_tiers[] = {
    {"plain", 0, &ql_rows_plain, &ql_attention_plain},
#ifdef __x86_64__
    {"avx2", QL_CPU_AVX2, &ql_rows_avx2, &ql_attention_avx2},
    {"avx512", QL_CPU_AVX512, &ql_rows_avx512, &ql_attention_avx512},
#ifdef QL_AMX_EMULATED
    {"amx", QL_CPU_AVX512 | QL_CPU_AVX512_BF16, &ql_rows_avx512, &ql_attention_emulated},
#else
    {"amx", QL_CPU_AVX512 | QL_CPU_AVX512_BF16 | QL_CPU_AMX_BF16, &ql_rows_avx512, &ql_attention_amx},
#endif
#endif
    {0},
};

const ql_ops_tier *ql_ops_select(uint32_t features)
{
    const ql_ops_tier *best = ql_ops_tiers;
    for (const ql_ops_tier *tier = ql_ops_tiers; tier->name; tier++)
        if ((tier->needs & features) == tier->needs)
            best = tier;
    return best;
}

const ql_attention_kernels *ql_attention_select(uint32_t features, bool bf16)
{
    const ql_attention_kernels *best = ql_ops_tiers[0].attention;
    for (const ql_ops_tier *tier = ql_ops_tiers; tier->name; tier++)
        if ((tier->needs & features) == tier->needs && (bf16 || !tier->attention->rounds))
            best = tier->attention;
    return best;
}

size_t ql_attention_floats(size_t head_dim, size_t group)
{
    enum { WIDEST = 64 }; /* lanes of a panel */
    /* The backward pass has k, v, dk, dv, rows of k, the scores and their gradient, and copies of two streams. */
    size_t panels = (4 * head_dim + ql_attention_pad(head_dim) + 2 * QL_ATTENTION_STREAM) * WIDEST;
    size_t floats = panels + 2 * QL_ATTENTION_STREAM * (head_dim + 16);
    return floats > 2 * group ? floats : 2 * group;
}
