#include "kern/gemv.h"

#include "kern/pairs_avx512.h"
#include "kern/scales_avx512.h"
#include "kern/units_avx512.h"

/* A row of 4-bit codes is one stream of 128-column units, prefetched AHEAD bytes before they are needed. */
enum { UNIT = 128, HALF = 32, AHEAD = 16384 };

/* Puts x, rounded, in the order in which the codes come out of a unit, and zeros where W is padded. */
void ql_gemv_avx512_bf16_pack(const ql_product *p, ql_plan plan, size_t token)
{
    float *packed = p->packed;
    (void)plan;
    size_t k = p->w->k, end = ql_gemv_padded(p->w);
    const float *x = p->x + token * p->ldx;
    uint16_t *out = (uint16_t *)(packed + token * end);
    for (size_t at = 0; at < end; at += UNIT, out += UNIT) {
        __m512i runs[4]; /* of 32 columns */
        for (size_t i = 0; i < 4; i++) {
            size_t from = at + i * 32, left = from < k ? k - from : 0;
            uint32_t have = left < 32 ? (1u << left) - 1 : ~0u;
            runs[i] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps((__mmask16)(have >> 16), x + from + 16),
                                                   _mm512_maskz_loadu_ps((__mmask16)have, x + from));
        }
        deal_unit(runs, out);
    }
}

static inline __attribute__((always_inline)) void unit(__m512 sums[2], size_t tokens, __m512i table, __m512i code,
                                                       const uint16_t *x, size_t ldx, bool split, __m512 low,
                                                       __m512 high)
{
    __m512 part[2][2];
#pragma GCC unroll 4
    for (unsigned n = 0; n < 4; n++) {
        __m512bh value = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(code, 4 * n), table);
#pragma GCC unroll 2
        for (size_t t = 0; t < tokens; t++) {
            __m512bh xs = (__m512bh)_mm512_load_si512(x + t * ldx + n * HALF);
            part[n % 2][t] = _mm512_dpbf16_ps(n < 2 ? _mm512_setzero_ps() : part[n % 2][t], value, xs);
        }
    }
#pragma GCC unroll 2
    for (size_t t = 0; t < tokens; t++) {
        if (split) {
            sums[t] = _mm512_fmadd_ps(part[0][t], low, sums[t]);
            sums[t] = _mm512_fmadd_ps(part[1][t], high, sums[t]);
        } else {
            sums[t] = _mm512_fmadd_ps(_mm512_add_ps(part[0][t], part[1][t]), low, sums[t]);
        }
    }
}

/* With `split`, low and high nibbles have scales of their own. Each 64-block has eight lanes of the sums. */
static inline __attribute__((always_inline)) void one_row(const ql_product *p, size_t row, size_t tokens, bool split,
                                                          const float *scales, const float *packed)
{
    const ql_wview *w = p->w;
    const char *line = (const char *)w->codes + row * w->row_bytes;
    const __m512i second = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0), table = table_bf16(w->table);
    const unsigned shift = (unsigned)__builtin_ctz(w->format.group);
    const __m512i low = split ? _mm512_slli_epi32(second, 1) : shift > 6 ? _mm512_setzero_si512() : second;
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(1));
    const uint16_t *x = (const uint16_t *)packed;
    size_t at = 0, ldx = 2 * ql_gemv_padded(w);
    __m512 sums[2] = {0};
    for (; at + QL_BLOCK < w->k; at += UNIT) {
        _mm_prefetch(line + at / 2 + AHEAD, _MM_HINT_T0);
        __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(scales + (at >> shift)));
        unit(sums, tokens, table, _mm512_loadu_si512(line + at / 2), x + at, ldx, split,
             _mm512_permutexvar_ps(low, four), split ? _mm512_permutexvar_ps(high, four) : four);
    }
    if (at < w->k) { /* half a unit */
        __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(scales + (at >> shift)));
        unit(sums, tokens, table, _mm512_maskz_loadu_epi32(0xff, line + at / 2), x + at, ldx, split,
             _mm512_maskz_permutexvar_ps(0xff, low, four), _mm512_maskz_permutexvar_ps(0xff, high, four));
    }
    for (size_t t = 0; t < tokens; t++) {
        float *y = p->y + t * p->ldy + row, sum = _mm512_reduce_add_ps(sums[t]);
        *y = p->add ? *y + sum : sum;
    }
}

static inline __attribute__((always_inline)) void all_rows(const ql_product *p, ql_tile t, size_t tokens, bool split,
                                                           const float *packed)
{
    size_t groups = ql_row_groups(p->w), most = QL_GEMV_SCALES / groups;
    float scales[QL_GEMV_SCALES + QL_GEMV_SLACK];
    for (size_t row = t.col; row < t.col + t.cols; row++) {
        size_t at = (row - t.col) % most, left = t.col + t.cols - row;
        if (at == 0)
            decode_scales_and_zeros(p->w, row * groups, (left < most ? left : most) * groups, scales);
        one_row(p, row, tokens, split, scales + at * groups, packed);
    }
}

void ql_gemv_avx512_bf16_tile(const ql_product *p, ql_tile t, void *scratch)
{
    (void)scratch;
    bool split = p->w->format.group == 32;
    if (p->m == 1 && split)
        all_rows(p, t, 1, true, p->packed);
    else if (p->m == 1)
        all_rows(p, t, 1, false, p->packed);
    else if (split)
        all_rows(p, t, 2, true, p->packed);
    else
        all_rows(p, t, 2, false, p->packed);
}
