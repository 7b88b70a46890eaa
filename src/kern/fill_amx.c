#include "kern/fill_amx.h"

#include <immintrin.h>

#include "kern/decode.h"
#include "kern/fill_avx512.h"

enum { LANES = 16, STEP = 32, TILE = 512 };

/* How 64 columns of a row are decoded: a constant wherever it is inlined. */
typedef enum way {
    NIBBLES,      /* 4-bit, a scale for 64 columns */
    NIBBLES_OF_32, /* 4-bit, a scale for 32 */
    BYTES,
    BF16,
    F16,
    ANY, /* through fp32, in plain C */
} way;

/* Columns 0..31 and 32..63 of a block, in bf16. */
typedef struct block {
    __m512i low, high;
} block;

static inline __m512i join(__m512 first, __m512 second)
{
    return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

/* The 16 values of the table times the scale, twice: a code's fifth bit, the neighbour's, chooses between equals. */
static inline __m512i scaled_table(__m512 table, float scale)
{
    __m512 product = _mm512_mul_ps(table, _mm512_set1_ps(scale));
    return join(product, product);
}

static inline __m512i bytes32(const char *at, float scale)
{
    __m512 s = _mm512_set1_ps(scale);
    __m512i first = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)at));
    __m512i second = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(at + 16)));
    return join(_mm512_mul_ps(_mm512_cvtepi32_ps(first), s), _mm512_mul_ps(_mm512_cvtepi32_ps(second), s));
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
    ql_decode_row(w, row, col, count, line);
    return (block){join(_mm512_loadu_ps(line), _mm512_loadu_ps(line + 16)),
                   join(_mm512_loadu_ps(line + 32), _mm512_loadu_ps(line + 48))};
}

/* W[row][col .. col + 63], of which `count` are there. */
static inline __attribute__((always_inline)) block decode(way how, const ql_wview *w, __m512 table, size_t row,
                                                          size_t col, size_t count, float low, float high)
{
    const char *line = (const char *)w->codes + row * w->row_bytes;
    if (how == BF16)
        return (block){dense32(line + 2 * col, count), count > 32 ? dense32(line + 2 * col + 64, count - 32)
                                                                  : _mm512_setzero_si512()};
    if (how == F16)
        return (block){halves32(line + 2 * col, count), count > 32 ? halves32(line + 2 * col + 64, count - 32)
                                                                   : _mm512_setzero_si512()};
    if (how == BYTES)
        return (block){bytes32(line + col, low), bytes32(line + col + 32, high)};
    if (how == ANY)
        return decode_any(w, row, col, count);
    __m512i codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(line + col / 2)));
    __m512i first = scaled_table(table, low), second = how == NIBBLES ? first : scaled_table(table, high);
    return (block){_mm512_permutexvar_epi16(codes, first),
                   _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), second)};
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

/* 16 rows from `first`, those past the last being the last again. */
static void list_rows(size_t rows[LANES], size_t first, size_t count)
{
    for (size_t r = 0; r < LANES; r++)
        rows[r] = first + (r < count ? r : count - 1);
}

static inline __attribute__((always_inline)) void forward_rows(way how, const ql_wview *w, size_t row, size_t rows,
                                                               size_t from, size_t depth, uint16_t *tile)
{
    float scales[QL_MOST_GROUPS * LANES] = {0};
    size_t group = w->format.group, first = group ? from / group : 0, last = group ? (from + depth - 1) / group : 0;
    __m512 table = load_table(w);
    if (how <= BYTES) {
        size_t index[LANES];
        list_rows(index, row, rows);
        ql_scales_avx512(w, index, first, last - first + 1, scales);
    }
    for (size_t at = 0; at < depth; at += QL_BLOCK) {
        size_t g0 = how <= BYTES ? (from + at) / group : 0, g1 = how <= BYTES ? (from + at + STEP) / group : 0;
        const float *low = scales + (g0 - first) * LANES, *high = scales + ((g1 <= last ? g1 : last) - first) * LANES;
        uint16_t *out = tile + at / STEP * 2 * TILE;
        bool both = depth - at > STEP;
        for (size_t r = 0; r < rows; r++) {
            block b = decode(how, w, table, row + r, from + at, depth - at < QL_BLOCK ? depth - at : QL_BLOCK, low[r],
                             high[r]);
            _mm512_store_si512(out + r * STEP, b.low);
            if (both)
                _mm512_store_si512(out + 2 * TILE + r * STEP, b.high);
        }
    }
}

