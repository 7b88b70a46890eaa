/* The kernel of few.h for AVX-512. A file defines few_value(), the values of 16 rows that a word of theirs stands for from
 * a bit on, and few_step(), what one step does with a sum, a word of x and those, and then includes this once. Only for
 * files compiled for AVX-512. */
#ifndef QL_SRC_KERN_FEW_AVX512_H
#define QL_SRC_KERN_FEW_AVX512_H

#include "kern/few.h"
#include "kern/scales_avx512.h"
#include "kern/turn_avx512.h"

/* A chunk is 64 bytes of every row; half of a 64-block may have a scale of its own. */
enum { LANES = 16, WORDS = 16, HALF = 32, CHUNK = 2 * QL_BLOCK, MOST_SETS = QL_FEW_WIDTH / LANES };

/* How far ahead in every row codes are prefetched, in bytes, and only into the second-level cache: rows a power of two
 * apart share few sets of the first. */
enum { AHEAD = 512 };

/* How codes of `bits` become terms: a word has `terms` for half a block. With `integers`, sums of a block are integers;
 * its x ends with three words a token: what they start from, for each half, and what they are multiplied with. */
typedef struct few_way {
    size_t bits, terms;
    bool integers;
} few_way;

#define INLINE static inline __attribute__((always_inline))
/* Sums must stay in registers; each compiler has its own word for that. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* out[j] = word j, `at` bytes on, of rows 0..15, for the words of the mask; others are 0 and not read. */
INLINE void turn_rows(const char *const rows[LANES], size_t at, __mmask16 words, __m512i out[WORDS])
{
    __m512i line[LANES];
    UNROLL
    for (size_t r = 0; r < LANES; r++)
        line[r] = _mm512_maskz_loadu_epi32(words, rows[r] + at);
    turn16(line);
    UNROLL
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

/* Words of packed x that a token has for a block. */
INLINE size_t block_words(few_way way)
{
    return 2 * 8 * way.terms + (way.integers ? 3 : 0);
}

/* Sums of a part of a block. A few sums would wait for each other: they are halved. */
typedef struct few_part {
    __m512 sums[2][MOST_SETS][QL_FEW_MOST];
} few_part;

INLINE void begin_part(few_way way, few_part *part, size_t sets, size_t tokens, size_t chains, const float *from)
{
    UNROLL
    for (size_t c = 0; c < chains; c++)
        UNROLL
        for (size_t t = 0; t < tokens; t++)
            UNROLL
            for (size_t i = 0; i < sets; i++)
                part->sums[c][i][t] = way.integers && c == 0 ? _mm512_set1_ps(from[t]) : _mm512_setzero_ps();
}

/* sums += scale * part. */
INLINE void end_part(few_way way, const few_part *part, const row_set *s, size_t sets, size_t tokens, size_t chains,
                     size_t group, const float *factors, __m512 *sums)
{
    UNROLL
    for (size_t i = 0; i < sets; i++) {
        __m512 scale = _mm512_load_ps(s[i].scales[group % LANES]);
        UNROLL
        for (size_t t = 0; t < tokens; t++) {
            __m512 first = part->sums[0][i][t], all = first, by = scale;
            if (way.integers) {
                __m512i sum = (__m512i)first;
                if (chains == 2)
                    sum = _mm512_add_epi32(sum, (__m512i)part->sums[1][i][t]);
                all = _mm512_cvtepi32_ps(sum);
                by = _mm512_mul_ps(scale, _mm512_set1_ps(factors[t]));
            } else if (chains == 2) {
                all = _mm512_add_ps(first, part->sums[1][i][t]);
            }
            sums[i * tokens + t] = _mm512_fmadd_ps(all, by, sums[i * tokens + t]);
        }
    }
}

/* part += the products of 32 columns: eight words of every row from `first` on, each a byte or a nibble (from bit `bit`
 * on) for four columns. */
INLINE void half_block(few_way way, few_part *part, const row_set *s, size_t sets, size_t tokens, size_t chains,
                       size_t first, unsigned bit, __m512 table, const float *x)
{
    for (size_t j = first; j < first + 8; j++)
        UNROLL
        for (unsigned b = 0; b < way.terms; b++, x += tokens) {
            __m512 value[MOST_SETS];
            UNROLL
            for (size_t i = 0; i < sets; i++)
                value[i] = few_value(way.bits, s[i].words[j], 8 * b + bit, table);
            UNROLL
            for (size_t t = 0; t < tokens; t++) {
                __m512 one = _mm512_set1_ps(x[t]);
                UNROLL
                for (size_t i = 0; i < sets; i++)
                    part->sums[b % chains][i][t] = few_step(part->sums[b % chains][i][t], one, value[i]);
            }
        }
}

/* Adds what a 64-block contributes, whose words start at `first` of the chunk's. */
INLINE void block(few_way way, const row_set *s, size_t sets, size_t tokens, const ql_wview *w, size_t first, size_t at,
                  __m512 table, const float *x, __m512 *sums)
{
    const size_t chains = sets * tokens <= 8 && way.terms > 1 ? 2 : 1;
    const size_t half = 8 * way.terms * tokens;
    const unsigned shift = (unsigned)__builtin_ctz(w->format.group);
    const float *starts = x + 2 * half, *factors = starts + 2 * tokens;
    few_part part;
    begin_part(way, &part, sets, tokens, chains, starts);
    half_block(way, &part, s, sets, tokens, chains, first, 0, table, x);
    if (w->format.group == HALF) {
        end_part(way, &part, s, sets, tokens, chains, at >> shift, factors, sums);
        begin_part(way, &part, sets, tokens, chains, starts + tokens);
    }
    half_block(way, &part, s, sets, tokens, chains, way.bits == 4 ? first : first + 8, way.bits == 4 ? 4 : 0, table,
               x + half);
    if (at + HALF < w->k || w->format.group > HALF) /* else there is no such scale */
        end_part(way, &part, s, sets, tokens, chains, (at + HALF) >> shift, factors, sums);
}

/* Adds what the columns of 64 bytes of codes from `at` on contribute. `next` is where the codes of the first row are
 * wanted next; between the blocks all the rows' are prefetched. */
INLINE void chunk(few_way way, const row_set *s, size_t sets, size_t tokens, const ql_wview *w, size_t at,
                  const char *next, __m512 table, const float *x, __m512 *sums)
{
    const size_t blocks = way.bits == 4 ? 2 : 1;
    for (size_t i = 0; i < blocks && at < w->k; i++, at += QL_BLOCK) {
        for (size_t r = 0; r < sets * LANES / blocks; r++, next += w->row_bytes)
            _mm_prefetch(next, _MM_HINT_T1);
        block(way, s, sets, tokens, w, 8 * i, at, table, x + at / QL_BLOCK * block_words(way) * tokens, sums);
    }
}

INLINE void store_sums(const ql_product *p, size_t token, size_t tokens, size_t col, size_t count, const __m512 *sums)
{
    __mmask16 lanes = count < LANES ? (__mmask16)((1u << count) - 1) : 0xffff;
    for (size_t t = 0; t < tokens; t++) {
        float *y = p->y + (token + t) * p->ldy + col;
        __m512 sum = p->add ? _mm512_add_ps(sums[t], _mm512_maskz_loadu_ps(lanes, y)) : sums[t];
        _mm512_mask_storeu_ps(y, lanes, sum);
    }
}

/* Some tokens of a product, in even numbers and up to 16, of which `store` exist, with their packed x. */
typedef struct few_tokens {
    size_t from, count, store;
    const float *packed;
} few_tokens;

/* `sets` times 16 outputs from `row` on, of which those up to `last` exist. */
INLINE void outputs(few_way way, const ql_product *p, size_t row, size_t last, size_t sets, few_tokens few, __m512 table)
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
    for (size_t i = 0; i < sets * few.count; i++)
        sums[i] = _mm512_setzero_ps();
    for (size_t at = 0, byte = 0; at < w->k; at += step, byte += 64) {
        for (size_t i = 0; i < sets; i++) {
            turn_rows(s[i].lines, byte, w->row_bytes - byte < 64 ? 0x00ff : 0xffff, s[i].words);
            if (at % spans == 0)
                load_scales(&s[i], w, row + i * LANES, last, at / w->format.group);
        }
        size_t ahead = byte + AHEAD + (byte + AHEAD < w->row_bytes ? 0 : (sets * LANES - 1) * w->row_bytes);
        chunk(way, s, sets, few.count, w, at, s->lines[0] + ahead, table, few.packed, sums);
    }
    for (size_t i = 0; i < sets && row + i * LANES <= last; i++)
        store_sums(p, few.from, few.store, row + i * LANES, last + 1 - row - i * LANES, sums + i * few.count);
}

