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
    if (ql_code_is_ggml(w->format.code))
        ql_ggml_values(w->format.code, (const char *)w->codes + row * w->row_bytes, col, count, line);
    else
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

static inline __attribute__((always_inline)) block decode_piece(piece at, __m512 table)
{
    if (at.how == ANY)
        return decode_any(at.w, at.row, at.col, ql_least(at.count, QL_BLOCK));
    return decode(at.how, at.line, table, at.col, at.count, at.low, at.high);
}

enum { ROWS = 32, LINE = 2 * QL_BLOCK /* terms: a line of 4-bit codes */ };
enum { SCALES = QL_AMX_OUTPUTS / 32 + 2 * LANES /* of a row, in whole vectors */ };

/* 32 outputs. Lines of codes are used up at once, as rows far apart may share the sets of a cache. What the inner
 * loop needs is in variables of its own: the compiler must take a vector's store for one that may change anything. */
static inline __attribute__((always_inline)) void forward(way how, const ql_wview *w, size_t row, size_t rows,
                                                          size_t from, size_t depth, uint16_t *panel)
{
    float scales[ROWS][QL_AMX_TERMS / 32 + 2 * LANES];
    size_t group = 1, first = 0, last = 0, row_bytes = w->row_bytes;
    __m512 table = load_table(w);
    if (how <= BYTES) {
        group = w->format.group, first = from / group, last = (from + depth - 1) / group;
        for (size_t o = 0; o < rows; o++)
            row_scales(w, (row + o) * ql_row_groups(w) + first, last - first + 1, scales[o]);
    }
    for (size_t at = 0; at < depth; at += LINE, panel += 8 * TILE) {
        const char *line = (const char *)w->codes + row * row_bytes;
        size_t blocks = ql_pieces(ql_least(depth - at, LINE), QL_BLOCK), group_of[2 * LINE / QL_BLOCK];
        for (size_t i = 0; i < 2 * blocks; i++)
            group_of[i] = ql_least((from + at + i * STEP) / group, last) - first;
        for (size_t o = 0; o < rows; o++, line += row_bytes) {
            uint16_t *out = panel + o * STEP;
#pragma GCC unroll 2
            for (size_t i = 0; i < LINE / QL_BLOCK; i++) {
                if (i >= blocks)
                    break;
                size_t count = depth - at - i * QL_BLOCK;
                piece here = {how, w, row + o, from + at + i * QL_BLOCK, count, line, 0, 0};
                if (how <= BYTES)
                    here.low = scales[o][group_of[2 * i]], here.high = scales[o][group_of[2 * i + 1]];
                block b = decode_piece(here, table);
                _mm512_store_si512(out + 4 * i * TILE, b.low);
                if (count > STEP)
                    _mm512_store_si512(out + (4 * i + 2) * TILE, b.high);
            }
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

/* `cols` columns of two rows of W (`rows` are there), which are terms of the sums, as pairs of 32 columns each `across`
 * from the last. groups: places among the scales of the rows of every 32 columns. */
static inline __attribute__((always_inline)) void backward_pair(piece here, size_t rows, const float (*scales)[SCALES],
                                                                const uint8_t *groups, __m512 table, size_t across,
                                                                uint16_t *tile)
{
    size_t cols = here.count, row_bytes = here.w->row_bytes;
    for (size_t c = 0; c < cols; c += QL_BLOCK, here.col += QL_BLOCK, tile += 2 * across) {
        here.count = cols - c;
        for (size_t i = 0; i < 4; i++) /* they come from the second-level cache */
            __builtin_prefetch(tile + 2 * TILE + i % 2 * TILE + i / 2 * across, 1);
        block pair[2] = {{_mm512_setzero_si512(), _mm512_setzero_si512()},
                         {_mm512_setzero_si512(), _mm512_setzero_si512()}};
#pragma GCC unroll 2
        for (size_t r = 0; r < 2; r++) {
            if (r >= rows)
                break;
            piece one = here;
            one.row += r, one.line += r * row_bytes;
            one.low = scales[r][groups[c / STEP]], one.high = scales[r][groups[c / STEP + 1]];
            pair[r] = decode_piece(one, table);
        }
        store_pairs(pair[0].low, pair[1].low, tile);
        if (here.count > STEP)
            store_pairs(pair[0].high, pair[1].high, tile + across);
    }
}

enum { AHEAD = 16 }; /* rows whose codes are on their way: far apart, they would wait for each other's cache sets */

static inline __attribute__((always_inline)) void backward(way how, const ql_wview *w, size_t col, size_t cols,
                                                           size_t from, size_t depth, uint16_t *panel)
{
    float scales[ROWS][SCALES] = {{0}};
    uint8_t groups[QL_AMX_OUTPUTS / STEP + 2] = {0};
    size_t across = ql_amx_steps(depth) * STEP * ROWS, all = ql_row_groups(w), row_bytes = w->row_bytes;
    size_t group = how <= BYTES ? w->format.group : 1, first = col / group, last = (col + cols - 1) / group;
    size_t begin = (how == BF16 || how == F16 ? 2 * col : how == BYTES ? col : col / 2) / 64 * 64;
    size_t end = how == BF16 || how == F16 ? 2 * (col + cols) : how == BYTES ? col + cols : (col + cols) / 2;
    __m512 table = load_table(w);
    for (size_t i = 0; how <= BYTES && i < cols; i += STEP)
        groups[i / STEP] = (uint8_t)((col + i) / group - first);
    for (size_t i = 0; i < depth; i += ROWS, panel += 2 * TILE) {
        size_t rows = ql_least(ROWS, depth - i);
        for (size_t r = 0; how <= BYTES && r < rows; r++)
            row_scales(w, (from + i + r) * all + first, last - first + 1, scales[r]);
        for (size_t r = 0; r < ROWS; r += 2) {
            size_t row = from + i + r;
            const char *line = (const char *)w->codes + row * row_bytes;
            for (size_t at = begin; at < end && row + AHEAD + 1 < w->n; at += 64) {
                _mm_prefetch(line + AHEAD * row_bytes + at, _MM_HINT_T0);
                _mm_prefetch(line + (AHEAD + 1) * row_bytes + at, _MM_HINT_T0);
            }
            backward_pair((piece){how, w, row, col, cols, line, 0, 0}, rows > r ? rows - r : 0, scales + r, groups, table,
                          across, panel + r / 2 * STEP);
        }
    }
}

static inline __attribute__((always_inline)) void fill(way how, const ql_product *p, size_t col, size_t cols,
                                                       size_t from, size_t depth, uint16_t *panel)
{
    size_t across = ql_amx_steps(depth) * STEP * ROWS;
    if (p->transposed)
        backward(how, p->w, col, cols, from, depth, panel);
    else
        for (size_t o = 0; o < cols; o += ROWS)
            forward(how, p->w, col + o, ql_least(ROWS, cols - o), from, depth, panel + o / ROWS * across);
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
