#include "kern/fill_avx512.h"

#include <immintrin.h>

#include "kern/decode.h"
#include "kern/turn_avx512.h"

enum { WIDTH = 32, LANES = 16 };

/* 16 bytes from `at` of each of 16 rows, as four vectors of the rows' 32-bit words. */
typedef struct turned {
    __m512i word[4];
} turned;

static inline __m128i load_piece(const char *row)
{
    return _mm_loadu_si128((const __m128i *)row);
}

/* rows[i] + at: where row i's 16 bytes start. */
static inline turned turn(const char *const rows[LANES], size_t at)
{
    __m512i r[4];
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_castsi128_si512(load_piece(rows[i] + at));
        r[i] = _mm512_inserti32x4(r[i], load_piece(rows[4 + i] + at), 1);
        r[i] = _mm512_inserti32x4(r[i], load_piece(rows[8 + i] + at), 2);
        r[i] = _mm512_inserti32x4(r[i], load_piece(rows[12 + i] + at), 3);
    }
    __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
    __m512i c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
    return (turned){{_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
                     _mm512_unpackhi_epi64(b, d)}};
}

void ql_scales_avx512(const ql_wview *w, const size_t rows[LANES], size_t first, size_t count, float *out)
{
    size_t groups = ql_row_groups(w), starts[LANES];
    for (size_t r = 0; r < LANES; r++)
        starts[r] = rows[r] * groups + first;
    ql_dq_lanes dq;
    if (ql_dq_collect(w, starts, LANES, count, &dq)) {
        __m512 step = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)dq.steps));
        __m512 offset = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)dq.offsets));
        for (size_t g = 0; g < count; g++) {
            __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)dq.codes[g]));
            _mm512_storeu_ps(out + g * LANES, _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), step, offset));
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

/* One 64-block of 16 rows of a 4-bit code: columns 0..31 in the low nibbles, 32..63 in the high ones.
 * vpermps looks at the low four bits of a word only, so a shift is all the unpacking there is. */
static void block_4bit(const char *const rows[LANES], size_t at, __m512 table, __m512 low, __m512 high, float *panel)
{
    for (size_t half = 0; half < 2; half++) {
        turned t = turn(rows, at + half * 16);
        for (size_t j = 0; j < 4; j++) {
            float *out = panel + (half * 16 + j * 4) * WIDTH;
#pragma GCC unroll 4
            for (unsigned b = 0; b < 4; b++) {
                __m512i even = _mm512_srli_epi32(t.word[j], 8 * b), odd = _mm512_srli_epi32(t.word[j], 8 * b + 4);
                _mm512_store_ps(out + b * WIDTH, _mm512_mul_ps(_mm512_permutexvar_ps(even, table), low));
                _mm512_store_ps(out + (b + 32) * WIDTH, _mm512_mul_ps(_mm512_permutexvar_ps(odd, table), high));
            }
        }
    }
}

/* A byte becomes its word's highest, over zeros: 2^24 times its value, and the scale is that much smaller. Each row's line
 * is read once: rows a multiple of 4 KB apart have places for twelve in the first-level cache. */
static void block_int8(const char *const rows[LANES], size_t at, __m512 low, __m512 high, float *panel)
{
    const __m512 fraction = _mm512_set1_ps(0x1p-24f);
    const __m128i words = _mm_set_epi8(12, -1, -1, -1, 8, -1, -1, -1, 4, -1, -1, -1, 0, -1, -1, -1);
    const __m512i first = _mm512_broadcast_i32x4(words);
    __m512i line[LANES];
    for (size_t r = 0; r < LANES; r++)
        line[r] = _mm512_loadu_si512(rows[r] + at);
    turn16(line);
    for (size_t i = 0; i < LANES; i++, panel += 4 * WIDTH) {
        __m512 scale = _mm512_mul_ps(i < 8 ? low : high, fraction);
#pragma GCC unroll 4
        for (unsigned b = 0; b < 4; b++) {
            __m512i byte = _mm512_add_epi8(first, _mm512_set1_epi32((int)(b << 24)));
            __m512i code = _mm512_shuffle_epi8(line[i], byte);
            _mm512_store_ps(panel + b * WIDTH, _mm512_mul_ps(_mm512_cvtepi32_ps(code), scale));
        }
    }
}

