/* Products of 4-bit or INT8 codes and integers, row after row: 64 bytes of a row at a time, of two blocks or one, meet
 * what packed x has for them, and their sums, in 32 bits, get the factors of their span. The including file says how a
 * unit is multiplied: it defines struct lookup before, add_unit() after. Only for files compiled for AVX-512. */
#ifndef QL_SRC_KERN_ROWS_AVX512_H
#define QL_SRC_KERN_ROWS_AVX512_H

#include "kern/spans_avx512.h"

#define INLINE static inline __attribute__((always_inline))

enum { UNIT = 64 /* bytes */, LANES = 16, AT_ONCE = 2 /* tokens */, ROWS = 4 };
enum { NEAR = 1024, FAR = 8192 /* bytes ahead to fetch */ };

/* A kind of weight; constants where this is inlined. */
typedef struct kind {
    bool nibbles;
    size_t group; /* 32, 64, or 128 for all that are larger */
} kind;

/* The factors that lanes of unit `index` of a span, and of low or high nibbles, take from it. */
INLINE __m512 factors_of(kind as, span own, bool high, size_t index)
{
    /* eight of each number: half a vector's lanes */
#define EIGHT(i) i, i, i, i, i, i, i, i
    static const int32_t blocks[] __attribute__((aligned(UNIT))) = {
        EIGHT(0), EIGHT(1), EIGHT(2),  EIGHT(3),  EIGHT(4),  EIGHT(5),  EIGHT(6),  EIGHT(7),
        EIGHT(8), EIGHT(9), EIGHT(10), EIGHT(11), EIGHT(12), EIGHT(13), EIGHT(14), EIGHT(15)};
#undef EIGHT
    if (as.nibbles)
        return _mm512_permutexvar_ps(_mm512_load_si512(blocks + LANES * index), high ? own.second : own.first);
    const __m512i one = _mm512_set1_epi32((int)index);
    if (as.group > 32)
        return _mm512_permutexvar_ps(one, own.first);
    const __m512i other = _mm512_add_epi32(one, _mm512_set1_epi32(SPAN_BLOCKS));
    return _mm512_permutex2var_ps(own.first, _mm512_mask_blend_epi32(0xff00, one, other), own.second);
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

typedef struct lookup lookup;

/* Adds unit `index` of a span of row r to sums[][odd][r]; the span's first unit has the packed x at `xs`. */
INLINE void add_unit(rows *to, size_t r, bool odd, size_t tokens, kind as, __m512i bytes, const lookup *table,
                     const packed *x, const char *xs, size_t index);

/* Into the first-level cache from where they were fetched to before, the second. */
INLINE void fetch(const char *codes, size_t near, size_t far)
{
    _mm_prefetch(codes + far, _MM_HINT_T1);
    _mm_prefetch(codes + near, _MM_HINT_T0);
}

/* How far ahead of the codes to fetch others: within the next rows where they go side by side. */
typedef struct distances {
    size_t near, far;
} distances;

/* Unit `index` of `count` rows' span that begins with unit `first`; where `half`, there is half of it. */
INLINE void add_units(rows *to, size_t count, bool odd, bool half, size_t tokens, kind as, const lookup *table,
                      const packed *x, size_t first, size_t index, distances ahead)
{
    const char *xs = x->x + first * x->unit_bytes;
#pragma GCC unroll 4
    for (size_t r = 0; r < count; r++) {
        const char *codes = to->line[r] + first * UNIT + index * UNIT;
        fetch(codes, ahead.near, ahead.far);
        __m512i bytes = half ? _mm512_maskz_loadu_epi32(0xff, codes) : _mm512_loadu_si512(codes);
        add_unit(to, r, odd, tokens, as, bytes, table, x, xs, index);
    }
}

INLINE void add_rows(rows *to, size_t count, size_t tokens, const ql_wview *w, kind as, const lookup *table,
                     const packed *x)
{
    const size_t per_span = as.nibbles ? SPAN_BLOCKS / 2 : SPAN_BLOCKS, set = count * w->row_bytes;
    const size_t blocks = span_blocks(w), whole = as.nibbles ? blocks / 2 : blocks;
    const distances ahead = count == 1 ? (distances){NEAR, FAR} : (distances){set, (FAR / set + 1) * set};
    for (size_t from = 0; from < blocks; from += SPAN_BLOCKS) {
#pragma GCC unroll 4
        for (size_t r = 0; r < count; r++)
#pragma GCC unroll 2
            for (size_t t = 0; t < tokens; t++)
                to->spans[t][r] = span_of(w, as.group, to->scales[r],
                                          x->factors + t * (x->token_bytes / sizeof(float)), from);
        const size_t first = from / SPAN_BLOCKS * per_span, left = whole - first;
#pragma GCC unroll 8
        for (size_t index = 0; index < per_span; index += 2) {
            if (index == left)
                break;
            add_units(to, count, false, false, tokens, as, table, x, first, index, ahead);
            if (index + 1 == left)
                break;
            add_units(to, count, count == 1, false, tokens, as, table, x, first, index + 1, ahead);
        }
    }
    if (as.nibbles && 2 * whole < blocks) /* the last span is this one's too */
        add_units(to, count, false, true, tokens, as, table, x, whole / per_span * per_span, whole % per_span, ahead);
}

/* Rows [t.col, t.col + t.cols), `count` of them side by side, 1 or ROWS. */
INLINE void all_rows(const ql_product *p, ql_tile t, size_t count, size_t tokens, kind as, const lookup *table,
                     const packed *x)
{
    const ql_wview *w = p->w;
    const size_t groups = ql_row_groups(w), sets = QL_GEMV_SCALES / (ROWS * groups), most = (sets ? sets : 1) * ROWS;
    float scales[ROWS * QL_GEMV_SCALES + SPAN_SLACK];
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
            add_rows(&now, count, tokens, w, as, table, x);
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

#endif
