#include "roof.h"

#include "base/cpu.h"

static double work(size_t rounds)
{
    float sums[16] = {0};
    volatile float seed = 1.0f;
    float x = seed;
    for (size_t i = 0; i < rounds; i++)
        for (int j = 0; j < 16; j++)
            sums[j] += x * sums[j] + x;
    volatile float sink = sums[0] + sums[15];
    (void)sink;
    return 2.0 * 16 * (double)rounds;
}

static uint64_t read_all(const void *p, size_t bytes)
{
    const uint64_t *words = p;
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes / sizeof *words; i += 4)
        sum += words[i] ^ words[i + 1] ^ words[i + 2] ^ words[i + 3];
    return sum;
}

const roof roof_portable = {"scalar", 0, work, read_all};

/* Slowest first, but that of bytes comes before bf16's, which whoever may use both is compared with. */
static const roof *const roofs[] = {
    &roof_portable,
#ifdef __x86_64__
    &roof_avx2,
    &roof_avx512,
    &roof_avx512_bf16,
    &roof_avx512_int8,
    &roof_amx_int8,
    &roof_amx,
#endif
};

const roof *roof_for(uint32_t cpu)
{
    const roof *best = roofs[0];
    for (size_t i = 0; i < sizeof roofs / sizeof *roofs; i++)
        if ((roofs[i]->cpu & ~cpu) == 0)
            best = roofs[i];
    return best;
}

const roof *roof_reader(uint32_t features)
{
    const roof *best = roofs[0];
    for (size_t i = 0; i < sizeof roofs / sizeof *roofs; i++)
        if ((roofs[i]->cpu & ~features) == 0 && roofs[i]->read)
            best = roofs[i];
    return best;
}
