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

/* Words of the blocks with counters first, first + 1, ...; the same numbers as ql_philox(). A word sits in the
 * low half of a 64-bit lane, where one instruction multiplies it; the high halves are never looked at. */
INLINE void philox_lanes(philox_key key, uint64_t first, uint64_t c[4][LANES])
{
#pragma omp simd
    for (int i = 0; i < LANES; i++) {
        uint64_t c0 = first + (uint64_t)i, c1 = c0 >> 32, c2 = key.stream, c3 = key.stream >> 32;
        uint64_t k0 = key.seed, k1 = key.seed >> 32;
#pragma GCC unroll 10
        for (int round = 0; round < 10; round++) {
            uint64_t p0 = (c0 & 0xffffffffu) * 0xD2511F53u, p1 = (c2 & 0xffffffffu) * 0xCD9E8D57u;
            c0 = p1 >> 32 ^ c1 ^ k0;
            c2 = p0 >> 32 ^ c3 ^ k1;
            c1 = p1, c3 = p0;
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        }
        c[0][i] = c0, c[1][i] = c1, c[2][i] = c2, c[3][i] = c3;
    }
}

/* An element is kept when its 32 random bits reach p * 2^32. */
INLINE void scale_lanes(philox_key key, uint64_t first, uint32_t threshold, float kept, float scale[ELEMENTS])
{
    uint64_t words[4][LANES];
    philox_lanes(key, first, words);
#pragma omp simd
    for (int i = 0; i < LANES; i++) {
        scale[4 * i] = (uint32_t)words[0][i] >= threshold ? kept : 0.0f;
        scale[4 * i + 1] = (uint32_t)words[1][i] >= threshold ? kept : 0.0f;
        scale[4 * i + 2] = (uint32_t)words[2][i] >= threshold ? kept : 0.0f;
        scale[4 * i + 3] = (uint32_t)words[3][i] >= threshold ? kept : 0.0f;
    }
}

INLINE void multiply(size_t count, const float *scale, const float *src, float *dst)
{
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        float product = src[i] * scale[i];
        dst[i] = scale[i] != 0 ? product : 0.0f;
    }
}

INLINE void apply(philox_key key, uint64_t first, uint32_t threshold, float kept, size_t count, const float *src,
                  float *dst)
{
    for (size_t j = 0; j < count; j += ELEMENTS, first += LANES) {
        float scale[ELEMENTS];
        scale_lanes(key, first, threshold, kept, scale);
        if (count - j >= ELEMENTS)
            multiply(ELEMENTS, scale, src + j, dst + j);
        else
            multiply(count - j, scale, src + j, dst + j);
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
