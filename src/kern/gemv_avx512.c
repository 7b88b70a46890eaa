#include "kern/gemv_avx512.h"

#include <immintrin.h>

#include "kern/decode.h"

/* ROWS rows of W go together, each a stream of 64-byte units; SPAN columns share a buffer of scales. */
enum { ROWS = 4, AT_ONCE = 4, SPAN = 4096, LANES = 16 };

static size_t padded(const ql_wview *w)
{
    return (w->k + 127) / 128 * 128;
}

static bool is_4bit(const ql_wview *w)
{
    return w->table != NULL;
}

size_t ql_gemv_packed(const ql_product *p)
{
    size_t tokens = p->m < QL_GEMV_TOKENS ? p->m : QL_GEMV_TOKENS;
    return p->transposed ? 0 : tokens * padded(p->w) * sizeof(float);
}

bool ql_gemv_fits(const ql_product *p)
{
    return !p->transposed && p->m <= QL_GEMV_TOKENS && (ql_is_dense(p->w) || (ql_row_groups(p->w) && SPAN % p->w->format.group == 0));
}

ql_plan ql_gemv_plan(const ql_product *p, size_t threads)
{
    size_t share = p->w->n / (4 * threads) / ROWS * ROWS;
    return (ql_plan){.rows = p->m, .cols = share < 16 ? 16 : share > 256 ? 256 : share, .packs = p->m,
                     .packed = ql_gemv_packed(p)};
}

/* Puts x in the order in which the codes come out of a unit, and zeros where W is padded. A 4-bit unit
 * holds 128 columns in 16 words; nibble s of word l is column 64 (l / 8) + 4 (l % 8) + s / 2 + 32 (s % 2). */
void ql_gemv_pack(const ql_product *p, size_t token, float *packed)
{
    size_t k = p->w->k, end = padded(p->w);
    const float *x = p->x + token * p->ldx;
    float *out = packed + token * end;
    if (!is_4bit(p->w)) {
        memcpy(out, x, k * sizeof *x);
        memset(out + k, 0, (end - k) * sizeof *x);
        return;
    }
    for (size_t at = 0; at < end; at += 128)
        for (size_t s = 0; s < 8; s++)
            for (size_t l = 0; l < LANES; l++) {
                size_t col = at + l / 8 * 64 + l % 8 * 4 + s / 2 + s % 2 * 32;
                out[at + s * LANES + l] = col < k ? x[col] : 0;
            }
}

/* The scales of a span of columns, the same for every row: `count` groups from group `first` of a row,
 * each for `repeat` slots of 64 columns (32 when the groups are that small); `slots` slots in all. */
typedef struct scale_span {
    size_t groups, first, count, repeat, slots;
} scale_span;

static scale_span span_scales(const ql_wview *w, size_t from, size_t cols)
{
    size_t group = w->format.group, slot = group < 64 ? group : 64;
    return (scale_span){.groups = ql_row_groups(w), .first = from / group, .count = (cols + group - 1) / group,
                        .repeat = group / slot, .slots = (cols + 127) / 128 * 128 / slot};
}

/* out[i] = the scales of groups [g, g + count) of the row-major array. */
static void decode_scales(const ql_wview *w, size_t g, size_t count, float *out)
{
    if (w->format.scale != QL_SCALE_DQ && w->format.scale != QL_SCALE_F16) {
        ql_decode_scales(w, g, count, out);
        return;
    }
    for (size_t i = 0, run; i < count; i += run) {
        size_t block = (g + i) / QL_DQ_GROUPS, left = QL_DQ_GROUPS - (g + i) % QL_DQ_GROUPS;
        run = left < LANES ? left : LANES;
        run = run < count - i ? run : count - i;
        __mmask16 lanes = (__mmask16)((1u << run) - 1);
        __m512 value;
        if (w->format.scale == QL_SCALE_F16) {
            value = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, (const uint16_t *)w->scales + g + i));
        } else {
            __m128i code = _mm_maskz_loadu_epi8(lanes, (const uint8_t *)w->scales + g + i);
            value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(code)),
                                    _mm512_cvtph_ps(_mm256_set1_epi16((short)w->steps[block])),
                                    _mm512_cvtph_ps(_mm256_set1_epi16((short)w->offsets[block])));
        }
        _mm512_mask_storeu_ps(out + i, lanes, value);
    }
}

static inline void row_scales(const ql_wview *w, scale_span s, size_t row, float *out)
{
    float each[SPAN / 64], *scales = s.repeat == 1 ? out : each;
    decode_scales(w, row * s.groups + s.first, s.count, scales);
    size_t slot = s.count;
    if (s.repeat > 1) {
        slot = 0;
        for (size_t g = 0; g < s.count; g++)
            for (size_t i = 0; i < s.repeat && slot < s.slots; i++)
                out[slot++] = each[g];
    }
    for (; slot < s.slots; slot++)
        out[slot] = 0;
}

/* Sums of one span of ROWS rows, for `tokens` tokens whose packed x is ldx apart. */
typedef struct sums {
    __m512 v[ROWS][AT_ONCE];
} sums;

