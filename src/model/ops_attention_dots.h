/* Products of attention by vdpbf16ps, on the tiles of AMX: a line of the right tile is a vector, a word of the left one
 * is broadcast. */
#ifndef QL_SRC_MODEL_OPS_ATTENTION_DOTS_H
#define QL_SRC_MODEL_OPS_ATTENTION_DOTS_H

#include <string.h>

#include "model/ops_attention_pack.h"

static inline void begin_products(void)
{
}

static inline void end_products(void)
{
}

/* ROWS lines of the left tile at `a` with both right ones. */
static inline __attribute__((always_inline)) void multiply_rows(const uint16_t *a, size_t a_step, side b, size_t steps,
                                                                bool add, float *c, size_t right)
{
    enum { ROWS = 8 };
    __m512 sum[ROWS][2];
#pragma GCC unroll 8
    for (size_t r = 0; r < ROWS; r++) {
        sum[r][0] = add ? _mm512_load_ps(c + r * SIDE) : _mm512_setzero_ps();
        sum[r][1] = add ? _mm512_load_ps(c + right + r * SIDE) : _mm512_setzero_ps();
    }
    for (size_t s = 0; s < steps; s++)
        for (size_t i = 0; i < SIDE; i++) {
            __m512bh one = (__m512bh)_mm512_load_si512(b.one + s * b.step + i * BLOCK);
            __m512bh other = (__m512bh)_mm512_load_si512(b.other + s * b.step + i * BLOCK);
#pragma GCC unroll 8
            for (size_t r = 0; r < ROWS; r++) {
                int32_t word;
                memcpy(&word, a + s * a_step + r * BLOCK + 2 * i, sizeof word);
                __m512bh x = (__m512bh)_mm512_set1_epi32(word);
                sum[r][0] = _mm512_dpbf16_ps(sum[r][0], x, one);
                sum[r][1] = _mm512_dpbf16_ps(sum[r][1], x, other);
            }
        }
#pragma GCC unroll 8
    for (size_t r = 0; r < ROWS; r++) {
        _mm512_store_ps(c + r * SIDE, sum[r][0]);
        _mm512_store_ps(c + right + r * SIDE, sum[r][1]);
    }
}

/* As by AMX. */
static inline void multiply(side a, side b, size_t steps, bool add, float *c, size_t right, size_t down)
{
    for (size_t r = 0; r < 2 * SIDE; r += 8) {
        const uint16_t *rows = (r < SIDE ? a.one : a.other) + r % SIDE * BLOCK;
        float *to = c + r / SIDE * down + r % SIDE * SIDE;
        if (add)
            multiply_rows(rows, a.step, b, steps, true, to, right);
        else
            multiply_rows(rows, a.step, b, steps, false, to, right);
    }
}

#endif
