#include "base/cpu.h"
#include "base/half.h"
#include "base/rng.h"
#include "kern/amx_tiles.h"
#include "roof.h"

#define DOT(c, a, b)                                                                                                   \
    do {                                                                                                               \
        if (bytes)                                                                                                     \
            tile_dot_int8(c, a, b);                                                                                    \
        else                                                                                                           \
            tile_dot_bf16(c, a, b);                                                                                    \
    } while (0)

enum { STEPS = 8, TILE = TILE_BYTES / 2, NUMBERS = STEPS * 4 * TILE };

/* Random numbers of this thread, made once: zeros would be up to a third faster. */
static const uint16_t *numbers(bool bytes)
{
    static _Thread_local uint16_t data[2][NUMBERS] __attribute__((aligned(64)));
    ql_rng rng = {.seed = 1};
    for (size_t i = 0; i < NUMBERS && !data[bytes][NUMBERS - 1]; i++)
        data[bytes][i] = bytes ? (uint16_t)(ql_rng_next(&rng) | 1) : ql_f32_to_bf16(ql_uniform(ql_rng_next(&rng)) + 0.5f);
    return data[bytes];
}

/* 2 x 2 tiles fed from the first-level cache. */
static inline __attribute__((always_inline)) double work(bool bytes, size_t rounds)
{
    const uint16_t *data = numbers(bytes);
    tiles_begin();
    for (size_t i = 0; i < rounds; i++) {
        const uint16_t *tile = data + i % STEPS * 4 * TILE;
        tile_load(4, tile);
        tile_load(6, tile + 2 * TILE);
        DOT(0, 4, 6);
        tile_load(7, tile + 3 * TILE);
        DOT(1, 4, 7);
        tile_load(5, tile + TILE);
        DOT(2, 5, 6);
        DOT(3, 5, 7);
    }
    tiles_end();
    return 4 * 2.0 * 16 * 16 * (bytes ? 64 : 32) * (double)rounds;
}

static double work_bf16(size_t rounds)
{
    return work(false, rounds);
}

static double work_int8(size_t rounds)
{
    return work(true, rounds);
}

enum { VECTORS = QL_CPU_AVX2 | QL_CPU_AVX512 };
const roof roof_amx = {"AMX bf16 from L1", VECTORS | QL_CPU_AVX512_BF16 | QL_CPU_AMX_BF16, work_bf16, NULL};
const roof roof_amx_int8 = {"AMX int8 from L1", VECTORS | QL_CPU_AVX512_VNNI | QL_CPU_AMX_INT8, work_int8, NULL};
