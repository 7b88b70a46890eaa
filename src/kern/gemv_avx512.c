#include "kern/gemv_avx512.h"

#include <immintrin.h>

#include "kern/decode.h"

/* A row of W is one stream of 128-column units; SPAN columns share a buffer of scales. */
enum { UNIT = 128, AT_ONCE = 4, SPAN = 4096, LANES = 16, AHEAD = 2048 };

static size_t padded(const ql_wview *w)
{
    return (w->k + UNIT - 1) / UNIT * UNIT;
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
    size_t share = p->w->n / (4 * threads);
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

/* out[i] = the scales of groups [g, g + count) of the row-major array; up to LANES more are written. */
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
        _mm512_storeu_ps(out + i, value);
    }
}

/* A scale for every 32 columns of [from, from + cols) of a row, and finite numbers up to the end of a unit.
 * By vectors: what is stored by the word cannot be loaded by the vector at once. */
static void row_scales(const ql_wview *w, size_t row, size_t from, size_t cols, float out[SPAN / 32])
{
    size_t group = w->format.group, count = (cols + group - 1) / group;
    unsigned shift = (unsigned)__builtin_ctzll(group / 32);
    float each[SPAN / 32 + LANES];
    decode_scales(w, row * ql_row_groups(w) + from / group, count, each);
    _mm512_storeu_ps(each + count, _mm512_setzero_ps());
    __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i index = _mm512_srl_epi32(lane, _mm_cvtsi32_si128((int)shift));
    for (size_t slot = 0; slot * 32 < cols; slot += LANES)
        _mm512_storeu_ps(out + slot, _mm512_permutexvar_ps(index, _mm512_loadu_ps(each + (slot >> shift))));
}

/* The scales of a unit's low and high nibbles: each 64-block has eight lanes and two scales. */
static inline void unit_scales(const float *scales, __m512 *low, __m512 *high)
{
    const __m512i even = _mm512_set_epi32(2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0);
    __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(scales));
    *low = _mm512_permutexvar_ps(even, four);
    *high = _mm512_permutexvar_ps(_mm512_add_epi32(even, _mm512_set1_epi32(1)), four);
}

static inline __attribute__((always_inline)) void unit_4bit(__m512 sums[AT_ONCE], size_t tokens, __m512 table,
                                                            __m512i code, const float *x, size_t ldx,
                                                            const float scales[4])
{
    __m512 part[2][AT_ONCE], low, high;
#pragma GCC unroll 8
    for (unsigned n = 0; n < 8; n++) {
        __m512 value = _mm512_permutexvar_ps(_mm512_srli_epi32(code, 4 * n), table);
#pragma GCC unroll 4
        for (size_t t = 0; t < tokens; t++) {
            __m512 xs = _mm512_load_ps(x + t * ldx + n * LANES);
            part[n % 2][t] = n < 2 ? _mm512_mul_ps(value, xs) : _mm512_fmadd_ps(value, xs, part[n % 2][t]);
        }
    }
    unit_scales(scales, &low, &high);
#pragma GCC unroll 4
    for (size_t t = 0; t < tokens; t++) {
        sums[t] = _mm512_fmadd_ps(part[0][t], low, sums[t]);
        sums[t] = _mm512_fmadd_ps(part[1][t], high, sums[t]);
    }
}

/* The wanted lanes of 16 columns of an INT8 or dense row; no others are read. */
static inline __m512 load_row(ql_code code, const char *at, __mmask16 lanes)
{
    switch (code) {
    case QL_CODE_F32:
        return _mm512_maskz_loadu_ps(lanes, at);
    case QL_CODE_F16:
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, at));
    case QL_CODE_BF16:
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, at)), 16));
    default:
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes, at)));
    }
}

/* A unit of an INT8 or dense row, of which `cols` columns exist; INT8 alone has scales. */
static inline __attribute__((always_inline)) void unit_other(__m512 sums[AT_ONCE], size_t tokens, ql_code code,
                                                             const char *codes, size_t cols, const float *x,
                                                             size_t ldx, const float scales[4])
{
    size_t size = code == QL_CODE_INT8 ? 1 : code == QL_CODE_F32 ? 4 : 2;
    for (size_t at = 0; at < cols; at += 2 * LANES) {
        uint32_t wanted = cols - at < 32 ? (1u << (cols - at)) - 1 : ~0u;
        __m512 first = load_row(code, codes + at * size, (__mmask16)wanted);
        __m512 second = load_row(code, codes + (at + LANES) * size, (__mmask16)(wanted >> 16));
#pragma GCC unroll 4
        for (size_t t = 0; t < tokens; t++) {
            __m512 x0 = _mm512_load_ps(x + t * ldx + at), x1 = _mm512_load_ps(x + t * ldx + at + LANES);
            if (code == QL_CODE_INT8) {
                __m512 part = _mm512_fmadd_ps(second, x1, _mm512_mul_ps(first, x0));
                sums[t] = _mm512_fmadd_ps(part, _mm512_set1_ps(scales[at / 32]), sums[t]);
            } else {
                sums[t] = _mm512_fmadd_ps(second, x1, _mm512_fmadd_ps(first, x0, sums[t]));
            }
        }
    }
}

/* One row against some tokens; the code, its bits and the tokens are constants where it is inlined. */
static inline __attribute__((always_inline)) void one_row(const ql_product *p, size_t row, size_t token, size_t tokens,
                                                          ql_code code, size_t bits, const float *packed)
{
    const ql_wview *w = p->w;
    const char *line = (const char *)w->codes + row * w->row_bytes;
    size_t ldx = padded(w);
    const float *x = packed + token * ldx;
    float scales[SPAN / 32];
    __m512 table = bits == 4 ? _mm512_loadu_ps(w->table) : _mm512_setzero_ps(), sums[AT_ONCE] = {0};
    for (size_t at = 0; at < w->k; at += UNIT) {
        size_t cols = w->k - at < UNIT ? w->k - at : UNIT;
        if (bits <= 8 && at % SPAN == 0)
            row_scales(w, row, at, w->k - at < SPAN ? w->k - at : SPAN, scales);
        const char *codes = line + at * bits / 8;
        const float *four = scales + at % SPAN / 32;
#pragma GCC unroll 8
        for (size_t ahead = 0; ahead < UNIT * bits / 8; ahead += 64)
            _mm_prefetch(codes + AHEAD + ahead, _MM_HINT_T0);
        if (bits == 4)
            unit_4bit(sums, tokens, table, _mm512_maskz_loadu_epi32(cols > 64 ? 0xffff : 0x00ff, codes), x + at, ldx, four);
        else
            unit_other(sums, tokens, code, codes, cols, x + at, ldx, four);
    }
#pragma GCC unroll 4
    for (size_t t = 0; t < tokens; t++) {
        float *y = p->y + (token + t) * p->ldy + row, sum = _mm512_reduce_add_ps(sums[t]);
        *y = p->add ? *y + sum : sum;
    }
}

#include "kern/gemv_rows.h"

void ql_gemv_tile(const ql_product *p, ql_tile t, const float *packed)
{
    all_tokens(p, t, packed);
}
