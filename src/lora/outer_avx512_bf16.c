/* Dot products of pairs: 8 ranks x 2 tiles of sums in registers. */
#include "lora/outer_bf16.h"

static inline void arrange(uint16_t *tile)
{
    (void)tile;
}

/* 8 ranks with two tiles, side by side, of every step. With `fresh` their pairs are made of it on the way, rows ldx
 * apart, so that products cover the wait for memory. */
static inline __attribute__((always_inline)) void eight_ranks(size_t steps, const uint16_t *s, const float *fresh,
                                                              size_t ldx, uint16_t *x, float *sums)
{
    __m512 acc[8][2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
#pragma GCC unroll 2
        for (int c = 0; c < 2; c++)
            acc[i][c] = _mm512_load_ps(sums + c * SUMS + i * LANES);
    for (size_t step = 0; step < steps; step++, s += GROUPS * TILE, x += ACROSS * TILE)
        for (size_t p = 0; p < TILE; p += STEP) {
            if (fresh) {
                pack_pair(fresh, ldx, x + p);
                pack_pair(fresh + LANES, ldx, x + TILE + p);
                fresh += 2 * ldx;
            }
            __m512bh x0 = (__m512bh)_mm512_load_si512(x + p), x1 = (__m512bh)_mm512_load_si512(x + TILE + p);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                int both;
                memcpy(&both, s + p + 2 * i, sizeof both);
                __m512bh si = (__m512bh)_mm512_set1_epi32(both);
                acc[i][0] = _mm512_dpbf16_ps(acc[i][0], si, x0);
                acc[i][1] = _mm512_dpbf16_ps(acc[i][1], si, x1);
            }
        }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
#pragma GCC unroll 2
        for (int c = 0; c < 2; c++)
            _mm512_store_ps(sums + c * SUMS + i * LANES, acc[i][c]);
}

static void multiply(block *b, float *sums)
{
    const ql_outer *o = b->outer;
    size_t steps = ql_pieces(b->tokens, STEP);
    for (size_t c = 0; c * LANES < b->cols; c += 2) {
        bool whole = b->tokens % STEP == 0 && b->cols - c * LANES >= 2 * LANES && !o->dropout && !o->narrow;
        for (size_t step = 0; step < steps && !whole; step++) {
            pack_x(b, step, c);
            pack_x(b, step, c + 1);
        }
        for (size_t i = 0; i < b->groups * LANES; i += 8) {
            const uint16_t *s = b->s + i / LANES * TILE + i % LANES * 2;
            float *out = sums + (i / LANES * WIDTH / LANES + c) * SUMS + i % LANES * LANES;
            if (whole && i == 0)
                eight_ranks(steps, s, o->x + b->token * o->ldx + b->col + c * LANES, o->ldx, b->x + c * TILE, out);
            else
                eight_ranks(steps, s, NULL, 0, b->x + c * TILE, out);
        }
    }
}

const ql_outer_kernel ql_outer_avx512_bf16 = {.name = "avx512-bf16",
                                              .cpu = QL_CPU_AVX512 | QL_CPU_AVX512_BF16,
                                              .bf16_inputs = true,
                                              .cols = WIDTH,
                                              .least = ACROSS * LANES,
                                              .ranks = GROUPS * LANES,
                                              .strip = strip_of_pairs};
