#include "kern/fill_avx2.h"

#include <immintrin.h>

#include "kern/rows_avx2.h"
#include "kern/table_avx2.h"

enum { WIDTH = 16 };

/* 16 bytes of each of 8 rows, as four vectors of the rows' 32-bit words. */
typedef struct turned {
    __m256i word[4];
} turned;

static inline turned turn(const char *const rows[LANES], size_t at)
{
    __m256i r[4];
    for (int i = 0; i < 4; i++) {
        __m128i low = _mm_loadu_si128((const __m128i *)(const void *)(rows[i] + at));
        __m128i high = _mm_loadu_si128((const __m128i *)(const void *)(rows[4 + i] + at));
        r[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    }
    __m256i a = _mm256_unpacklo_epi32(r[0], r[1]), b = _mm256_unpackhi_epi32(r[0], r[1]);
    __m256i c = _mm256_unpacklo_epi32(r[2], r[3]), d = _mm256_unpackhi_epi32(r[2], r[3]);
    return (turned){{_mm256_unpacklo_epi64(a, c), _mm256_unpackhi_epi64(a, c), _mm256_unpacklo_epi64(b, d),
                     _mm256_unpackhi_epi64(b, d)}};
}

/* The scales of 8 rows: out[g][8] for groups [first, first + count) of each. */
static void turn_scales(const ql_wview *w, const size_t rows[LANES], size_t first, size_t count, float *out)
{
    size_t groups = ql_row_groups(w), starts[LANES];
    for (size_t r = 0; r < LANES; r++)
        starts[r] = rows[r] * groups + first;
    ql_dq_lanes dq;
    if (ql_dq_collect(w, starts, LANES, count, &dq)) {
        __m256 step = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)dq.steps));
        __m256 offset = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)dq.offsets));
        for (size_t g = 0; g < count; g++) {
            __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)dq.codes[g]));
            _mm256_storeu_ps(out + g * LANES, _mm256_fmadd_ps(_mm256_cvtepi32_ps(code), step, offset));
        }
        return;
    }
    for (size_t r = 0; r < LANES; r++) {
        float line[QL_MOST_GROUPS];
        ql_decode_scales(w, starts[r], count, line);
        for (size_t g = 0; g < count; g++)
            out[g * LANES + r] = line[g];
    }
}

/* One 64-block of 8 rows of a 4-bit code: columns 0..31 in the low nibbles, 32..63 in the high ones. */
static void block_4bit(const char *const rows[LANES], size_t at, table16 table, __m256 low, __m256 high, float *panel)
{
    for (size_t half = 0; half < 2; half++) {
        turned t = turn(rows, at + half * 16);
        for (size_t j = 0; j < 4; j++) {
            float *out = panel + (half * 16 + j * 4) * WIDTH;
#pragma GCC unroll 4
            for (int b = 0; b < 4; b++) {
                __m256i even = _mm256_srli_epi32(t.word[j], 8 * b), odd = _mm256_srli_epi32(t.word[j], 8 * b + 4);
                _mm256_store_ps(out + b * WIDTH, _mm256_mul_ps(look_up(table, even), low));
                _mm256_store_ps(out + (b + 32) * WIDTH, _mm256_mul_ps(look_up(table, odd), high));
            }
        }
    }
}

static void block_int8(const char *const rows[LANES], size_t at, __m256 low, __m256 high, float *panel)
{
    for (size_t j = 0; j < 16; j += 4) {
        turned t = turn(rows, at + j * 4);
        __m256 scale = j < 8 ? low : high;
        for (size_t i = 0; i < 4; i++) {
            float *out = panel + (j + i) * 4 * WIDTH;
#pragma GCC unroll 4
            for (int b = 0; b < 4; b++) {
                __m256i code = _mm256_srai_epi32(_mm256_slli_epi32(t.word[i], 24 - 8 * b), 24);
                _mm256_store_ps(out + b * WIDTH, _mm256_mul_ps(_mm256_cvtepi32_ps(code), scale));
            }
        }
    }
}

static inline __m256 widen_f16(__m256i word)
{
    __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(word), _mm256_extracti128_si256(word, 1));
    return _mm256_cvtph_ps(half);
}

