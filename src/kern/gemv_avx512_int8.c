#include "kern/gemv.h"

#include "kern/int8_avx512.h"
#include "kern/scales_avx512.h"

/* A row is one stream of 64-byte units, prefetched AHEAD bytes before they are needed. Packed x has for a unit of two
 * 4-bit blocks: the bytes that meet low nibbles, those of high ones, where their sums start, the factors of the lanes;
 * for a unit of one INT8 block: bytes, starts and factors. */
enum { UNIT = 64, AHEAD = 16384, FOUR_BITS = 5, EIGHT_BITS = 3 /* vectors */, LANES = 16 };

static inline size_t units_of(const ql_wview *w)
{
    return ql_gemv_padded(w) / (w->table ? 2 * QL_BLOCK : QL_BLOCK);
}

size_t ql_gemv_int8_packed(const ql_product *p)
{
    size_t tokens = p->m < 2 ? p->m : 2;
    return p->transposed ? 0 : tokens * units_of(p->w) * (p->w->table ? FOUR_BITS : EIGHT_BITS) * UNIT;
}

ql_plan ql_gemv_int8_plan(const ql_product *p, size_t threads)
{
    ql_plan plan = ql_gemv_plan(p, threads);
    plan.packed = ql_gemv_int8_packed(p);
    return plan;
}

static __m512i quantize_at(const ql_product *p, size_t token, size_t at, float *factor)
{
    return quantize64(p->x + token * p->ldx + at, at < p->w->k ? p->w->k - at : 0, factor);
}

static void pack_4bit(const ql_product *p, size_t token, float step, __m512i *out)
{
    const bool split = p->w->format.group == 32;
    for (size_t at = 0; at < ql_gemv_padded(p->w); at += 2 * QL_BLOCK, out += FOUR_BITS) {
        float first, second;
        __m512i a = quantize_at(p, token, at, &first), b = quantize_at(p, token, at + QL_BLOCK, &second);
        __m512i low = _mm512_shuffle_i64x2(a, b, 0x44), high = _mm512_shuffle_i64x2(a, b, 0xee);
        __m512i starts_low = int8_starts(low), starts_high = int8_starts(high);
        out[0] = low;
        out[1] = high;
        out[2] = split ? starts_low : _mm512_add_epi32(starts_low, starts_high);
        out[3] = starts_high;
        out[4] = (__m512i)_mm512_mask_blend_ps(0xff00, _mm512_set1_ps(first * step), _mm512_set1_ps(second * step));
    }
}

void ql_gemv_int8_pack(const ql_product *p, ql_plan plan, size_t token)
{
    __m512i *out = p->packed;
    (void)plan;
    if (p->w->table) {
        float step;
        int8_table(p->w->table, &step);
        pack_4bit(p, token, step, out + token * units_of(p->w) * FOUR_BITS);
        return;
    }
    out += token * units_of(p->w) * EIGHT_BITS;
    for (size_t at = 0; at < ql_gemv_padded(p->w); at += QL_BLOCK, out += EIGHT_BITS) {
        float factor;
        out[0] = quantize_at(p, token, at, &factor);
        out[1] = int8_starts(out[0]);
        out[2] = (__m512i)_mm512_set1_ps(factor);
    }
}

/* With `split`, low and high nibbles have scales of their own. */
static inline __attribute__((always_inline)) void unit_4bit(__m512 sums[2], size_t tokens, __m512i table, __m512i code,
                                                            const __m512i *x, size_t ldx, bool split, __m512 low,
                                                            __m512 high)
{
    __m512i first = int8_of_nibbles(code, 0, table), second = int8_of_nibbles(code, 4, table);
#pragma GCC unroll 2
    for (size_t t = 0; t < tokens; t++, x += ldx) {
        __m512i part = _mm512_dpbusd_epi32(x[2], first, x[0]);
        __m512 factor = (__m512)x[4];
        if (split) {
            __m512i other = _mm512_dpbusd_epi32(x[3], second, x[1]);
            sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), _mm512_mul_ps(low, factor), sums[t]);
            sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(other), _mm512_mul_ps(high, factor), sums[t]);
        } else {
            part = _mm512_dpbusd_epi32(part, second, x[1]);
            sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), _mm512_mul_ps(low, factor), sums[t]);
        }
    }
}

/* Which of the scales from a unit's first on belong to its lanes: eight of them have columns `apart` from the others'. */
static inline __m512i lanes_of(size_t apart, size_t more, unsigned shift)
{
    return _mm512_mask_blend_epi32(0xff00, _mm512_set1_epi32((int)(more >> shift)),
                                   _mm512_set1_epi32((int)((apart + more) >> shift)));
}

