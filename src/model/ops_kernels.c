#include "model/ops_kernels.h"

#include "base/cpu.h"
#include "model/ops_attention_tiles.h"
#include "model/ops_tier.h"

const ql_ops_tier ql_ops_tiers[] = {
    {"plain", 0, &ql_rows_plain, &ql_attention_plain},
#ifdef __x86_64__
    {"avx2", QL_CPU_AVX2, &ql_rows_avx2, &ql_attention_avx2},
    {"avx512", QL_CPU_AVX512, &ql_rows_avx512, &ql_attention_avx512},
    {"avx512-bf16", QL_CPU_AVX512 | QL_CPU_AVX512_BF16, &ql_rows_avx512_bf16, &ql_attention_avx512},
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

const ql_tiles_kernels *ql_tiles_select(uint32_t features)
{
    const ql_tiles_kernels *best = NULL;
#ifdef __x86_64__
    uint32_t needs = QL_CPU_AVX512 | QL_CPU_AVX512_BF16;
    if ((features & needs) != needs)
        return NULL;
    best = &ql_tiles_dots;
#ifdef QL_AMX_EMULATED
    best = &ql_tiles_emulated;
#else
    if (features & QL_CPU_AMX_BF16)
        best = &ql_tiles_amx;
#endif
#else
    (void)features;
#endif
    return best;
}

size_t ql_attention_floats(size_t head_dim, size_t group)
{
    enum { WIDEST = 32 }; /* lanes of a panel */
    /* The backward pass has k, v, dk, dv, rows of k, the scores and their gradient, and copies of two streams. */
    size_t panels = (4 * head_dim + ql_attention_pad(head_dim) + 2 * QL_ATTENTION_STREAM) * WIDEST;
    size_t floats = panels + 2 * QL_ATTENTION_STREAM * (head_dim + 16);
    return floats > 2 * group ? floats : 2 * group;
}