static inline __attribute__((always_inline)) void forward(way how, const ql_product *p, size_t col, size_t cols,
                                                          size_t from, size_t depth, uint16_t *panel)
{
    for (size_t o = 0; o < cols; o += LANES) {
        size_t rows = cols - o < LANES ? cols - o : LANES;
        uint16_t *tile = panel + o / 32 * ql_amx_steps(depth) * 2 * TILE + o / LANES % 2 * TILE;
        forward_rows(how, p->w, col + o, rows, from, depth, tile);
    }
}

/* Two rows of W side by side: pairs of outputs [0, 16) and [16, 32) into the two tiles of a step. */
static inline void store_pairs(__m512i even, __m512i odd, uint16_t *tile)
{
    static const uint16_t order[64] __attribute__((aligned(64))) = {
        0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
        11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
        22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
    _mm512_store_si512(tile, _mm512_permutex2var_epi16(even, _mm512_load_si512(order), odd));
    _mm512_store_si512(tile + TILE, _mm512_permutex2var_epi16(even, _mm512_load_si512(order + 32), odd));
}

/* Rows [row, row + rows) of W, at most 16, whose first pair goes to line `tile`. */
static inline __attribute__((always_inline)) void backward_rows(way how, const ql_wview *w, size_t row, size_t rows,
                                                                size_t col, size_t cols, uint16_t *tile, size_t half)
{
    float scales[2 * LANES] = {0};
    const float *high = scales;
    __m512 table = load_table(w);
    if (how <= BYTES) {
        size_t group = w->format.group, first = col / group, last = (col + cols - 1) / group, index[LANES];
        list_rows(index, row, rows);
        ql_scales_avx512(w, index, first, last - first + 1, scales);
        high = scales + (last - first) * LANES;
    }
    block zero = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (size_t r = 0; r < rows; r += 2, tile += STEP) {
        block even = decode(how, w, table, row + r, col, cols, scales[r], high[r]), odd = zero;
        if (r + 1 < rows)
            odd = decode(how, w, table, row + r + 1, col, cols, scales[r + 1], high[r + 1]);
        store_pairs(even.low, odd.low, tile);
        if (cols > STEP)
            store_pairs(even.high, odd.high, tile + half);
    }
}

static inline __attribute__((always_inline)) void backward(way how, const ql_product *p, size_t col, size_t cols,
                                                           size_t from, size_t depth, uint16_t *panel)
{
    size_t steps = ql_amx_steps(depth), half = steps * 2 * TILE;
    for (size_t i = 0; i < depth; i += LANES) {
        size_t rows = depth - i < LANES ? depth - i : LANES;
        backward_rows(how, p->w, from + i, rows, col, cols, panel + i / STEP * 2 * TILE + i % STEP / 2 * STEP, half);
    }
    for (size_t i = (depth + 1) / 2; i < steps * STEP / 2; i++)
        for (size_t t = 0; t < 4; t++)
            memset(panel + t / 2 * half + (i / LANES * 2 + t % 2) * TILE + i % LANES * STEP, 0, STEP * sizeof *panel);
}

static inline __attribute__((always_inline)) void fill(way how, const ql_product *p, size_t col, size_t cols,
                                                       size_t from, size_t depth, uint16_t *panel)
{
    if (p->transposed)
        backward(how, p, col, cols, from, depth, panel);
    else
        forward(how, p, col, cols, from, depth, panel);
}

void ql_fill_amx(const ql_product *p, size_t col, size_t cols, size_t from, size_t depth, uint16_t *panel)
{
    switch (way_of(p->w)) {
    case NIBBLES:
        fill(NIBBLES, p, col, cols, from, depth, panel);
        break;
    case NIBBLES_OF_32:
        fill(NIBBLES_OF_32, p, col, cols, from, depth, panel);
        break;
    case BYTES:
        fill(BYTES, p, col, cols, from, depth, panel);
        break;
    case BF16:
        fill(BF16, p, col, cols, from, depth, panel);
        break;
    case F16:
        fill(F16, p, col, cols, from, depth, panel);
        break;
    case ANY:
        fill(ANY, p, col, cols, from, depth, panel);
        break;
    }
}