/* Dense codes, 16 bytes of 8 rows, of which `count` are wanted. */
static void piece_dense(ql_code code, turned t, size_t count, float *panel)
{
    size_t size = code == QL_CODE_F32 ? 4 : 2;
    for (size_t j = 0; j * 4 < count; j++) {
        __m256i word = t.word[j];
        float *out = panel + j * 4 / size * WIDTH;
        if (code == QL_CODE_F32) {
            _mm256_store_ps(out, _mm256_castsi256_ps(word));
            continue;
        }
        __m256i even = _mm256_and_si256(word, _mm256_set1_epi32(0xffff)), odd = _mm256_srli_epi32(word, 16);
        bool bf16 = code == QL_CODE_BF16;
        _mm256_store_ps(out, bf16 ? _mm256_castsi256_ps(_mm256_slli_epi32(even, 16)) : widen_f16(even));
        if (j * 4 + 2 < count)
            _mm256_store_ps(out + WIDTH, bf16 ? _mm256_castsi256_ps(_mm256_slli_epi32(odd, 16)) : widen_f16(odd));
    }
}

static void forward_dense(const ql_wview *w, const char *const rows[LANES], size_t from, size_t depth, float *panel)
{
    size_t size = w->format.code == QL_CODE_F32 ? 4 : 2, bytes = depth * size, whole = bytes / 16 * 16;
    for (size_t at = 0; at < whole; at += 16)
        piece_dense(w->format.code, turn(rows, from * size + at), 16, panel + at / size * WIDTH);
    if (whole == bytes)
        return;
    char tail[LANES][16] = {{0}}; /* reading past the end of a row could leave the matrix */
    const char *lines[LANES];
    for (int r = 0; r < LANES; r++) {
        memcpy(tail[r], rows[r] + from * size + whole, bytes - whole);
        lines[r] = tail[r];
    }
    piece_dense(w->format.code, turn(lines, 0), bytes - whole, panel + whole / size * WIDTH);
}

static void forward_coded(const ql_wview *w, const char *const rows[LANES], const size_t index[LANES], size_t from,
                          size_t depth, float *panel)
{
    float scales[QL_MOST_GROUPS * LANES];
    size_t group = w->format.group, first = from / group, last = (from + depth - 1) / group;
    turn_scales(w, index, first, last - first + 1, scales);
    table16 table = load_table(w->table);
    for (size_t at = 0; at < depth; at += QL_BLOCK) {
        size_t g0 = (from + at) / group, g1 = (from + at + 32) / group;
        __m256 low = _mm256_loadu_ps(scales + (g0 - first) * LANES);
        __m256 high = g1 <= last ? _mm256_loadu_ps(scales + (g1 - first) * LANES) : low;
        if (w->format.code == QL_CODE_INT8)
            block_int8(rows, from + at, low, high, panel + at * WIDTH);
        else
            block_4bit(rows, (from + at) / 2, table, low, high, panel + at * WIDTH);
    }
}

void ql_fill_forward_avx2(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel)
{
    for (size_t part = 0; part < WIDTH && part < cols; part += LANES) {
        const char *rows[LANES];
        size_t index[LANES];
        for (size_t r = 0; r < LANES; r++) { /* past the last row: the last again, never stored */
            index[r] = col + (part + r < cols ? part + r : cols - 1);
            rows[r] = (const char *)w->codes + index[r] * w->row_bytes;
        }
        if (ql_is_dense(w))
            forward_dense(w, rows, from, depth, panel + part);
        else
            forward_coded(w, rows, index, from, depth, panel + part);
    }
}

static inline __m256i widen_codes(const uint8_t *codes)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)codes));
}

/* 32 values in a row, times their scale, into two panels. */
static inline void store_half(const __m256 values[4], __m256 scale, float *panel, size_t apart)
{
    for (int i = 0; i < 4; i++)
        _mm256_store_ps(panel + i / 2 * apart + i % 2 * LANES, _mm256_mul_ps(values[i], scale));
}

/* A block of a row. The lookup spreads every 4 bytes over a half of a vector, so words that follow one another go to
 * different halves first. */
