#include "base/cpu.h"
#include "base/half.h"
#include "base/rng.h"
#include "kern/amx_tiles.h"
#include "roof.h"

enum { STEPS = 8, TILE = TILE_BYTES / 2, NUMBERS = STEPS * 4 * TILE };

/* Random numbers of this thread, made once: zeros would be up to a third faster. */
static const uint16_t *numbers(void)
{
    static _Thread_local uint16_t data[NUMBERS] __attribute__((aligned(64)));
    ql_rng rng = {.seed = 1};
    for (size_t i = 0; i < NUMBERS && !data[NUMBERS - 1]; i++)
        data[i] = ql_f32_to_bf16(ql_uniform(ql_rng_next(&rng)) + 0.5f);
    return data;
}

/* 2 x 2 tiles fed from the first-level cache. */
static double work(size_t rounds)
{
    const uint16_t *data = numbers();
    tiles_begin();
    for (size_t i = 0; i < rounds; i++) {
        const uint16_t *tile = data + i % STEPS * 4 * TILE;
        tile_load(4, tile);
        tile_load(6, tile + 2 * TILE);
        tile_dot_bf16(0, 4, 6);
        tile_load(7, tile + 3 * TILE);
        tile_dot_bf16(1, 4, 7);
        tile_load(5, tile + TILE);
        tile_dot_bf16(2, 5, 6);
        tile_dot_bf16(3, 5, 7);
    }
    tiles_end();
    return 4 * 2.0 * 16 * 16 * 32 * (double)rounds;
}

const roof roof_amx = {"AMX bf16 from L1", QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_BF16 | QL_CPU_AMX_BF16, work, NULL};
