#include "kern/gemv.h"

#include "base/cpu.h"
#include "kern/int8_avx512.h"
#include "kern/spans_avx512.h"

/* Packed x of a token has for each 64 bytes of a row, two blocks of 4-bit codes or one of INT8: the bytes that meet low
 * nibbles, those of high ones, where their sums start, in groups of 32 those of either; or bytes and starts. After all
 * of them, a factor for every block. */
enum { UNIT = 64, AT_ONCE = 2, ROWS = 4, SHORT = 1024 /* bytes */, NEAR = 1024, FAR = 8192 };

#define INLINE static inline __attribute__((always_inline))

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

/* A kind of weight; constants where this is inlined. */
typedef struct kind {
    bool nibbles;
    size_t group; /* 32, 64, or 128 for all that are larger */
} kind;

/* The factors that lanes of unit `index` of a span, and of low or high nibbles, take from it. */
INLINE __m512 factors_of(kind as, span own, bool high, size_t index)
{
    const size_t first = as.nibbles ? 2 * index : index, second = as.nibbles ? first + 1 : index + SPAN_BLOCKS;
    const __m512i lanes = _mm512_mask_blend_epi32(0xff00, _mm512_set1_epi32((int)first), _mm512_set1_epi32((int)second));
    if (!as.nibbles)
        return as.group == 32 ? _mm512_permutex2var_ps(own.first, lanes, own.second)
                              : _mm512_permutexvar_ps(_mm512_set1_epi32((int)first), own.first);
    return _mm512_permutexvar_ps(lanes, high ? own.second : own.first);
}

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

/* Packed x of all tokens. */
typedef struct packed {
    const char *x;
    size_t token_bytes, unit_bytes;
    const float *factors;
} packed;

/* Rows that go side by side, and their sums of every token. Where that is one row its units go to two sums in turn,
 * which wait less for each other. */
typedef struct rows {
    const char *line[ROWS];
    const float *scales[ROWS];
    __m512 sums[AT_ONCE][2][ROWS];
    span spans[AT_ONCE][ROWS];
} rows;

/* Unit `at`, which is `index` of its span, of row r. */
INLINE void add_unit(rows *to, size_t r, bool odd, size_t tokens, kind as, __m512i bytes, __m512i table,
                     const packed *x, size_t at, size_t index)
{
    __m512i codes[2];
    codes_of(codes, as, bytes, table);
#pragma GCC unroll 2
    for (size_t t = 0; t < tokens; t++) {
        const void *xs = x->x + t * x->token_bytes + at * x->unit_bytes;
        to->sums[t][odd][r] = unit(to->sums[t][odd][r], as, codes, xs, to->spans[t][r], index);
    }
}

/* Into the first-level cache from where they were fetched to before, the second. */
INLINE void fetch(const char *codes, size_t near, size_t far)
{
    _mm_prefetch(codes + far, _MM_HINT_T1);
    _mm_prefetch(codes + near, _MM_HINT_T0);
}

INLINE void add_rows(rows *to, size_t count, size_t tokens, const ql_wview *w, kind as, __m512i table, const packed *x)
{
    const size_t per_span = as.nibbles ? SPAN_BLOCKS / 2 : SPAN_BLOCKS;
    const size_t blocks = span_blocks(w), whole = as.nibbles ? blocks / 2 : blocks, set = count * w->row_bytes;
    const size_t near = count == 1 ? NEAR : set, far = count == 1 ? FAR : (FAR / set + 1) * set;
    size_t at = 0;
    for (size_t from = 0; from < blocks; from += SPAN_BLOCKS) {
#pragma GCC unroll 4
        for (size_t r = 0; r < count; r++)
#pragma GCC unroll 2
            for (size_t t = 0; t < tokens; t++)
                to->spans[t][r] = span_of(w, as.group, to->scales[r],
                                          x->factors + t * (x->token_bytes / sizeof(float)), from);
#pragma GCC unroll 16
        for (size_t index = 0; index < per_span; index++, at++) {
            if (at == whole)
                break;
#pragma GCC unroll 4
            for (size_t r = 0; r < count; r++) {
                const char *codes = to->line[r] + at * UNIT;
                fetch(codes, near, far);
                add_unit(to, r, count == 1 && index % 2, tokens, as, _mm512_loadu_si512(codes), table, x, at, index);
            }
        }
    }
    if (as.nibbles && 2 * whole < blocks) /* half a unit, and the last span is its own */
#pragma GCC unroll 4
        for (size_t r = 0; r < count; r++) {
            const char *codes = to->line[r] + at * UNIT;
            fetch(codes, near, far);
            add_unit(to, r, false, tokens, as, _mm512_maskz_loadu_epi32(0xff, codes), table, x, at, at % per_span);
        }
}

