/* One Philox block makes the masks of four neighbours in a row, so an element's mask depends on its
 * place alone. The rounds run on LANES blocks at once: plain loops that compilers turn into vectors. */
#include "lora/dropout.h"

#include <assert.h>
#include <string.h>

#include "base/cpu.h"
#include "lora/streams.h"

enum { LANES = 16, ELEMENTS = 4 * LANES };

typedef struct philox_key {
    uint64_t seed, stream;
} philox_key;

#define INLINE static inline __attribute__((always_inline))

/* Words of the blocks with counters first, first + 1, ...; the same numbers as ql_philox(). */
INLINE void philox_lanes(philox_key key, uint64_t first, uint32_t out[4][LANES])
{
    uint32_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];
    for (int i = 0; i < LANES; i++) {
        uint64_t counter = first + (uint64_t)i;
        c0[i] = (uint32_t)counter, c1[i] = (uint32_t)(counter >> 32);
        c2[i] = (uint32_t)key.stream, c3[i] = (uint32_t)(key.stream >> 32);
    }
    uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32);
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < LANES; i++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c0[i], p1 = (uint64_t)0xCD9E8D57u * c2[i];
            c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0;
            c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
            c1[i] = (uint32_t)p1, c3[i] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    memcpy(out[0], c0, sizeof c0), memcpy(out[1], c1, sizeof c1);
    memcpy(out[2], c2, sizeof c2), memcpy(out[3], c3, sizeof c3);
}

/* An element is kept when its 32 random bits reach p * 2^32. */
INLINE void scale_lanes(philox_key key, uint64_t first, uint32_t threshold, float kept, float scale[ELEMENTS])
{
    uint32_t words[4][LANES];
    philox_lanes(key, first, words);
    for (int i = 0; i < LANES; i++)
        for (int w = 0; w < 4; w++)
            scale[4 * i + w] = words[w][i] >= threshold ? kept : 0.0f;
}

INLINE void apply(philox_key key, uint64_t first, uint32_t threshold, float kept, size_t count, const float *src,
                  float *dst)
{
    for (size_t j = 0; j < count; j += ELEMENTS, first += LANES) {
        float scale[ELEMENTS];
        scale_lanes(key, first, threshold, kept, scale);
        size_t here = count - j < ELEMENTS ? count - j : ELEMENTS;
        for (size_t i = 0; i < here; i++)
            dst[j + i] = scale[i] != 0 ? src[j + i] * scale[i] : 0.0f;
    }
}

typedef void apply_rows(philox_key key, uint64_t first, uint32_t threshold, float kept, size_t count,
                        const float *src, float *dst);

static void apply_plain(philox_key key, uint64_t first, uint32_t threshold, float kept, size_t count,
                        const float *src, float *dst)
{
    apply(key, first, threshold, kept, count, src, dst);
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static void apply_avx2(philox_key key, uint64_t first, uint32_t threshold, float kept,
                                                       size_t count, const float *src, float *dst)
{
    apply(key, first, threshold, kept, count, src, dst);
}

__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) static void
apply_avx512(philox_key key, uint64_t first, uint32_t threshold, float kept, size_t count, const float *src,
             float *dst)
{
    apply(key, first, threshold, kept, count, src, dst);
}
#endif

static apply_rows *select_apply(void)
{
#ifdef __x86_64__
    if (ql_cpu_features() & QL_CPU_AVX512)
        return apply_avx512;
    if (ql_cpu_features() & QL_CPU_AVX2)
        return apply_avx2;
#endif
    return apply_plain;
}

void ql_dropout_apply(const ql_dropout *dropout, size_t row, size_t col, size_t count, const float *src, float *dst)
{
    assert(dropout->p >= 0 && dropout->p < 1 && dropout->layer >> 24 == 0 && dropout->step >> 38 == 0);
    assert(col % 4 == 0 && row >> 32 == 0);
    philox_key key = {dropout->seed, QL_STREAM_DROPOUT | dropout->step << 24 | dropout->layer};
    uint32_t threshold = (uint32_t)((double)dropout->p * 0x1p32);
    select_apply()(key, (uint64_t)row << 32 | col / 4, threshold, 1 / (1 - dropout->p), count, src, dst);
}
