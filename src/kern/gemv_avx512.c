#include "kern/gemv.h"

#include <immintrin.h>

#include "kern/scales_avx512.h"

/* A row of W is one stream of 128-column units, prefetched AHEAD bytes before they are needed, dense ones half of
 * that. */
enum { UNIT = 128, AT_ONCE = 4, LANES = 16, AHEAD = 16384 };

/* Puts x in the order in which the codes come out of a unit, and zeros where W is padded. A 4-bit unit
 * holds 128 columns in 16 words; nibble s of word l is column 64 (l / 8) + 4 (l % 8) + s / 2 + 32 (s % 2). */
void ql_gemv_avx512_pack(const ql_product *p, ql_plan plan, size_t token)
{
    float *packed = p->packed;
    (void)plan;
    size_t k = p->w->k, end = ql_gemv_padded(p->w);
    const float *x = p->x + token * p->ldx;
    float *out = packed + token * end;
    if (!p->w->table) {
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

static void decode_scales(const ql_wview *w, size_t g, size_t count, float *out)
{
    decode_scales_and_zeros(w, g, count, out);
}

static inline __attribute__((always_inline)) void unit_4bit(__m512 sums[AT_ONCE], size_t tokens, __m512 table,
                                                            __m512i code, const float *x, size_t ldx, bool split,
                                                            __m512 low, __m512 high)
{
    __m512 part[2][AT_ONCE];
#pragma GCC unroll 8
    for (unsigned n = 0; n < 8; n++) {
        __m512 value = _mm512_permutexvar_ps(_mm512_srli_epi32(code, 4 * n), table);
#pragma GCC unroll 4
        for (size_t t = 0; t < tokens; t++) {
            __m512 xs = _mm512_load_ps(x + t * ldx + n * LANES);
            part[n % 2][t] = n < 2 ? _mm512_mul_ps(value, xs) : _mm512_fmadd_ps(value, xs, part[n % 2][t]);
        }
    }
#pragma GCC unroll 4
    for (size_t t = 0; t < tokens; t++) {
        if (split) {
            sums[t] = _mm512_fmadd_ps(part[0][t], low, sums[t]);
            sums[t] = _mm512_fmadd_ps(part[1][t], high, sums[t]);
        } else {
            sums[t] = _mm512_fmadd_ps(_mm512_add_ps(part[0][t], part[1][t]), low, sums[t]);
        }
    }
}

/* With `split`, low and high nibbles have scales of their own. Each 64-block has eight lanes. */
static inline __attribute__((always_inline)) void row_4bit(__m512 sums[AT_ONCE], size_t tokens, const ql_wview *w,
                                                           bool split, const char *line, const float *scales,
                                                           const float *x, size_t ldx)
{
    const __m512i second = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    const unsigned shift = (unsigned)__builtin_ctz(w->format.group);
    const __m512i low = split ? _mm512_slli_epi32(second, 1) : shift > 6 ? _mm512_setzero_si512() : second;
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(1));
    const __m512 table = _mm512_loadu_ps(w->table);
    size_t at = 0;
    for (; at + QL_BLOCK < w->k; at += UNIT) {
        _mm_prefetch(line + at / 2 + AHEAD, _MM_HINT_T0);
        __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(scales + (at >> shift)));
        unit_4bit(sums, tokens, table, _mm512_loadu_si512(line + at / 2), x + at, ldx, split,
                  _mm512_permutexvar_ps(low, four), split ? _mm512_permutexvar_ps(high, four) : four);
    }
    if (at < w->k) { /* half a unit */
        __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(scales + (at >> shift)));
        unit_4bit(sums, tokens, table, _mm512_maskz_loadu_epi32(0xff, line + at / 2), x + at, ldx, split,
                  _mm512_maskz_permutexvar_ps(0xff, low, four), _mm512_maskz_permutexvar_ps(0xff, high, four));
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

/* 32 columns, of which `cols` exist, of an INT8 or dense row; INT8 alone has a scale. */
static inline __attribute__((always_inline)) void piece_other(__m512 sums[AT_ONCE], size_t tokens, ql_code code,
                                                              const char *codes, size_t cols, const float *x,
                                                              size_t ldx, float scale)
{
    size_t size = code == QL_CODE_INT8 ? 1 : code == QL_CODE_F32 ? 4 : 2;
    uint32_t wanted = cols < 32 ? (1u << cols) - 1 : ~0u;
    __m512 first = load_row(code, codes, (__mmask16)wanted);
    __m512 second = load_row(code, codes + LANES * size, (__mmask16)(wanted >> 16));
#pragma GCC unroll 4
    for (size_t t = 0; t < tokens; t++) {
        __m512 x0 = _mm512_load_ps(x + t * ldx), x1 = _mm512_load_ps(x + t * ldx + LANES);
        if (code == QL_CODE_INT8) {
            __m512 part = _mm512_fmadd_ps(second, x1, _mm512_mul_ps(first, x0));
            sums[t] = _mm512_fmadd_ps(part, _mm512_set1_ps(scale), sums[t]);
        } else {
            sums[t] = _mm512_fmadd_ps(second, x1, _mm512_fmadd_ps(first, x0, sums[t]));
        }
    }
}

/* Two sums a token, in turn: one would be a chain of steps that wait for each other. */
static inline __attribute__((always_inline)) void row_other(__m512 sums[AT_ONCE], size_t tokens, const ql_wview *w,
                                                            ql_code code, size_t bits, const char *line,
                                                            const float *scales, const float *x, size_t ldx)
{
    enum { PIECE = 2 * LANES };
    const unsigned shift = code == QL_CODE_INT8 ? (unsigned)__builtin_ctz(w->format.group) : 0;
    const size_t k = w->k, ahead = code == QL_CODE_INT8 ? AHEAD : AHEAD / 2;
    __m512 others[AT_ONCE] = {0};
    size_t at = 0;
    for (; at + UNIT <= k; at += UNIT) {
#pragma GCC unroll 8
        for (size_t i = 0; i < UNIT * bits / 8; i += 64)
            _mm_prefetch(line + at * bits / 8 + ahead + i, _MM_HINT_T0);
#pragma GCC unroll 4
        for (size_t i = 0; i < UNIT; i += PIECE)
            piece_other(i / PIECE % 2 ? others : sums, tokens, code, line + (at + i) * bits / 8, PIECE, x + at + i,
                        ldx, code == QL_CODE_INT8 ? scales[(at + i) >> shift] : 1);
    }
    for (; at < k; at += PIECE)
        piece_other(sums, tokens, code, line + at * bits / 8, k - at, x + at, ldx,
                    code == QL_CODE_INT8 ? scales[at >> shift] : 1);
#pragma GCC unroll 4
    for (size_t t = 0; t < tokens; t++)
        sums[t] = _mm512_add_ps(sums[t], others[t]);
}

/* One row against some tokens; the code, its bits and the tokens are constants where it is inlined. */
static inline __attribute__((always_inline)) void one_row(const ql_product *p, size_t row, size_t token, size_t tokens,
                                                          ql_code code, size_t bits, const float *scales,
                                                          const float *packed)
{
    const ql_wview *w = p->w;
    const char *line = (const char *)w->codes + row * w->row_bytes;
    size_t ldx = ql_gemv_padded(w);
    const float *x = packed + token * ldx;
    __m512 sums[AT_ONCE] = {0};
    if (bits > 4)
        row_other(sums, tokens, w, code, bits, line, scales, x, ldx);
    else if (w->format.group == 32)
        row_4bit(sums, tokens, w, true, line, scales, x, ldx);
    else
        row_4bit(sums, tokens, w, false, line, scales, x, ldx);
#pragma GCC unroll 4
    for (size_t t = 0; t < tokens; t++) {
        float *y = p->y + (token + t) * p->ldy + row, sum = _mm512_reduce_add_ps(sums[t]);
        *y = p->add ? *y + sum : sum;
    }
}

#include "kern/gemv_rows.h"

void ql_gemv_avx512_tile(const ql_product *p, ql_tile t, void *scratch)
{
    (void)scratch;
    all_tokens(p, t, p->packed);
}
