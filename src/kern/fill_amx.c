#include "kern/fill_amx.h"

#include <immintrin.h>

#include "kern/decode.h"

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

/* 64 columns from `col`, of which `count` are there, of the row that starts at `line`. */
static inline __attribute__((always_inline)) block decode(way how, const char *line, __m512 table, size_t col,
                                                          size_t count, float low, float high)
{
    if (how == BF16)
        return (block){dense32(line + 2 * col, count), count > 32 ? dense32(line + 2 * col + 64, count - 32)
                                                                  : _mm512_setzero_si512()};
    if (how == F16)
        return (block){halves32(line + 2 * col, count), count > 32 ? halves32(line + 2 * col + 64, count - 32)
                                                                   : _mm512_setzero_si512()};
    if (how == BYTES)
        return (block){bytes32(line + col, low), bytes32(line + col + 32, high)};
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

enum { AHEAD = 24 }; /* rows that are on their way while one is decoded */

/* out[i] = scale of group g + i of the row-major array. */
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
        _mm512_mask_storeu_ps(out + i, mask, _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), step, offset));
    }
}

/* Block after block of 64 terms, for all the rows, so that stores stay within a page. What the inner loop needs is in
 * variables of its own: the compiler must take a vector's store for one that may change anything in memory. */
static inline __attribute__((always_inline)) void forward(way how, const ql_wview *w, size_t col, size_t cols,
                                                          size_t from, size_t depth, uint16_t *panel)
{
    float scales[QL_AMX_OUTPUTS][QL_AMX_TERMS / 32];
    size_t half = ql_amx_steps(depth) * 2 * TILE, group = 1, first = 0, last = 0, row_bytes = w->row_bytes;
    __m512 table = load_table(w);
    if (how <= BYTES) {
        group = w->format.group, first = from / group, last = (from + depth - 1) / group;
        for (size_t o = 0; o < cols; o++)
            row_scales(w, (col + o) * ql_row_groups(w) + first, last - first + 1, scales[o]);
    }
    for (size_t at = 0; at < depth; at += QL_BLOCK, panel += 4 * TILE) {
        const char *line = (const char *)w->codes + col * row_bytes;
        size_t low = (from + at) / group, high = (from + at + STEP) / group, count = depth - at;
        low -= first, high = (high < last ? high : last) - first;
        for (size_t o = 0; o < cols; o++, line += row_bytes) {
            block b = how == ANY     ? decode_any(w, col + o, from + at, count < QL_BLOCK ? count : QL_BLOCK)
                      : how <= BYTES ? decode(how, line, table, from + at, count, scales[o][low], scales[o][high])
                                     : decode(how, line, table, from + at, count, 0, 0);
            uint16_t *out = panel + (o / 32 ? half : 0) + o % 32 * STEP;
            _mm512_store_si512(out, b.low);
            if (count > STEP)
                _mm512_store_si512(out + 2 * TILE, b.high);
        }
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

static inline float one_scale(const ql_wview *w, size_t g)
{
    if (w->format.scale != QL_SCALE_DQ)
        return ql_wview_scale(w, g);
    return fmaf(((const uint8_t *)w->scales)[g], _cvtsh_ss(w->steps[g / QL_DQ_GROUPS]),
                _cvtsh_ss(w->offsets[g / QL_DQ_GROUPS]));
}

/* Columns [col, col + cols) of a row, scale and all; low and high are the first and last of its groups there. */
static inline __attribute__((always_inline)) block decode_row(way how, const ql_wview *w, const char *line,
                                                              __m512 table, size_t row, size_t col, size_t cols,
                                                              size_t low, size_t high)
{
    if (how == ANY)
        return decode_any(w, row, col, cols);
    if (how > BYTES)
        return decode(how, line, table, col, cols, 0, 0);
    float first = one_scale(w, low);
    return decode(how, line, table, col, cols, first, low == high ? first : one_scale(w, high));
}

static inline __attribute__((always_inline)) void backward(way how, const ql_wview *w, size_t col, size_t cols,
                                                           size_t from, size_t depth, uint16_t *panel)
{
    size_t end = ql_amx_steps(depth) * STEP, half = end * 2 * LANES, row_bytes = w->row_bytes, groups = ql_row_groups(w);
    size_t low = how <= BYTES ? col / w->format.group : 0, high = how <= BYTES ? (col + cols - 1) / w->format.group : 0;
    size_t ahead = AHEAD * row_bytes + (how == BF16 || how == F16 ? 4 : how == BYTES ? 2 : 1) * col / 2;
    const char *line = (const char *)w->codes + from * row_bytes;
    __m512 table = load_table(w);
    for (size_t i = 0, row = from; i < end; i += 2, row += 2, line += 2 * row_bytes) {
        if (i + AHEAD < depth) {
            _mm_prefetch(line + ahead, _MM_HINT_T0);
            _mm_prefetch(line + ahead + row_bytes, _MM_HINT_T0);
        }
        block even = {_mm512_setzero_si512(), _mm512_setzero_si512()}, odd = even;
        size_t g = row * groups;
        if (i < depth)
            even = decode_row(how, w, line, table, row, col, cols, g + low, g + high);
        if (i + 1 < depth)
            odd = decode_row(how, w, line + row_bytes, table, row + 1, col, cols, g + groups + low, g + groups + high);
        uint16_t *tile = panel + i / STEP * 2 * TILE + i % STEP / 2 * STEP;
        store_pairs(even.low, odd.low, tile);
        if (cols > STEP)
            store_pairs(even.high, odd.high, tile + half);
    }
}

static inline __attribute__((always_inline)) void fill(way how, const ql_product *p, size_t col, size_t cols,
                                                       size_t from, size_t depth, uint16_t *panel)
{
    if (p->transposed)
        backward(how, p->w, col, cols, from, depth, panel);
    else
        forward(how, p->w, col, cols, from, depth, panel);
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
