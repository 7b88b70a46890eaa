/* The tile registers of AMX: eight of 16 rows x 64 bytes. Assembler rather than the compilers' intrinsics, some
 * of which do not tell the compiler that they read memory. With QL_AMX_EMULATED the same operations in plain C,
 * so that tests reach the kernels on any processor. */
#ifndef QL_SRC_KERN_AMX_TILES_H
#define QL_SRC_KERN_AMX_TILES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { TILE_ROWS = 16, TILE_LINE = 64, TILE_BYTES = TILE_ROWS * TILE_LINE };

#ifndef QL_AMX_EMULATED

/* Every tile whole; they are zero afterwards. */
static inline void tiles_begin(void)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t line[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64))) = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.line[i] = TILE_LINE;
        config.rows[i] = TILE_ROWS;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

static inline void tiles_end(void)
{
    __asm__ volatile("tilerelease");
}

#define tile_zero(t) __asm__ volatile("tilezero %%tmm" #t : :)
#define tile_load(t, from) __asm__ volatile("tileloadd (%0,%1), %%tmm" #t : : "r"(from), "r"((size_t)TILE_LINE) : "memory")
/* The same for what is not needed again soon: it passes by the first-level cache. */
#define tile_stream(t, from) __asm__ volatile("tileloaddt1 (%0,%1), %%tmm" #t : : "r"(from), "r"((size_t)TILE_LINE) : "memory")
#define tile_store(t, to) __asm__ volatile("tilestored %%tmm" #t ", (%0,%1)" : : "r"(to), "r"((size_t)TILE_LINE) : "memory")

/* c[i][j] += sum over l of a[i][l] b[l / 2][j][l % 2], bf16 with fp32 sums. */
#define tile_dot_bf16(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)

/* c[i][j] += sum over l of a[i][l] b[l / 4][j][l % 4], signed bytes with 32-bit sums. */
#define tile_dot_int8(c, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)

#else

#include "base/half.h"

static _Thread_local float emulated_tiles[8][TILE_BYTES / sizeof(float)];

static inline void tiles_begin(void)
{
    memset(emulated_tiles, 0, sizeof emulated_tiles);
}

/* Tiles that are read outside begin and end hold NaN. */
static inline void tiles_end(void)
{
    memset(emulated_tiles, 0xff, sizeof emulated_tiles);
}

static inline void emulated_dot_bf16(float *c, const float *a, const float *b)
{
    uint16_t x[TILE_ROWS][32], w[TILE_ROWS][32];
    memcpy(x, a, sizeof x);
    memcpy(w, b, sizeof w);
    for (size_t i = 0; i < TILE_ROWS; i++)
        for (size_t l = 0; l < 32; l++)
            for (size_t j = 0; j < TILE_ROWS; j++)
                c[i * TILE_ROWS + j] += ql_bf16_to_f32(x[i][l]) * ql_bf16_to_f32(w[l / 2][2 * j + l % 2]);
}

static inline void emulated_dot_int8(float *sums, const float *a, const float *b)
{
    int8_t x[TILE_ROWS][TILE_LINE], w[TILE_ROWS][TILE_LINE];
    int32_t c[TILE_ROWS][TILE_ROWS];
    memcpy(x, a, sizeof x);
    memcpy(w, b, sizeof w);
    memcpy(c, sums, sizeof c);
    for (size_t i = 0; i < TILE_ROWS; i++)
        for (size_t l = 0; l < TILE_LINE; l++)
            for (size_t j = 0; j < TILE_ROWS; j++)
                c[i][j] += x[i][l] * w[l / 4][4 * j + l % 4];
    memcpy(sums, c, sizeof c);
}

#define tile_zero(t) memset(emulated_tiles[t], 0, TILE_BYTES)
#define tile_load(t, from) memcpy(emulated_tiles[t], from, TILE_BYTES)
#define tile_stream(t, from) tile_load(t, from)
#define tile_store(t, to) memcpy(to, emulated_tiles[t], TILE_BYTES)
#define tile_dot_bf16(c, a, b) emulated_dot_bf16(emulated_tiles[c], emulated_tiles[a], emulated_tiles[b])
#define tile_dot_int8(c, a, b) emulated_dot_int8(emulated_tiles[c], emulated_tiles[a], emulated_tiles[b])

#endif

#endif
