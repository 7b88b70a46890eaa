/* Tiles: s by ranks is the left one, the pairs of x are the right one. While a tile of x is made by vector
 * instructions the one before is multiplied. */
#include "kern/amx_tiles.h"
#include "lora/outer_bf16.h"

static inline void arrange(uint16_t *tile)
{
    __m512i line[LANES];
#pragma GCC unroll 16
    for (size_t i = 0; i < LANES; i++)
        line[i] = _mm512_load_si512(tile + i * STEP);
    turn16(line);
#pragma GCC unroll 16
    for (size_t i = 0; i < LANES; i++)
        _mm512_store_si512(tile + i * STEP, line[i]);
}

static void multiply(block *b, float *sums)
{
    size_t steps = ql_pieces(b->tokens, STEP), tiles = ql_pieces(b->cols, LANES);
    for (size_t g = 0; g < b->groups; g++, sums += WIDTH / LANES * SUMS) {
        bool packs = g == 0;
        tile_load(0, sums);
        tile_load(1, sums + SUMS);
        tile_load(2, sums + 2 * SUMS);
        tile_load(3, sums + 3 * SUMS);
        for (size_t step = 0; step <= steps; step++) {
            size_t before = step ? step - 1 : 0;
            const uint16_t *x = b->x + before * ACROSS * TILE;
            if (step)
                tile_load(4, b->s + (before * GROUPS + g) * TILE);
#define PACK_AND_DOT(c, t)                                                                                             \
    do {                                                                                                               \
        if (c >= tiles)                                                                                                \
            break;                                                                                                     \
        if (packs && step < steps)                                                                                     \
            pack_x(b, step, c);                                                                                        \
        if (step) {                                                                                                    \
            tile_load(t, x + c * TILE);                                                                                \
            tile_dot_bf16(c, 4, t);                                                                                    \
        }                                                                                                              \
    } while (0)
            PACK_AND_DOT(0, 5);
            PACK_AND_DOT(1, 6);
            PACK_AND_DOT(2, 5);
            PACK_AND_DOT(3, 6);
#undef PACK_AND_DOT
        }
        tile_store(0, sums);
        tile_store(1, sums + SUMS);
        tile_store(2, sums + 2 * SUMS);
        tile_store(3, sums + 3 * SUMS);
    }
}

static void strip(const ql_outer *o, ql_outer_strip s)
{
    tiles_begin();
    strip_of_pairs(o, s);
    tiles_end();
}

#ifndef QL_AMX_EMULATED
const ql_outer_kernel ql_outer_amx = {
    .name = "amx",
    .cpu = QL_CPU_AVX512 | QL_CPU_AVX512_BF16 | QL_CPU_AMX_BF16,
#else
const ql_outer_kernel ql_outer_amx_emulated = {
    .name = "amx, emulated",
    .cpu = QL_CPU_AVX512 | QL_CPU_AVX512_BF16,
#endif
    .bf16_inputs = true,
    .cols = WIDTH,
    .least = ACROSS * LANES,
    .ranks = GROUPS * LANES,
    .strip = strip};
