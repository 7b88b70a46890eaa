/* What the kernels that round to bf16 share. Numbers of two tokens lie side by side as pairs: a tile is 16 pairs of
 * tokens x 16 columns. A strip walks the tokens in blocks whose pairs stay in L1; their part of s is made once for all
 * of the strip's columns. The including file defines multiply(). */
#include <assert.h>
#include <immintrin.h>
#include <string.h>

#include "base/cpu.h"
#include "base/sizes.h"
#include "kern/turn_avx512.h"
#include "lora/dropout.h"
#include "lora/outer.h"

enum { LANES = 16, STEP = 32 /* tokens of a tile */, TILE = LANES * STEP, SUMS = LANES * LANES };
enum { STEPS = 8 /* of a block */, GROUPS = 2 /* of 16 ranks */, ACROSS = 4 /* tiles side by side */, WIDTH = 256 };

/* A block of tokens of x, 64 columns of it. */
typedef struct block {
    const ql_outer *outer;
    size_t token, tokens, col, cols;
    const char *next; /* x of the block after this one: 64 columns further, or of later tokens */
    size_t groups;
    const uint16_t *s;                              /* [step][GROUPS] tiles */
    _Alignas(64) uint16_t x[STEPS * ACROSS * TILE]; /* [step][ACROSS] tiles, to be filled in */
    float dropped[STEP * LANES];
} block;

static inline __mmask16 first(size_t lanes)
{
    return (__mmask16)(lanes >= LANES ? 0xffff : (1u << lanes) - 1);
}

