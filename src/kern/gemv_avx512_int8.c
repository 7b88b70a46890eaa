#include "kern/gemv.h"

#include "base/cpu.h"
#include "kern/int8_avx512.h"

struct lookup {
    __m512i bytes;
};
#include "kern/rows_avx512.h"

/* Packed x of a token has for each 64 bytes of a row, two blocks of 4-bit codes or one of INT8: the bytes that meet low
 * nibbles, those of high ones, where their sums start, in groups of 32 those of either; or bytes and starts. After all
 * of them, a factor for every block. */
static inline size_t units_of(const ql_wview *w)
{
    return ql_gemv_padded(w) / (w->table ? 2 * QL_BLOCK : QL_BLOCK);
}

static inline size_t vectors_of(const ql_wview *w)
{
    return !w->table ? 2 : w->format.group == 32 ? 4 : 3;
}

static inline size_t units_bytes(const ql_wview *w)
{
    return units_of(w) * vectors_of(w) * UNIT;
}

static inline size_t token_bytes(const ql_wview *w)
{
    return units_bytes(w) + span_factors(w) * sizeof(float);
}

#ifndef __AVX512VBMI__
size_t ql_gemv_int8_packed(const ql_product *p)
{
    return p->transposed ? 0 : (p->m < AT_ONCE ? p->m : AT_ONCE) * token_bytes(p->w);
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

static void pack_4bit(const ql_product *p, size_t token, __m512i *out, float *factors)
{
    const bool split = p->w->format.group == 32;
    float step;
    int8_table(p->w->table, &step);
    for (size_t at = 0; at < ql_gemv_padded(p->w); at += 2 * QL_BLOCK, factors += 2) {
        __m512i a = quantize_at(p, token, at, factors), b = quantize_at(p, token, at + QL_BLOCK, factors + 1);
        __m512i low = _mm512_shuffle_i64x2(a, b, 0x44), high = _mm512_shuffle_i64x2(a, b, 0xee);
        __m512i starts_low = int8_starts(low), starts_high = int8_starts(high);
        factors[0] *= step;
        factors[1] *= step;
        *out++ = low;
        *out++ = high;
        *out++ = split ? starts_low : _mm512_add_epi32(starts_low, starts_high);
        if (split)
            *out++ = starts_high;
    }
}

static void pack_int8(const ql_product *p, size_t token, __m512i *out, float *factors)
{
    for (size_t at = 0; at < ql_gemv_padded(p->w); at += QL_BLOCK) {
        *out++ = quantize_at(p, token, at, factors++);
        *out = int8_starts(out[-1]);
        out++;
    }
}

void ql_gemv_int8_pack(const ql_product *p, ql_plan plan, size_t token)
{
    char *own = (char *)p->packed + token * token_bytes(p->w);
    float *factors = (float *)(void *)(own + units_bytes(p->w));
    (void)plan;
    memset(factors, 0, span_factors(p->w) * sizeof *factors);
    if (p->w->table)
        pack_4bit(p, token, (__m512i *)(void *)own, factors);
    else
        pack_int8(p, token, (__m512i *)(void *)own, factors);
}
#endif

INLINE __m512 add_part(__m512 sum, __m512i part, __m512 factors)
{
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), factors, sum);
}

INLINE __m512 unit(__m512 sum, kind as, const __m512i codes[2], const __m512i *x, span own, size_t index)
{
    if (!as.nibbles)
        return add_part(sum, _mm512_dpbusd_epi32(x[1], codes[0], x[0]), factors_of(as, own, false, index));
    __m512i part = _mm512_dpbusd_epi32(x[2], codes[0], x[0]);
    if (as.group > 32)
        return add_part(sum, _mm512_dpbusd_epi32(part, codes[1], x[1]), factors_of(as, own, false, index));
    sum = add_part(sum, part, factors_of(as, own, false, index));
    return add_part(sum, _mm512_dpbusd_epi32(x[3], codes[1], x[1]), factors_of(as, own, true, index));
}

INLINE void codes_of(__m512i codes[2], kind as, __m512i bytes, __m512i table)
{
    codes[0] = as.nibbles ? int8_of_nibbles(bytes, 0, table) : int8_of_bytes(bytes);
    codes[1] = as.nibbles ? int8_of_nibbles(bytes, 4, table) : codes[0];
}

INLINE void add_unit(rows *to, size_t r, bool odd, size_t tokens, kind as, __m512i bytes,
                     const lookup *table, const packed *x, const char *xs, size_t index)
{
    __m512i codes[2];
    codes_of(codes, as, bytes, table->bytes);
#pragma GCC unroll 2
    for (size_t t = 0; t < tokens; t++) {
        const void *own = xs + t * x->token_bytes + index * (as.nibbles ? as.group == 32 ? 4 : 3 : 2) * UNIT;
        to->sums[t][odd][r] = unit(to->sums[t][odd][r], as, codes, own, to->spans[t][r], index);
    }
}

enum { SHORT = 1024 /* bytes of a row */ };

/* Short rows go side by side: what is between them takes as long as they do. */
INLINE void all_widths(const ql_product *p, ql_tile t, size_t tokens, kind as, const lookup *table, const packed *x)
{
    if (tokens == 1 && as.nibbles && p->w->row_bytes < SHORT)
        all_rows(p, t, ROWS, 1, as, table, x);
    else
        all_rows(p, t, 1, tokens, as, table, x);
}

INLINE void all_groups(const ql_product *p, ql_tile t, size_t tokens, bool nibbles, const lookup *table)
{
    const ql_wview *w = p->w;
    const packed x = {p->packed, token_bytes(w), vectors_of(w) * UNIT,
                      (const float *)(const void *)((const char *)p->packed + units_bytes(w))};
    switch (w->format.group) {
    case 32:
        all_widths(p, t, tokens, (kind){nibbles, 32}, table, &x);
        break;
    case 64:
        all_widths(p, t, tokens, (kind){nibbles, 64}, table, &x);
        break;
    default:
        all_widths(p, t, tokens, (kind){nibbles, 128}, table, &x);
    }
}

INLINE void all_tokens(const ql_product *p, ql_tile t, bool nibbles, const lookup *table)
{
    if (p->m == 1)
        all_groups(p, t, 1, nibbles, table);
    else
        all_groups(p, t, 2, nibbles, table);
}

#ifdef __AVX512VBMI__
void ql_gemv_int8_vbmi_tile(const ql_product *p, ql_tile t)
#else
static void vnni_tile(const ql_product *p, ql_tile t)
#endif
{
    float step;
    if (p->w->table)
        all_tokens(p, t, true, &(lookup){int8_table(p->w->table, &step)});
    else
        all_tokens(p, t, false, &(lookup){_mm512_setzero_si512()});
}

#ifndef __AVX512VBMI__
void ql_gemv_int8_tile(const ql_product *p, ql_tile t, void *scratch)
{
    (void)scratch;
    if (ql_cpu_features() & QL_CPU_AVX512_VBMI)
        ql_gemv_int8_vbmi_tile(p, t);
    else
        vnni_tile(p, t);
}
#endif