INLINE void all_rows(const ql_product *p, ql_tile t, size_t count, size_t tokens, kind as)
{
    const ql_wview *w = p->w;
    const size_t groups = ql_row_groups(w), sets = QL_GEMV_SCALES / (ROWS * groups), most = (sets ? sets : 1) * ROWS;
    float scales[ROWS * QL_GEMV_SCALES + SPAN_SLACK], step;
    const __m512i table = as.nibbles ? int8_table(w->table, &step) : _mm512_setzero_si512();
    const packed x = {p->packed, token_bytes(w), vectors_of(w) * UNIT,
                      (const float *)(const void *)((const char *)p->packed + units_bytes(w))};
    for (size_t i = 0; i < t.cols; i += ROWS) {
        size_t row = t.col + i, left = t.cols - i;
        if (i % most == 0)
            decode_scales_avx512(w, row * groups, (left < most ? left : most) * groups, scales);
        __m512 sums[AT_ONCE][ROWS];
        for (size_t first = 0; first < ROWS; first += count) {
            rows now;
#pragma GCC unroll 4
            for (size_t r = 0; r < count; r++) { /* the last one again where there are fewer */
                size_t nth = first + r < left ? first + r : left - 1;
                now.line[r] = (const char *)w->codes + (row + nth) * w->row_bytes;
                now.scales[r] = scales + (i % most + nth) * groups;
#pragma GCC unroll 2
                for (size_t n = 0; n < tokens; n++)
                    now.sums[n][0][r] = now.sums[n][1][r] = _mm512_setzero_ps();
            }
            add_rows(&now, count, tokens, w, as, table, &x);
#pragma GCC unroll 4
            for (size_t r = 0; r < count; r++)
#pragma GCC unroll 2
                for (size_t n = 0; n < tokens; n++)
                    sums[n][first + r] = count == 1 ? _mm512_add_ps(now.sums[n][0][r], now.sums[n][1][r])
                                                    : now.sums[n][0][r];
        }
#pragma GCC unroll 2
        for (size_t n = 0; n < tokens; n++)
            write_sums(p, n, row, left, sums[n]);
    }
}

/* Short rows go side by side: what is between them takes as long as they do. */
INLINE void all_tokens(const ql_product *p, ql_tile t, kind as)
{
    if (p->m == 2)
        all_rows(p, t, 1, 2, as);
    else if (as.nibbles && p->w->row_bytes < SHORT)
        all_rows(p, t, ROWS, 1, as);
    else
        all_rows(p, t, 1, 1, as);
}

#ifdef __AVX512VBMI__
void ql_gemv_int8_vbmi_tile(const ql_product *p, ql_tile t)
#else
static void vnni_tile(const ql_product *p, ql_tile t)
#endif
{
    const bool nibbles = p->w->table;
    switch (p->w->format.group) {
    case 32:
        nibbles ? all_tokens(p, t, (kind){true, 32}) : all_tokens(p, t, (kind){false, 32});
        break;
    case 64:
        nibbles ? all_tokens(p, t, (kind){true, 64}) : all_tokens(p, t, (kind){false, 64});
        break;
    default:
        nibbles ? all_tokens(p, t, (kind){true, 128}) : all_tokens(p, t, (kind){false, 128});
    }
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