/* Words i and 16 + i become a pair. */
static inline __m512i side_by_side(__m512i words)
{
    const __m512i order =
        _mm512_set_epi32(0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a, 0x190009, 0x180008, 0x170007,
                         0x160006, 0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
    return _mm512_permutexvar_epi16(order, words);
}

static inline __m512i pair(__m512 even, __m512 odd)
{
    return side_by_side((__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

/* 16 columns of two tokens. */
static inline void pack_pair(const float *x, size_t ldx, uint16_t *line)
{
    _mm512_store_si512(line, pair(_mm512_loadu_ps(x), _mm512_loadu_ps(x + ldx)));
}

/* Up to 32 tokens x 16 columns, zeros beyond. */
static inline __attribute__((always_inline)) void pack_tile(const float *x, size_t ldx, size_t tokens, size_t cols,
                                                            uint16_t *tile)
{
    if (tokens >= STEP && cols >= LANES) {
#pragma GCC unroll 16
        for (size_t p = 0; p < LANES; p++)
            pack_pair(x + 2 * p * ldx, ldx, tile + p * STEP);
        return;
    }
    for (size_t p = 0; p < LANES; p++) {
        __mmask16 even = 2 * p < tokens ? first(cols) : 0, odd = 2 * p + 1 < tokens ? first(cols) : 0;
        _mm512_store_si512(tile + p * STEP, pair(_mm512_maskz_loadu_ps(even, x + 2 * p * ldx),
                                                 _mm512_maskz_loadu_ps(odd, x + (2 * p + 1) * ldx)));
    }
}

/* Up to 32 tokens x 16 columns of what is in bf16 already. */
static inline __attribute__((always_inline)) void pair_tile(const uint16_t *x, size_t ldx, size_t tokens, size_t cols,
                                                            uint16_t *tile)
{
    const uint16_t *odd = x + ldx;
    for (size_t p = 0; p < LANES; p++, x += 2 * ldx, odd += 2 * ldx) {
        __m256i low, high;
        if (tokens >= STEP && cols >= LANES) {
            low = _mm256_loadu_si256((const __m256i *)x);
            high = _mm256_loadu_si256((const __m256i *)odd);
        } else {
            low = _mm256_maskz_loadu_epi16(2 * p < tokens ? first(cols) : 0, x);
            high = _mm256_maskz_loadu_epi16(2 * p + 1 < tokens ? first(cols) : 0, odd);
        }
        _mm512_store_si512(tile + p * STEP, side_by_side(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)));
    }
}

/* The lines of x that the next block will read where this one reads a tile: its rows are too far apart for a processor
 * to foresee. */
static inline __attribute__((always_inline)) void fetch_next(const block *b, size_t step, size_t across)
{
    const ql_outer *o = b->outer;
    size_t size = o->narrow ? sizeof(uint16_t) : sizeof(float), at = across * LANES * size;
    const char *line = b->next + step * STEP * o->ldx * size + at;
    if (o->narrow && across % 2)
        return;
    for (size_t t = 0; t < STEP; t++, line += o->ldx * size)
        __builtin_prefetch(line, 0, 2);
}

/* Tile `across` of a step. */
static inline __attribute__((always_inline)) void pack_x(block *b, size_t step, size_t across)
{
    const ql_outer *o = b->outer;
    size_t token = b->token + step * STEP, tokens = b->tokens - step * STEP, ldx = o->ldx,
           col = b->col + across * LANES;
    size_t cols = b->cols > across * LANES ? b->cols - across * LANES : 0;
    uint16_t *tile = b->x + (step * ACROSS + across) * TILE;
    if (b->next)
        fetch_next(b, step, across);
    if (o->narrow) {
        pair_tile(o->narrow + token * ldx + col, ldx, tokens, cols, tile);
        return;
    }
    const float *x = o->x + token * ldx + col;
    if (o->dropout) {
        for (size_t t = 0; t < ql_least(tokens, STEP); t++)
            ql_dropout_apply(o->dropout, token + t, col, ql_least(cols, LANES), x + t * ldx, b->dropped + t * LANES);
        x = b->dropped, ldx = LANES;
    }
    pack_tile(x, ldx, tokens, cols, tile);
}

/* Fills in b->x; sums[group][WIDTH / LANES][16 ranks][16 columns] += the products of every group and tile. */
static void multiply(block *b, float *sums);

/* What multiply() wants of s: the words of pairs by ranks instead, or as they are. */
static inline void arrange(uint16_t *tile);

static void pack_s(const ql_outer *o, ql_outer_strip strip, size_t token, size_t tokens, uint16_t *out)
{
    for (size_t t = 0; t < tokens; t += STEP)
        for (size_t g = 0; g < strip.ranks; g += LANES) {
            uint16_t *tile = out + (t / STEP * GROUPS + g / LANES) * TILE;
            pack_tile(o->s + (token + t) * o->r + strip.rank + g, o->r, tokens - t, strip.ranks - g, tile);
            arrange(tile);
        }
}

/* out += a tile of sums, of which so many ranks and columns are there. */
static void add_tile(const ql_outer *o, size_t rank, size_t ranks, size_t col, size_t cols, const float *sums)
{
    __m512i line[LANES];
    for (size_t i = 0; i < LANES; i++)
        line[i] = _mm512_load_si512(sums + i * LANES);
    bool turned = o->stride_j != 1;
    if (turned)
        turn16(line);
    assert(!turned || o->stride_i == 1);
    size_t rows = turned ? cols : ranks, apart = turned ? o->stride_j : o->stride_i;
    __mmask16 mask = first(turned ? ranks : cols);
    float *out = o->out + rank * o->stride_i + col * o->stride_j;
    for (size_t i = 0; i < ql_least(rows, LANES); i++, out += apart)
        _mm512_mask_storeu_ps(out, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), _mm512_castsi512_ps(line[i])));
}

/* Whole blocks only. */
static const char *block_after(const block *b, ql_outer_strip strip)
{
    const ql_outer *o = b->outer;
    size_t token = b->token, col = b->col + ACROSS * LANES;
    if (col >= strip.col + strip.cols)
        token += STEPS * STEP, col = strip.col;
    if (token + STEPS * STEP > o->m || col + ACROSS * LANES > o->cols)
        return NULL;
    size_t at = token * o->ldx + col;
    return o->narrow ? (const char *)(o->narrow + at) : (const char *)(o->x + at);
}

static void strip_of_pairs(const ql_outer *o, ql_outer_strip strip)
{
    _Alignas(64) uint16_t s[STEPS * GROUPS * TILE];
    _Alignas(64) float sums[GROUPS * WIDTH / LANES * SUMS];
    _Alignas(64) block b = {.outer = o, .groups = ql_pieces(strip.ranks, LANES), .s = s};
    memset(sums, 0, b.groups * WIDTH / LANES * SUMS * sizeof *sums);
    for (b.token = 0; b.token < o->m; b.token += b.tokens) {
        b.tokens = ql_least(STEPS * STEP, o->m - b.token);
        pack_s(o, strip, b.token, b.tokens, s);
        for (size_t c = 0; c < strip.cols; c += ACROSS * LANES) {
            b.col = strip.col + c;
            b.cols = ql_least(ACROSS * LANES, strip.cols - c);
            b.next = block_after(&b, strip);
            multiply(&b, sums + c / LANES * SUMS);
        }
    }
    for (size_t g = 0; g < strip.ranks; g += LANES)
        for (size_t c = 0; c < strip.cols; c += LANES)
            add_tile(o, strip.rank + g, strip.ranks - g, strip.col + c, strip.cols - c,
                     sums + (g / LANES * WIDTH + c) / LANES * SUMS);
}
