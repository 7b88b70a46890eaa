/* Quantized and dense weights as bf16, for panels of tiles. Only for files compiled for AVX-512 with BF16 and VBMI. */
#ifndef QL_SRC_KERN_CODES_AMX_H
#define QL_SRC_KERN_CODES_AMX_H

#include <immintrin.h>

#include "kern/decode.h"

enum { LANES = 16, STEP = 32, TILE = 512 };

/* How columns are decoded: a constant wherever it is inlined. */
typedef enum way {
    NIBBLES,       /* 4-bit, a scale for 64 columns */
    NIBBLES_OF_32, /* 4-bit, a scale for 32 */
    BYTES,
    BF16,
    F16,
    ANY, /* through fp32; ggml's blocks by vectors, others in plain C */
} way;

/* Columns 0..31 and 32..63 of a block, in bf16. */
typedef struct block {
    __m512i low, high;
} block;

static inline __m512i join(__m512 first, __m512 second)
{
    return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

/* ---- 4-bit codes, looked up by bytes: a step on processors that take two for words. An index is [1 bit: which of two
 * tables of 16 bf16][4 bits: code][1 bit: which byte]. ---- */

enum { HALF = 32 /* bytes of 64 codes */ };

#define PAIRS8(i) i, i, i + 1, i + 1, i + 2, i + 2, i + 3, i + 3, i + 4, i + 4, i + 5, i + 5, i + 6, i + 6, i + 7, i + 7
#define PAIRS32(i) PAIRS8(i), PAIRS8(i + 8), PAIRS8(i + 16), PAIRS8(i + 24)
#define QUADS4(i) i, i, HALF + i, HALF + i, i + 1, i + 1, HALF + i + 1, HALF + i + 1, i + 2, i + 2, HALF + i + 2, \
                  HALF + i + 2, i + 3, i + 3, HALF + i + 3, HALF + i + 3
#define QUADS16(i) QUADS4(i), QUADS4(i + 4), QUADS4(i + 8), QUADS4(i + 12)

#define WORDS4(i) 2 * (i), 2 * (i) + 1, HALF + 2 * (i), HALF + 2 * (i) + 1
#define WORDS16(i) WORDS4(i), WORDS4(i + 1), WORDS4(i + 2), WORDS4(i + 3), WORDS4(i + 4), WORDS4(i + 5), WORDS4(i + 6), \
                   WORDS4(i + 7), WORDS4(i + 8), WORDS4(i + 9), WORDS4(i + 10), WORDS4(i + 11), WORDS4(i + 12), \
                   WORDS4(i + 13), WORDS4(i + 14), WORDS4(i + 15)

/* The table times two scales. */
static inline __m512i scaled_tables(__m512 table, float first, float second)
{
    return join(_mm512_mul_ps(table, _mm512_set1_ps(first)), _mm512_mul_ps(table, _mm512_set1_ps(second)));
}

/* The low or high nibbles of bytes that stand there twice. which: an index's other bits. */
static inline __m512i look_up(__m512i twice, bool high, __m512i which, __m512i tables)
{
    const __m512i code = _mm512_set1_epi8(0x1e);
    __m512i moved = high ? _mm512_srli_epi16(twice, 3) : _mm512_add_epi8(twice, twice);
    return _mm512_permutexvar_epi8(_mm512_ternarylogic_epi32(moved, code, which, 0xea /* moved & code | which */), tables);
}

static inline __m512 bytes16(const char *at, float scale)
{
    __m512i codes = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)at));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(scale));
}

static inline __m512i bytes32(const char *at, float scale)
{
    return join(bytes16(at, scale), bytes16(at + LANES, scale));
}

static inline __m512i dense32(const char *at, size_t count)
{
    return _mm512_maskz_loadu_epi16(count >= 32 ? ~0u : (1u << count) - 1, at);
}

static inline __m512i halves32(const char *at, size_t count)
{
    __m512i codes = dense32(at, count);
    return join(_mm512_cvtph_ps(_mm512_castsi512_si256(codes)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64(codes, 1)));
}

static block decode_any(const ql_wview *w, size_t row, size_t col, size_t count)
{
    float line[QL_BLOCK] = {0};
    if (ql_code_is_ggml(w->format.code))
        ql_ggml_values(w->format.code, (const char *)w->codes + row * w->row_bytes, col, count, line);
    else
        ql_decode_row(w, row, col, count, line);
    return (block){join(_mm512_loadu_ps(line), _mm512_loadu_ps(line + 16)),
                   join(_mm512_loadu_ps(line + 32), _mm512_loadu_ps(line + 48))};
}