/* 16 words of 16 rows from byte `at` on, of which `count` bytes are there, turned: a term or, in 16 bits, two. */
static void piece_dense(ql_code code, const char *const rows[LANES], size_t at, size_t count, float *panel)
{
    __m512i line[LANES];
    for (size_t r = 0; r < LANES; r++)
        line[r] = _mm512_maskz_loadu_epi8(count >= 64 ? ~0ull : (1ull << count) - 1, rows[r] + at);
    turn16(line);
    for (size_t i = 0; i < LANES && 4 * i < count; i++) {
        if (code == QL_CODE_F32) {
            _mm512_store_ps(panel + i * WIDTH, _mm512_castsi512_ps(line[i]));
            continue;
        }
        float *out = panel + 2 * i * WIDTH;
        __m512i odd = _mm512_srli_epi32(line[i], 16);
        bool bf16 = code == QL_CODE_BF16;
        _mm512_store_ps(out, bf16 ? _mm512_castsi512_ps(_mm512_slli_epi32(line[i], 16))
                                  : _mm512_cvtph_ps(_mm512_cvtepi32_epi16(line[i])));
        if (4 * i + 2 < count)
            _mm512_store_ps(out + WIDTH, bf16 ? _mm512_castsi512_ps(_mm512_slli_epi32(odd, 16))
                                              : _mm512_cvtph_ps(_mm512_cvtepi32_epi16(odd)));
    }
}

static void forward_dense(const ql_wview *w, const char *const rows[LANES], size_t from, size_t depth, float *panel)
{
    size_t size = w->format.code == QL_CODE_F32 ? 4 : 2;
    for (size_t at = 0; at < depth * size; at += 64)
        piece_dense(w->format.code, rows, from * size + at, depth * size - at, panel + at / size * WIDTH);
}

/* ggml's blocks go through fp32 rows. */
static void forward_ggml(const ql_wview *w, const char *const rows[LANES], size_t from, size_t depth, float *panel)
{
    _Alignas(64) float values[LANES][QL_BLOCK];
    const char *decoded[LANES];
    for (size_t at = 0; at < depth; at += QL_BLOCK) {
        size_t count = depth - at < QL_BLOCK ? depth - at : QL_BLOCK;
        for (size_t r = 0; r < LANES; r++) {
            ql_ggml_values(w->format.code, rows[r], from + at, count, values[r]);
            decoded[r] = (const char *)values[r];
        }
        for (size_t i = 0; i < count; i += LANES)
            piece_dense(QL_CODE_F32, decoded, 4 * i, 4 * (count - i), panel + (at + i) * WIDTH);
    }
}

static void forward_coded(const ql_wview *w, const char *const rows[LANES], const size_t index[LANES], size_t from,
                          size_t depth, float *panel)
{
    float scales[QL_MOST_GROUPS * LANES];
    size_t group = w->format.group, first = from / group, last = (from + depth - 1) / group;
    ql_scales_avx512(w, index, first, last - first + 1, scales);
    __m512 table = w->table ? _mm512_loadu_ps(w->table) : _mm512_setzero_ps();
    for (size_t at = 0; at < depth; at += QL_BLOCK) {
        size_t g0 = (from + at) / group, g1 = (from + at + 32) / group;
        __m512 low = _mm512_loadu_ps(scales + (g0 - first) * LANES);
        __m512 high = g1 <= last ? _mm512_loadu_ps(scales + (g1 - first) * LANES) : low;
        if (w->format.code == QL_CODE_INT8)
            block_int8(rows, from + at, low, high, panel + at * WIDTH);
        else
            block_4bit(rows, (from + at) / 2, table, low, high, panel + at * WIDTH);
    }
}

void ql_fill_forward_avx512(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel)
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
        else if (ql_code_is_ggml(w->format.code))
            forward_ggml(w, rows, from, depth, panel + part);
        else
            forward_coded(w, rows, index, from, depth, panel + part);
    }
}

static inline __m512i widen_codes(const uint8_t *codes)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes));
}

/* Columns 0..31 of a block lie in the low nibbles, 32..63 in the high ones. */
static void row_4bit(const uint8_t *codes, unsigned shift, __m512 table, float *out)
{
    for (int i = 0; i < 2; i++)
        _mm512_store_ps(out + 16 * i,
                        _mm512_permutexvar_ps(_mm512_srli_epi32(widen_codes(codes + 16 * i), shift), table));
}

static void block_row_4bit(const uint8_t *codes, __m512 table, float *low, float *high)
{
    for (int i = 0; i < 2; i++) {
        __m512i code = widen_codes(codes + 16 * i);
        _mm512_store_ps(low + 16 * i, _mm512_permutexvar_ps(code, table));
        _mm512_store_ps(high + 16 * i, _mm512_permutexvar_ps(_mm512_srli_epi32(code, 4), table));
    }
}