static void row_4bit(const char *block, planes table, const float scales[2], float *panel, size_t apart)
{
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7), nibble = _mm256_set1_epi8(15);
    __m256i codes = _mm256_loadu_si256((const __m256i *)(const void *)block);
    codes = _mm256_permutevar8x32_epi32(codes, order);
    __m256 values[4];
    look_up_32(table, _mm256_and_si256(codes, nibble), values);
    store_half(values, _mm256_broadcast_ss(scales), panel, apart);
    look_up_32(table, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble), values);
    store_half(values, _mm256_broadcast_ss(scales + 1), panel + 2 * apart, apart);
}

static void row_int8(const char *block, const float scales[2], float *panel, size_t apart)
{
    for (int half = 0; half < 2; half++) {
        __m256 values[4];
        for (int i = 0; i < 4; i++)
            values[i] = load_row(QL_CODE_INT8, block + 32 * half + 8 * i);
        store_half(values, _mm256_broadcast_ss(scales + half), panel + 2 * half * apart, apart);
    }
}

static void row_dense(const ql_wview *w, size_t row, size_t col, size_t cols, float *out)
{
    const char *line = (const char *)w->codes + row * w->row_bytes + col * (w->format.code == QL_CODE_F32 ? 4 : 2);
    if (cols < WIDTH || w->format.code == QL_CODE_F32) {
        ql_decode_row(w, row, col, cols < WIDTH ? cols : WIDTH, out);
        return;
    }
    for (int i = 0; i < 2; i++) {
        __m128i half = _mm_loadu_si128((const __m128i *)(const void *)(line + 16 * i));
        __m256 value = w->format.code == QL_CODE_F16
                           ? _mm256_cvtph_ps(half)
                           : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
        _mm256_store_ps(out + 8 * i, value);
    }
}

/* The scales that rows [row, row + count) of W, at most 8, have in group g of theirs. */
static void scales_down(const ql_wview *w, size_t row, size_t count, size_t g, float out[LANES])
{
    ql_dq_lanes dq;
    if (ql_dq_collect_down(w, row, count, g, LANES, &dq)) {
        __m256 step = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)dq.steps));
        __m256 offset = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)dq.offsets));
        _mm256_storeu_ps(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(widen_codes(dq.codes[0])), step, offset));
        return;
    }
    for (size_t r = 0; r < count; r++)
        ql_decode_scales(w, (row + r) * ql_row_groups(w) + g, 1, out + r);
}

/* Rows [from, from + count) of W, at most 8 of them, coded; the block of columns that begins with col, of which `cols`
 * exist, in four panels that are `apart`. */
static void backward_coded(const ql_wview *w, size_t col, size_t cols, size_t from, size_t count, float *panel,
                           size_t apart)
{
    const char *block = (const char *)w->codes + from * w->row_bytes + (w->format.code == QL_CODE_INT8 ? col : col / 2);
    size_t first = col / w->format.group, second = (col + (cols > 32 ? 32 : 0)) / w->format.group;
    planes table = w->table ? load_planes(w->table) : (planes){0};
    float scales[2][LANES];
    scales_down(w, from, count, first, scales[0]);
    if (second == first)
        memcpy(scales[1], scales[0], sizeof scales[0]);
    else
        scales_down(w, from, count, second, scales[1]);
    for (size_t r = 0; r < count; r++, block += w->row_bytes, panel += WIDTH) {
        float both[2] = {scales[0][r], scales[1][r]};
        if (w->format.code == QL_CODE_INT8)
            row_int8(block, both, panel, apart);
        else
            row_4bit(block, table, both, panel, apart);
    }
}

void ql_fill_backward_avx2(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel,
                           size_t apart)
{
    for (size_t i = 0; i < depth && !ql_is_dense(w); i += LANES)
        backward_coded(w, col, cols, from + i, depth - i < LANES ? depth - i : LANES, panel + i * WIDTH, apart);
    for (size_t part = 0; part < cols && ql_is_dense(w); part += WIDTH, panel += apart)
        for (size_t r = 0; r < depth; r++)
            row_dense(w, from + r, col + part, cols - part, panel + r * WIDTH);
}