/* The scales of the two 64-blocks of a unit, each over its eight lanes. */
static inline __m512 pair(const float *scales)
{
    const __m512i index = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_permutexvar_ps(index, _mm512_castpd_ps(_mm512_set1_pd(*(const double *)(const void *)scales)));
}

/* The scales of a unit's low and high nibbles, each over its eight lanes, for groups of 32. */
static inline void quad(const float *scales, __m512 *low, __m512 *high)
{
    const __m512i even = _mm512_set_epi32(2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0);
    __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(scales));
    *low = _mm512_permutexvar_ps(even, four);
    *high = _mm512_permutexvar_ps(_mm512_add_epi32(even, _mm512_set1_epi32(1)), four);
}

/* One unit of each row. The rows advance together: a sum by itself is a chain of dependent steps. */
static inline __attribute__((always_inline)) void unit_4bit(sums *s, size_t rows, size_t tokens, __m512 table,
                                                            const char *const units[ROWS], __mmask16 lanes,
                                                            const float *x, size_t ldx, float (*scales)[SPAN / 32],
                                                            size_t at, bool halves)
{
    __m512i code[ROWS];
    __m512 part[2][ROWS][AT_ONCE];
#pragma GCC unroll 4
    for (size_t r = 0; r < rows; r++)
        code[r] = _mm512_maskz_loadu_epi32(lanes, units[r]);
#pragma GCC unroll 8
    for (unsigned n = 0; n < 8; n++)
#pragma GCC unroll 4
        for (size_t r = 0; r < rows; r++) {
            __m512 value = _mm512_permutexvar_ps(_mm512_srli_epi32(code[r], 4 * n), table);
#pragma GCC unroll 4
            for (size_t t = 0; t < tokens; t++) {
                __m512 xs = _mm512_load_ps(x + t * ldx + n * LANES);
                part[n % 2][r][t] = n < 2 ? _mm512_mul_ps(value, xs) : _mm512_fmadd_ps(value, xs, part[n % 2][r][t]);
            }
        }
#pragma GCC unroll 4
    for (size_t r = 0; r < rows; r++) {
        __m512 low, high;
        if (halves)
            quad(scales[r] + at / 32, &low, &high);
        else
            low = high = pair(scales[r] + at / 64);
#pragma GCC unroll 4
        for (size_t t = 0; t < tokens; t++) {
            s->v[r][t] = _mm512_fmadd_ps(part[0][r][t], low, s->v[r][t]);
            s->v[r][t] = _mm512_fmadd_ps(part[1][r][t], high, s->v[r][t]);
        }
    }
}

static inline __attribute__((always_inline)) void units_4bit(sums *s, const ql_wview *w, size_t row, size_t rows,
                                                             size_t tokens, size_t from, size_t cols, const float *x,
                                                             size_t ldx, bool halves)
{
    float scales[ROWS][SPAN / 32];
    const char *units[ROWS];
    __m512 table = _mm512_loadu_ps(w->table);
    scale_span slots = span_scales(w, from, cols);
    for (size_t r = 0; r < rows; r++) {
        row_scales(w, slots, row + r, scales[r]);
        units[r] = (const char *)w->codes + (row + r) * w->row_bytes + from / 2;
    }
    /* Rows follow each other in memory: a lone row is one stream, several need their successors fetched. */
    size_t ahead = rows == 1 ? 2048 : rows * w->row_bytes;
    for (size_t at = 0; at < cols; at += 128) {
        __mmask16 lanes = cols - at > 64 ? 0xffff : 0x00ff;
        unit_4bit(s, rows, tokens, table, units, lanes, x + from + at, ldx, scales, at, halves);
#pragma GCC unroll 4
        for (size_t r = 0; r < rows; r++) {
            _mm_prefetch(units[r] + ahead, _MM_HINT_T0);
            units[r] += 64;
        }
    }
}

/* The wanted lanes of 16 columns of an INT8 or dense row from `col` on; no others are read. */
static inline __m512 load_row(ql_code code, const char *line, size_t col, __mmask16 lanes)
{
    switch (code) {
    case QL_CODE_F32:
        return _mm512_maskz_loadu_ps(lanes, line + col * 4);
    case QL_CODE_F16:
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, line + col * 2));
    case QL_CODE_BF16:
        return _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, line + col * 2)), 16));
    default:
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes, line + col)));
    }
}

/* 64 columns of each row, of which `wanted` exist; the rows' scales of the two halves are used for INT8. */
static inline __attribute__((always_inline)) void unit_other(sums *s, size_t rows, size_t tokens, ql_code code,
                                                             const char *const line[ROWS], size_t col, uint64_t wanted,
                                                             const float *x, size_t ldx, const float low[ROWS],
                                                             const float high[ROWS])
{
#pragma GCC unroll 4
    for (size_t r = 0; r < rows; r++) {
        __m512 part[AT_ONCE];
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            __m512 value = load_row(code, line[r], col + i * LANES, (__mmask16)(wanted >> i * LANES));
#pragma GCC unroll 4
            for (size_t t = 0; t < tokens; t++) {
                __m512 xs = _mm512_load_ps(x + t * ldx + i * LANES);
                if (code != QL_CODE_INT8)
                    s->v[r][t] = _mm512_fmadd_ps(value, xs, s->v[r][t]);
                else
                    part[t] = i % 2 == 0 ? _mm512_mul_ps(value, xs) : _mm512_fmadd_ps(value, xs, part[t]);
                if (code == QL_CODE_INT8 && i % 2)
                    s->v[r][t] = _mm512_fmadd_ps(part[t], _mm512_set1_ps(i < 2 ? low[r] : high[r]), s->v[r][t]);
            }
        }
    }
}