/* 64 columns from `col`, of which `count` are there, of the row that starts at `line`. */
static inline __attribute__((always_inline)) block decode(way how, const char *line, size_t col, size_t count,
                                                          float low, float high)
{
    if (how == BF16)
        return (block){dense32(line + 2 * col, count), count > 32 ? dense32(line + 2 * col + 64, count - 32)
                                                                  : _mm512_setzero_si512()};
    if (how == F16)
        return (block){halves32(line + 2 * col, count), count > 32 ? halves32(line + 2 * col + 64, count - 32)
                                                                   : _mm512_setzero_si512()};
    return (block){bytes32(line + col, low), bytes32(line + col + 32, high)};
}

static way way_of(const ql_wview *w)
{
    if (w->format.code == QL_CODE_BF16)
        return BF16;
    if (w->format.code == QL_CODE_F16)
        return F16;
    if (!ql_row_groups(w))
        return ANY;
    if (w->format.code == QL_CODE_INT8)
        return BYTES;
    return w->format.group % QL_BLOCK ? NIBBLES_OF_32 : NIBBLES;
}

static inline __m512 load_table(const ql_wview *w)
{
    return w->table ? _mm512_loadu_ps(w->table) : _mm512_setzero_ps();
}

/* out[i] = scale of group g + i of the row-major array; there is room for whole vectors, as what a masked store wrote
 * is slow to load. */
static inline void row_scales(const ql_wview *w, size_t g, size_t count, float *out)
{
    size_t stretch = g / QL_DQ_GROUPS; /* of groups with one step and offset */
    if (w->format.scale != QL_SCALE_DQ || (g + count - 1) / QL_DQ_GROUPS != stretch) {
        ql_decode_scales(w, g, count, out);
        return;
    }
    __m512 step = _mm512_set1_ps(_cvtsh_ss(w->steps[stretch])), offset = _mm512_set1_ps(_cvtsh_ss(w->offsets[stretch]));
    for (size_t i = 0; i < count; i += LANES) {
        __mmask16 mask = (__mmask16)(count - i >= LANES ? ~0u : (1u << (count - i)) - 1);
        __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, (const uint8_t *)w->scales + g + i));
        _mm512_storeu_ps(out + i, _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), step, offset));
    }
}

/* What decodes a piece of 64 columns, in registers while rows go by. */
typedef struct piece {
    way how;
    const ql_wview *w;
    size_t row, col, count; /* of W, and the columns that are there */
    const char *line;       /* of that row */
    float low, high;        /* scales of the first and the second 32 columns */
} piece;

static inline __attribute__((always_inline)) block decode_piece(piece at)
{
    if (at.how == ANY)
        return decode_any(at.w, at.row, at.col, ql_least(at.count, QL_BLOCK));
    return decode(at.how, at.line, at.col, at.count, at.low, at.high);
}

/* 64 columns of two rows, `to_next` bytes apart, side by side. */
typedef struct pairs {
    __m512i of[4]; /* of 16 columns each */
} pairs;

static inline pairs pairs_of_nibbles(const char *codes, size_t to_next, __m512i low, __m512i high)
{
    static const uint8_t quads[2][64] = {{QUADS16(0)}, {QUADS16(HALF / 2)}};
    const __m512i which = _mm512_set1_epi32(0x21200100);
    __m512i first = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)codes));
    __m512i both = _mm512_inserti64x4(first, _mm256_loadu_si256((const __m256i *)(codes + to_next)), 1);
    pairs out;
#pragma GCC unroll 2
    for (size_t i = 0; i < 2; i++) {
        __m512i twice = _mm512_permutexvar_epi8(_mm512_loadu_si512(quads[i]), both);
        out.of[i] = look_up(twice, false, which, low);
        out.of[2 + i] = look_up(twice, true, which, high);
    }
    return out;
}

static inline pairs pairs_of_bytes(const char *codes, size_t to_next, const float low[2], const float high[2])
{
    static const uint8_t side_by_side[64] = {WORDS16(0)};
    pairs out;
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        const float *by = i < 2 ? low : high;
        __m512i rows = join(bytes16(codes + i * LANES, by[0]), bytes16(codes + to_next + i * LANES, by[1]));
        out.of[i] = _mm512_permutexvar_epi8(_mm512_loadu_si512(side_by_side), rows);
    }
    return out;
}

#endif
