/* Products of attention by AMX. Included by ops_attention_tiles_kern.c, as ops_attention_dots.h is where there are no
 * tile registers. */
#ifndef QL_SRC_MODEL_OPS_ATTENTION_AMX_H
#define QL_SRC_MODEL_OPS_ATTENTION_AMX_H

#include "kern/amx_tiles.h"
#include "model/ops_attention_pack.h"

static inline void begin_products(void)
{
    tiles_begin();
}

static inline void end_products(void)
{
    tiles_end();
}

/* Two by two tiles, (+)= the sum of `steps` products. The tile on the right is `right` floats further, that below
 * `down`. */
static inline __attribute__((always_inline)) void multiply(side a, side b, size_t steps, bool add, float *c,
                                                           size_t right, size_t down)
{
    if (add) {
        tile_load(0, c);
        tile_load(1, c + right);
        tile_load(2, c + down);
        tile_load(3, c + down + right);
    } else {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
    }
    for (size_t i = 0; i < steps; i++) {
        tile_load(4, a.one + i * a.step);
        tile_load(6, b.one + i * b.step);
        tile_dot_bf16(0, 4, 6);
        tile_load(7, b.other + i * b.step);
        tile_dot_bf16(1, 4, 7);
        tile_load(5, a.other + i * a.step);
        tile_dot_bf16(2, 5, 6);
        tile_dot_bf16(3, 5, 7);
    }
    tile_store(0, c);
    tile_store(1, c + right);
    tile_store(2, c + down);
    tile_store(3, c + down + right);
}

#endif
