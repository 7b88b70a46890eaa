/* The kernel of few.h for AVX-512. What a word of codes gives and what one step does with it and a word of x are
 * constants where it is inlined. Only for files compiled for AVX-512. */
#ifndef QL_SRC_KERN_FEW_AVX512_H
#define QL_SRC_KERN_FEW_AVX512_H

#include "kern/few.h"
#include "kern/micro_avx512.h"
#include "kern/scales_avx512.h"
#include "kern/turn_avx512.h"

/* A chunk is 64 bytes of every row; the sums of a strip of 32 columns get their scale together. */
enum { LANES = 16, WORDS = 16, STRIP = 32, CHUNK = 2 * QL_BLOCK, MOST_SETS = QL_FEW_WIDTH / LANES };

/* The values of 16 rows that bits [shift, ...) of a word of theirs stand for. */
typedef __m512 value_avx512(__m512i word, unsigned shift, __m512 table);

/* How codes of `bits` become terms: a word has `terms` for a strip. */
typedef struct few_way {
    value_avx512 *value;
    step_avx512 *step;
    size_t bits, terms;
} few_way;

#define INLINE static inline __attribute__((always_inline))

/* out[j] = word j, `at` bytes on, of rows 0..15, for the words of the mask; others are 0 and not read. */
INLINE void turn_rows(const char *const rows[LANES], size_t at, __mmask16 words, __m512i out[WORDS])
{
    __m512i line[LANES];
#pragma GCC unroll 16
    for (size_t r = 0; r < LANES; r++)
        line[r] = _mm512_maskz_loadu_epi32(words, rows[r] + at);
    turn16(line);
#pragma GCC unroll 16
    for (size_t j = 0; j < WORDS; j++)
        out[j] = line[j];
}

/* Sixteen rows of W. Past the last one they are the last again, never stored. */
typedef struct row_set {
    const char *lines[LANES];
    _Alignas(64) __m512i words[WORDS];
    _Alignas(64) float scales[LANES][LANES]; /* [group][row], of 16 groups */
} row_set;

/* The scales of groups [first, first + 16) of every row, those that exist. */
static inline void load_scales(row_set *s, const ql_wview *w, size_t row, size_t last, size_t first)
{
    size_t groups = ql_row_groups(w), count = groups - first < LANES ? groups - first : LANES;
    _Alignas(64) float decoded[LANES][LANES];
    const char *lines[LANES];
    for (size_t r = 0; r < LANES; r++) {
        decode_scales_avx512(w, (row + r < last ? row + r : last) * groups + first, count, decoded[r]);
        lines[r] = (const char *)decoded[r];
    }
    turn_rows(lines, 0, (__mmask16)((1u << count) - 1), (__m512i *)(void *)s->scales);
}

/* sums += scale * (the products of 32 columns): eight words of every row from `first` on, each a byte or a nibble
 * (from bit `bit` on) for four columns. A few sums would wait for each other: they are halved. */
INLINE void strip(few_way way, row_set *s, size_t sets, size_t tokens, size_t first, unsigned bit, __m512 table,
                  const float *x, size_t group, __m512 *sums)
{
    const size_t chains = sets * tokens <= 8 ? 2 : 1;
    __m512 part[2][MOST_SETS][QL_FEW_MOST];
#pragma GCC unroll 2
    for (size_t c = 0; c < chains; c++)
#pragma GCC unroll 2
        for (size_t i = 0; i < sets; i++)
#pragma GCC unroll 16
            for (size_t t = 0; t < tokens; t++)
                part[c][i][t] = _mm512_setzero_ps();
    for (size_t j = first; j < first + 8; j++)
#pragma GCC unroll 4
        for (unsigned b = 0; b < way.terms; b++, x += tokens) {
            __m512 value[MOST_SETS];
#pragma GCC unroll 2
            for (size_t i = 0; i < sets; i++)
                value[i] = way.value(s[i].words[j], 8 * b + bit, table);
#pragma GCC unroll 16
            for (size_t t = 0; t < tokens; t++) {
                __m512 one = _mm512_set1_ps(x[t]);
#pragma GCC unroll 2
                for (size_t i = 0; i < sets; i++)
                    part[b % chains][i][t] = way.step(part[b % chains][i][t], one, value[i]);
            }
        }
#pragma GCC unroll 2
    for (size_t i = 0; i < sets; i++) {
        __m512 scale = _mm512_load_ps(s[i].scales[group % LANES]);
#pragma GCC unroll 16
        for (size_t t = 0; t < tokens; t++) {
            __m512 all = chains == 2 ? _mm512_add_ps(part[0][i][t], part[1][i][t]) : part[0][i][t];
            sums[i * tokens + t] = _mm512_fmadd_ps(all, scale, sums[i * tokens + t]);
        }
    }
}

/* Adds what the columns of 64 bytes of codes from `at` on contribute. `next` is where the codes of the first row are
 * wanted next; between the strips all the rows' are prefetched. */
