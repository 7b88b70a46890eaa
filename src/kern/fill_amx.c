#include "kern/fill_amx.h"

#include <string.h>

#include "kern/codes_amx.h"

enum { ROWS = 32, LINE = 2 * QL_BLOCK /* terms: a line of 4-bit codes */ };
enum { SCALES = QL_AMX_OUTPUTS / 32 + 2 * LANES /* of a row, in whole vectors */ };

/* A line of 128 columns of a row, of which `count` are there, with the scales of every 32. */
static inline __attribute__((always_inline)) void forward_nibbles(way how, const char *codes, size_t count,
                                                                  __m512 table, const float by[4], uint16_t *out)
{
    static const uint8_t twins[2][64] = {{PAIRS32(0)}, {PAIRS32(HALF)}};
    const __m512i which[2] = {_mm512_set1_epi16(0x0100), _mm512_set1_epi16(0x2120)};
    _mm_prefetch(codes + LINE / 2, _MM_HINT_T0); /* of the next 128, after these of the other rows */
    __m512i line = _mm512_maskz_loadu_epi64(count > QL_BLOCK ? 0xff : 0x0f, codes);
    __m512i tables = scaled_tables(table, by[0], by[how == NIBBLES ? 2 : 1]);
#pragma GCC unroll 2
    for (size_t i = 0; i < 2; i++, out += 4 * TILE) {
        if (count <= i * QL_BLOCK)
            return;
        if (i && how == NIBBLES_OF_32)
            tables = scaled_tables(table, by[2], by[3]);
        __m512i twice = _mm512_permutexvar_epi8(_mm512_loadu_si512(twins[i]), line);
        _mm512_store_si512(out, look_up(twice, false, which[how == NIBBLES ? i : 0], tables));
        if (count > i * QL_BLOCK + STEP)
            _mm512_store_si512(out + 2 * TILE, look_up(twice, true, which[how == NIBBLES ? i : 1], tables));
    }
}

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
        for (size_t i = 0; i < 2 * LINE / QL_BLOCK; i++)
            group_of[i] = ql_least((from + at + i * STEP) / group, last) - first;
        for (size_t o = 0; o < rows; o++, line += row_bytes) {
            uint16_t *out = panel + o * STEP;
            float by[2 * LINE / QL_BLOCK];
            for (size_t i = 0; how <= BYTES && i < 2 * LINE / QL_BLOCK; i++)
                by[i] = scales[o][group_of[i]];
            if (how <= NIBBLES_OF_32) {
                forward_nibbles(how, line + (from + at) / 2, depth - at, table, by, out);
                continue;
            }
#pragma GCC unroll 2
            for (size_t i = 0; i < LINE / QL_BLOCK; i++) {
                if (i >= blocks)
                    break;
                size_t count = depth - at - i * QL_BLOCK;
                block b = decode_piece((piece){how, w, row + o, from + at + i * QL_BLOCK, count, line, by[2 * i],
                                               by[2 * i + 1]});
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

/* The lines of the next step that lie where a step's four do: they come from the second-level cache. */
static inline void fetch_next(uint16_t *tile, size_t across)
{
    for (size_t i = 0; i < 4; i++)
        __builtin_prefetch(tile + 2 * TILE + i % 2 * TILE + i / 2 * across, 1);
}

/* The same as backward_pair() of quantized codes, without a condition: a row that is missing has scales of 0, and the
 * other one's codes. */
static inline __attribute__((always_inline)) void backward_codes(way how, const char *codes, size_t to_next, size_t cols,
                                                                 const float (*scales)[SCALES], const uint8_t *groups,
                                                                 __m512 table, size_t across, uint16_t *tile)
{
    for (size_t c = 0; c < cols; c += QL_BLOCK, groups += 2, tile += 2 * across) {
        fetch_next(tile, across);
        const float low[2] = {scales[0][groups[0]], scales[1][groups[0]]};
        const float high[2] = {scales[0][groups[1]], scales[1][groups[1]]};
        pairs out;
        if (how == BYTES) {
            out = pairs_of_bytes(codes + c, to_next, low, high);
        } else {
            __m512i tables = scaled_tables(table, low[0], low[1]);
            out = pairs_of_nibbles(codes + c / 2, to_next, tables,
                                   how == NIBBLES ? tables : scaled_tables(table, high[0], high[1]));
        }
        _mm512_store_si512(tile, out.of[0]);
        _mm512_store_si512(tile + TILE, out.of[1]);
        if (cols - c > STEP) {
            _mm512_store_si512(tile + across, out.of[2]);
            _mm512_store_si512(tile + across + TILE, out.of[3]);
        }
    }
}

/* `cols` columns of two rows of W (`rows` are there), which are terms of the sums, as pairs of 32 columns each `across`
 * from the last. */
static inline __attribute__((always_inline)) void backward_pair(piece here, size_t rows, size_t across, uint16_t *tile)
{
    size_t cols = here.count, row_bytes = here.w->row_bytes;
    for (size_t c = 0; c < cols; c += QL_BLOCK, here.col += QL_BLOCK, tile += 2 * across) {
        here.count = cols - c;
        fetch_next(tile, across);
        block pair[2] = {{_mm512_setzero_si512(), _mm512_setzero_si512()},
                         {_mm512_setzero_si512(), _mm512_setzero_si512()}};
#pragma GCC unroll 2
        for (size_t r = 0; r < 2; r++) {
            if (r >= rows)
                break;
            piece one = here;
            one.row += r, one.line += r * row_bytes;
            pair[r] = decode_piece(one);
        }
        store_pairs(pair[0].low, pair[1].low, tile);
        if (here.count > STEP)
            store_pairs(pair[0].high, pair[1].high, tile + across);
    }
}

enum { AHEAD = 8 }; /* rows whose codes are on their way: far apart, they would wait for each other's cache sets */

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
        for (size_t r = rows; r < ROWS; r++)
            memset(scales[r], 0, sizeof *scales);
        for (size_t r = 0; r < ROWS; r += 2) {
            size_t row = from + i + r;
            const char *line = (const char *)w->codes + row * row_bytes;
            for (size_t at = begin; at < end && row + AHEAD + 1 < w->n; at += 64) {
                _mm_prefetch(line + AHEAD * row_bytes + at, _MM_HINT_T0);
                _mm_prefetch(line + (AHEAD + 1) * row_bytes + at, _MM_HINT_T0);
            }
            uint16_t *tile = panel + r / 2 * STEP;
            if (how <= BYTES) /* past the last row: codes that are there */
                backward_codes(how, r < rows ? line + (how == BYTES ? col : col / 2) : (const char *)w->codes,
                               r + 1 < rows ? row_bytes : 0, cols, scales + r, groups, table, across, tile);
            else
                backward_pair((piece){how, w, row, col, cols, line, 0, 0}, rows > r ? rows - r : 0, across, tile);
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
