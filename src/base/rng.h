/* Philox4x32-10 (Salmon et al., SC 2011): random numbers as a pure function of (seed, stream,
 * counter), so that any thread can make any of them and a mask can be made again. */
#ifndef QL_SRC_BASE_RNG_H
#define QL_SRC_BASE_RNG_H

#include <stdint.h>

static inline void ql_philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4])
{
    uint32_t c[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c[0], p1 = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[1] = (uint32_t)p1, c[3] = (uint32_t)p0, c[0] = n0, c[2] = n2;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < 4; i++)
        out[i] = c[i];
}

/* Uniform in [0, 1) with 24 bits. */
static inline float ql_uniform(uint32_t bits)
{
    return (float)(bits >> 8) * 0x1p-24f;
}

/* A sequence drawn from one stream. */
typedef struct ql_rng {
    uint64_t seed, stream, drawn;
} ql_rng;

static inline uint32_t ql_rng_next(ql_rng *rng)
{
    uint32_t out[4];
    ql_philox(rng->seed, rng->stream, rng->drawn / 4, out);
    return out[rng->drawn++ % 4];
}

/* Uniform in [0, bound), bound > 0, without bias (Lemire's rejection). */
static inline uint32_t ql_rng_below(ql_rng *rng, uint32_t bound)
{
    uint64_t product = (uint64_t)ql_rng_next(rng) * bound;
    uint32_t floor = (uint32_t)(-bound) % bound;
    while ((uint32_t)product < floor)
        product = (uint64_t)ql_rng_next(rng) * bound;
    return (uint32_t)(product >> 32);
}

#endif