static inline __attribute__((always_inline)) void units_other(sums *s, const ql_wview *w, size_t row, size_t rows,
                                                              size_t tokens, size_t from, size_t cols, const float *x,
                                                              size_t ldx, ql_code code)
{
    float scales[ROWS][SPAN / 32], low[ROWS], high[ROWS];
    const char *line[ROWS];
    unsigned shift = w->format.group == 32 ? 5 : 6, size = code == QL_CODE_INT8 ? 1 : code == QL_CODE_F32 ? 4 : 2;
    scale_span slots = {0};
    if (code == QL_CODE_INT8)
        slots = span_scales(w, from, cols);
    for (size_t r = 0; r < rows; r++) {
        line[r] = (const char *)w->codes + (row + r) * w->row_bytes;
        if (code == QL_CODE_INT8)
            row_scales(w, slots, row + r, scales[r]);
    }
    for (size_t at = 0; at < cols; at += 64) {
#pragma GCC unroll 4
        for (size_t r = 0; r < rows; r++) {
            if (code == QL_CODE_INT8)
                low[r] = scales[r][at >> shift], high[r] = scales[r][(at + 32) >> shift];
            for (size_t line64 = 0; line64 < size; line64++)
                _mm_prefetch(line[r] + rows * w->row_bytes + (from + at) * size + line64 * 64, _MM_HINT_T0);
        }
        if (cols - at >= 64)
            unit_other(s, rows, tokens, code, line, from + at, ~0ull, x + from + at, ldx, low, high);
        else
            unit_other(s, rows, tokens, code, line, from + at, (1ull << (cols - at)) - 1, x + from + at, ldx, low, high);
    }
}

static inline __attribute__((always_inline)) void span(sums *s, const ql_wview *w, size_t row, size_t rows,
                                                       size_t tokens, size_t from, size_t cols, const float *x,
                                                       size_t ldx)
{
    switch (w->format.code) {
    case QL_CODE_F32:
        units_other(s, w, row, rows, tokens, from, cols, x, ldx, QL_CODE_F32);
        break;
    case QL_CODE_F16:
        units_other(s, w, row, rows, tokens, from, cols, x, ldx, QL_CODE_F16);
        break;
    case QL_CODE_BF16:
        units_other(s, w, row, rows, tokens, from, cols, x, ldx, QL_CODE_BF16);
        break;
    case QL_CODE_INT8:
        units_other(s, w, row, rows, tokens, from, cols, x, ldx, QL_CODE_INT8);
        break;
    default:
        if (w->format.group == 32)
            units_4bit(s, w, row, rows, tokens, from, cols, x, ldx, true);
        else
            units_4bit(s, w, row, rows, tokens, from, cols, x, ldx, false);
    }
}

static inline __attribute__((always_inline)) void some_rows(const ql_product *p, size_t row, size_t rows, size_t token,
                                                            size_t tokens, const float *packed)
{
    const ql_wview *w = p->w;
    size_t ldx = padded(w);
    sums s;
#pragma GCC unroll 4
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (size_t t = 0; t < tokens; t++)
            s.v[r][t] = _mm512_setzero_ps();
    for (size_t from = 0; from < w->k; from += SPAN)
        span(&s, w, row, rows, tokens, from, w->k - from < SPAN ? w->k - from : SPAN, packed + token * ldx, ldx);
#pragma GCC unroll 4
    for (size_t r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (size_t t = 0; t < tokens; t++) {
            float *y = p->y + (token + t) * p->ldy + row + r, sum = _mm512_reduce_add_ps(s.v[r][t]);
            *y = p->add ? *y + sum : sum;
        }
}

/* Groups of rows that fill the registers, then single ones. */
static inline __attribute__((always_inline)) void all_rows(const ql_product *p, ql_tile t, size_t token, size_t tokens,
                                                           const float *packed)
{
    size_t row = t.col, end = t.col + t.cols, rows = tokens < AT_ONCE ? ROWS : 1;
    for (; row + rows <= end; row += rows)
        some_rows(p, row, rows, token, tokens, packed);
    for (; row < end; row++)
        some_rows(p, row, 1, token, tokens, packed);
}

void ql_gemv_tile(const ql_product *p, ql_tile t, const float *packed)
{
    for (size_t token = 0; token < p->m; token += AT_ONCE) {
        switch (p->m - token) {
        case 1:
            all_rows(p, t, token, 1, packed);
            break;
        case 2:
            all_rows(p, t, token, 2, packed);
            break;
        case 3:
            all_rows(p, t, token, 3, packed);
            break;
        default:
            all_rows(p, t, token, 4, packed);
        }
    }
}