static inline __attribute__((always_inline)) void row_4bit(__m512 sums[2], size_t tokens, const ql_wview *w, bool split,
                                                           __m512i table, const char *line, const float *scales,
                                                           const __m512i *x, size_t ldx)
{
    const unsigned shift = (unsigned)__builtin_ctz(w->format.group);
    const __m512i low = lanes_of(QL_BLOCK, 0, shift), high = lanes_of(QL_BLOCK, 32, shift);
    size_t at = 0;
    for (; at + QL_BLOCK < w->k; at += 2 * QL_BLOCK, x += FOUR_BITS) {
        _mm_prefetch(line + at / 2 + AHEAD, _MM_HINT_T0);
        __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(scales + (at >> shift)));
        unit_4bit(sums, tokens, table, _mm512_loadu_si512(line + at / 2), x, ldx, split,
                  _mm512_permutexvar_ps(low, four), split ? _mm512_permutexvar_ps(high, four) : four);
    }
    if (at < w->k) { /* half a unit */
        __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(scales + (at >> shift)));
        unit_4bit(sums, tokens, table, _mm512_maskz_loadu_epi32(0xff, line + at / 2), x, ldx, split,
                  _mm512_maskz_permutexvar_ps(0xff, low, four), _mm512_maskz_permutexvar_ps(0xff, high, four));
    }
}

static inline __attribute__((always_inline)) void row_int8(__m512 sums[2], size_t tokens, const ql_wview *w,
                                                           const char *line, const float *scales, const __m512i *x,
                                                           size_t ldx)
{
    const unsigned shift = (unsigned)__builtin_ctz(w->format.group);
    const __m512i lanes = lanes_of(32, 0, shift);
    for (size_t at = 0; at < w->k; at += QL_BLOCK, x += EIGHT_BITS) {
        __mmask16 have = w->k - at > 32 ? 0xffff : 0x00ff; /* past those there is no scale, and x is 0 */
        _mm_prefetch(line + at + AHEAD, _MM_HINT_T0);
        __m512i code = int8_of_bytes(_mm512_loadu_si512(line + at));
        __m512 scale = _mm512_maskz_permutexvar_ps(have, lanes,
                                                   _mm512_broadcast_f32x4(_mm_loadu_ps(scales + (at >> shift))));
#pragma GCC unroll 2
        for (size_t t = 0; t < tokens; t++) {
            const __m512i *own = x + t * ldx;
            __m512 sum = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(own[1], code, own[0]));
            sums[t] = _mm512_fmadd_ps(sum, _mm512_mul_ps(scale, (__m512)own[2]), sums[t]);
        }
    }
}

static inline __attribute__((always_inline)) void all_rows(const ql_product *p, ql_tile t, size_t tokens,
                                                           const __m512i *x)
{
    const ql_wview *w = p->w;
    size_t groups = ql_row_groups(w), most = QL_GEMV_SCALES / groups;
    float scales[QL_GEMV_SCALES + QL_GEMV_SLACK], step;
    const __m512i table = w->table ? int8_table(w->table, &step) : _mm512_setzero_si512();
    for (size_t row = t.col; row < t.col + t.cols; row++) {
        size_t at = (row - t.col) % most, left = t.col + t.cols - row;
        if (at == 0)
            decode_scales_and_zeros(w, row * groups, (left < most ? left : most) * groups, scales);
        const char *line = (const char *)w->codes + row * w->row_bytes;
        const float *own = scales + at * groups;
        __m512 sums[2] = {0};
        if (!w->table)
            row_int8(sums, tokens, w, line, own, x, units_of(w) * EIGHT_BITS);
        else if (w->format.group == 32)
            row_4bit(sums, tokens, w, true, table, line, own, x, units_of(w) * FOUR_BITS);
        else
            row_4bit(sums, tokens, w, false, table, line, own, x, units_of(w) * FOUR_BITS);
        for (size_t i = 0; i < tokens; i++) {
            float *y = p->y + i * p->ldy + row, sum = _mm512_reduce_add_ps(sums[i]);
            *y = p->add ? *y + sum : sum;
        }
    }
}

void ql_gemv_int8_tile(const ql_product *p, ql_tile t, void *scratch)
{
    (void)scratch;
    if (p->m == 1)
        all_rows(p, t, 1, p->packed);
    else
        all_rows(p, t, 2, p->packed);
}