static void row_int8(const int8_t *codes, __m512 scale, float *out)
{
    for (int i = 0; i < 2; i++) {
        __m512i code = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(codes + 16 * i)));
        _mm512_store_ps(out + 16 * i, _mm512_mul_ps(_mm512_cvtepi32_ps(code), scale));
    }
}

static void row_dense(ql_code code, const char *line, size_t cols, float *out)
{
    uint32_t bits = cols < WIDTH ? (1u << cols) - 1 : ~0u;
    for (int i = 0; i < 2; i++, bits >>= 16) {
        __mmask16 mask = (__mmask16)bits;
        __m512 value;
        if (code == QL_CODE_F32) {
            value = _mm512_maskz_loadu_ps(mask, line + 64 * i);
        } else {
            __m256i half = _mm256_maskz_loadu_epi16(mask, line + 32 * i);
            value = code == QL_CODE_F16 ? _mm512_cvtph_ps(half)
                                        : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
        }
        _mm512_store_ps(out + 16 * i, value);
    }
}

/* The scales that rows [row, row + count) of W, at most 16, have in group g of theirs. */
static void scales_down(const ql_wview *w, size_t row, size_t count, size_t g, float out[LANES])
{
    ql_dq_lanes dq;
    if (ql_dq_collect_down(w, row, count, g, LANES, &dq)) {
        __m512 step = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)dq.steps));
        __m512 offset = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)dq.offsets));
        _mm512_storeu_ps(out, _mm512_fmadd_ps(_mm512_cvtepi32_ps(widen_codes(dq.codes[0])), step, offset));
        return;
    }
    for (size_t r = 0; r < count; r++)
        ql_decode_scales(w, (row + r) * ql_row_groups(w) + g, 1, out + r);
}

/* Rows [from, from + count) of W, at most 16 of them, coded; columns of one block, the second 32 of them `apart`. */
static void backward_coded(const ql_wview *w, size_t col, size_t cols, size_t from, size_t count, float *panel,
                           size_t apart)
{
    const char *line = (const char *)w->codes + from * w->row_bytes;
    size_t group = w->format.group, first = col % QL_BLOCK / WIDTH;
    __m512 table = w->table ? _mm512_loadu_ps(w->table) : _mm512_setzero_ps();
    float scales[2][LANES];
    scales_down(w, from, count, col / group, scales[0]);
    if (cols > WIDTH && group < QL_BLOCK)
        scales_down(w, from, count, (col + WIDTH) / group, scales[1]);
    const float *second = group < QL_BLOCK ? scales[1] : scales[0];
    for (size_t r = 0; r < count; r++, line += w->row_bytes, panel += WIDTH) {
        __m512 scale = _mm512_set1_ps(scales[0][r]);
        const uint8_t *codes = (const uint8_t *)line + col / QL_BLOCK * 32;
        if (w->format.code == QL_CODE_INT8) {
            row_int8((const int8_t *)line + col, scale, panel);
            if (cols > WIDTH)
                row_int8((const int8_t *)line + col + WIDTH, _mm512_set1_ps(second[r]), panel + apart);
        } else if (cols <= WIDTH) {
            row_4bit(codes, first ? 4 : 0, _mm512_mul_ps(table, scale), panel);
        } else if (group < QL_BLOCK) {
            row_4bit(codes, 0, _mm512_mul_ps(table, scale), panel);
            row_4bit(codes, 4, _mm512_mul_ps(table, _mm512_set1_ps(second[r])), panel + apart);
        } else {
            block_row_4bit(codes, _mm512_mul_ps(table, scale), panel, panel + apart);
        }
    }
}

/* One panel of weights that are not coded. */
static void backward_plain(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel)
{
    const char *line = (const char *)w->codes + from * w->row_bytes;
    for (size_t r = 0; r < depth; r++, line += w->row_bytes, panel += WIDTH) {
        if (ql_code_is_ggml(w->format.code))
            ql_ggml_values(w->format.code, line, col, cols, panel);
        else
            row_dense(w->format.code, line + col * (w->format.code == QL_CODE_F32 ? 4 : 2), cols, panel);
    }
}

void ql_fill_backward_avx512(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel,
                             size_t apart)
{
    if (ql_is_dense(w) || ql_code_is_ggml(w->format.code)) {
        for (size_t part = 0; part < cols; part += WIDTH, panel += apart)
            backward_plain(w, col + part, cols - part < WIDTH ? cols - part : WIDTH, from, depth, panel);
        return;
    }
    for (size_t i = 0; i < depth; i += LANES)
        backward_coded(w, col, cols, from + i, depth - i < LANES ? depth - i : LANES, panel + i * WIDTH, apart);
}