/* The outputs of a rectangle, from `row` on, 32 or as many as there are; two sets of rows while their sums fit into
 * registers. */
INLINE void strip_of(few_way way, const ql_product *p, size_t row, size_t last, few_tokens few, size_t count,
                     __m512 table)
{
    few.count = count; /* a constant from here on */
    if (count <= 12) {
        outputs(way, p, row, last, 2, few, table);
        return;
    }
    outputs(way, p, row, last, 1, few, table);
    if (row + LANES <= last)
        outputs(way, p, row + LANES, last, 1, few, table);
}

INLINE void strip(few_way way, const ql_product *p, size_t row, size_t last, few_tokens few, __m512 table)
{
    switch (few.count) {
    case 2:
        strip_of(way, p, row, last, few, 2, table);
        break;
    case 4:
        strip_of(way, p, row, last, few, 4, table);
        break;
    case 6:
        strip_of(way, p, row, last, few, 6, table);
        break;
    case 8:
        strip_of(way, p, row, last, few, 8, table);
        break;
    case 10:
        strip_of(way, p, row, last, few, 10, table);
        break;
    case 12:
        strip_of(way, p, row, last, few, 12, table);
        break;
    case 14:
        strip_of(way, p, row, last, few, 14, table);
        break;
    default:
        strip_of(way, p, row, last, few, 16, table);
    }
}

/* The outputs of a rectangle for all of its tokens, packed sixteen by sixteen. */
INLINE void few_avx512(few_way way, const ql_product *p, ql_tile t, __m512 table, const float *packed)
{
    const size_t words = ql_few_padded(p->w) / QL_BLOCK * block_words(way);
    for (size_t row = t.col; row < t.col + t.cols; row += QL_FEW_WIDTH)
        for (size_t token = t.row; token < t.row + t.rows; token += QL_FEW_MOST) {
            size_t count = p->m - token < QL_FEW_MOST ? p->m - token : QL_FEW_MOST;
            few_tokens few = {token, ql_few_tokens(count), count, packed + token * words};
            strip(way, p, row, t.col + t.cols - 1, few, table);
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

#undef UNROLL
#undef INLINE
#endif