INLINE void chunk(few_way way, row_set *s, size_t sets, size_t tokens, const ql_wview *w, size_t at, const char *next,
                  __m512 table, const float *x, __m512 *sums)
{
    const unsigned shift = (unsigned)__builtin_ctz(w->format.group);
    const size_t pieces = way.bits == 4 ? 4 : 2, line = way.terms * tokens;
    for (size_t piece = 0; piece < pieces; piece++) {
        size_t col = at + piece * STRIP;
        if (col >= w->k)
            break;
        for (size_t r = 0; r < sets * LANES / pieces; r++, next += w->row_bytes)
            _mm_prefetch(next, _MM_HINT_T0);
        if (way.bits == 4 && piece % 2)
            strip(way, s, sets, tokens, piece / 2 * 8, 4, table, x + col / 4 * line, col >> shift, sums);
        else
            strip(way, s, sets, tokens, way.bits == 4 ? piece / 2 * 8 : piece * 8, 0, table, x + col / 4 * line,
                  col >> shift, sums);
    }
}

INLINE void store_sums(const ql_product *p, size_t col, size_t count, const __m512 *sums)
{
    __mmask16 lanes = count < LANES ? (__mmask16)((1u << count) - 1) : 0xffff;
    for (size_t t = 0; t < p->m; t++) {
        float *y = p->y + t * p->ldy + col;
        __m512 sum = p->add ? _mm512_add_ps(sums[t], _mm512_maskz_loadu_ps(lanes, y)) : sums[t];
        _mm512_mask_storeu_ps(y, lanes, sum);
    }
}

/* `sets` times 16 outputs from `row` on, of which those up to `last` exist. */
INLINE void outputs(few_way way, const ql_product *p, size_t row, size_t last, size_t sets, size_t tokens, __m512 table,
                    const float *packed)
{
    const ql_wview *w = p->w;
    const size_t step = 512 / way.bits, spans = (size_t)LANES * w->format.group;
    row_set s[MOST_SETS];
    __m512 sums[MOST_SETS * QL_FEW_MOST];
    for (size_t i = 0; i < sets; i++)
        for (size_t r = 0; r < LANES; r++) {
            size_t own = row + i * LANES + r;
            s[i].lines[r] = (const char *)w->codes + (own < last ? own : last) * w->row_bytes;
        }
    for (size_t i = 0; i < sets * tokens; i++)
        sums[i] = _mm512_setzero_ps();
    for (size_t at = 0, byte = 0; at < w->k; at += step, byte += 64) {
        for (size_t i = 0; i < sets; i++) {
            turn_rows(s[i].lines, byte, w->row_bytes - byte < 64 ? 0x00ff : 0xffff, s[i].words);
            if (at % spans == 0)
                load_scales(&s[i], w, row + i * LANES, last, at / w->format.group);
        }
        size_t ahead = at + step < w->k ? byte + 64 : sets * LANES * w->row_bytes;
        chunk(way, s, sets, tokens, w, at, s->lines[0] + ahead, table, packed, sums);
    }
    for (size_t i = 0; i < sets && row + i * LANES <= last; i++)
        store_sums(p, row + i * LANES, last + 1 - row - i * LANES, sums + i * tokens);
}

/* Two sets of rows while their sums fit into registers. */
INLINE void rows_of(few_way way, const ql_product *p, ql_tile t, size_t tokens, __m512 table, const float *packed)
{
    size_t sets = tokens <= 12 ? 2 : 1;
    for (size_t row = t.col; row < t.col + t.cols; row += sets * LANES)
        outputs(way, p, row, t.col + t.cols - 1, sets, tokens, table, packed);
}

INLINE void few_avx512(few_way way, const ql_product *p, ql_tile t, __m512 table, const float *packed)
{
    switch (ql_few_tokens(p->m)) {
    case 2:
        rows_of(way, p, t, 2, table, packed);
        break;
    case 4:
        rows_of(way, p, t, 4, table, packed);
        break;
    case 6:
        rows_of(way, p, t, 6, table, packed);
        break;
    case 8:
        rows_of(way, p, t, 8, table, packed);
        break;
    case 10:
        rows_of(way, p, t, 10, table, packed);
        break;
    case 12:
        rows_of(way, p, t, 12, table, packed);
        break;
    case 14:
        rows_of(way, p, t, 14, table, packed);
        break;
    default:
        rows_of(way, p, t, 16, table, packed);
    }
}

/* Sixteen columns of x from `col` on, turned: turned[i][token], with zeros where there is no column or token. */
static inline void turn_x(const ql_product *p, size_t col, __m512i turned[WORDS])
{
    size_t count = col < p->w->k ? p->w->k - col : 0;
    const char *rows[LANES];
    for (size_t t = 0; t < LANES; t++)
        rows[t] = (const char *)(p->x + (t < p->m ? t : 0) * p->ldx);
    turn_rows(rows, col * sizeof(float), count < WORDS ? (__mmask16)((1u << count) - 1) : 0xffff, turned);
    for (size_t i = 0; i < WORDS; i++)
        turned[i] = _mm512_maskz_mov_epi32((__mmask16)((1u << p->m) - 1), turned[i]);
}

#undef INLINE
#endif
