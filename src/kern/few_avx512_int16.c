#include "kern/fixed_avx512.h"

static inline __m512 few_step(__m512 sum, __m512 x, __m512 w)
{
    return (__m512)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
}

/* Two values a word, as in few_avx512_bf16.c: columns 0 and 2, or 1 and 3, of four. */
static inline __m512 few_value(size_t bits, __m512i word, unsigned shift, __m512 table)
{
    if (bits == 4)
        return (__m512)_mm512_permutexvar_epi16(_mm512_srli_epi16(word, shift), (__m512i)table);
    return (__m512)_mm512_srai_epi16(_mm512_slli_epi16(word, 8 - shift), 8);
}

#include "kern/few_avx512.h"

/* Integer sums have a block's 64 products: x takes 14 bits if the sum of its magnitudes allows it, which is nearly so,
 * and a table's largest value 2^13. */
enum { TABLE_BITS = 13, BITS = 14, MOST = (1 << BITS) - 1, SUM_BITS = 18, BLOCK_WORDS = 2 * WORDS + 3 };

/* So that no sum of magnitudes, and half a unit more for the rounding of each, reaches 2^SUM_BITS units. */
static float unit_of(const float *x, size_t count)
{
    __m512 sums = _mm512_setzero_ps();
    for (size_t i = 0; i < count; i += LANES) {
        __mmask16 lanes = count - i < LANES ? (__mmask16)((1u << (count - i)) - 1) : 0xffff;
        sums = _mm512_add_ps(sums, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes, x + i)));
    }
    float sum = _mm512_reduce_add_ps(sums), unit = fixed_unit(largest_bits(x, count), BITS);
    while (sum / unit > (float)((1 << SUM_BITS) - QL_BLOCK))
        unit *= 2;
    return unit;
}

/* Packs one block: for every four columns their pairs (0, 2) and (1, 3), two starts and a factor, each [token]. */
static void pack_block(const ql_product *p, size_t at, float table_unit, float *out)
{
    static const uint16_t pairs[32] = {0,  2,  1,  3,  4,  6,  5,  7,  8,  10, 9,  11, 12, 14, 13, 15,
                                       16, 18, 17, 19, 20, 22, 21, 23, 24, 26, 25, 27, 28, 30, 29, 31};
    const size_t tokens = ql_few_tokens(p->m), left = at < p->w->k ? p->w->k - at : 0;
    const size_t count = left < QL_BLOCK ? left : QL_BLOCK;
    __m512i line[2][LANES];
    float factors[LANES] = {0};
    for (size_t t = 0; t < LANES; t++)
        line[0][t] = line[1][t] = _mm512_setzero_si512();
    for (size_t t = 0; t < p->m && count; t++) {
        const float *x = p->x + t * p->ldx + at;
        float unit = unit_of(x, count);
        for (size_t i = 0; i < 2; i++) {
            size_t have = count > HALF * i ? count - HALF * i : 0;
            line[i][t] = _mm512_permutexvar_epi16(_mm512_loadu_si512(pairs), fixed32(x + HALF * i, have, unit, MOST));
        }
        factors[t] = unit * table_unit;
    }
    for (size_t i = 0; i < 2; i++) {
        turn16(line[i]);
        for (size_t j = 0; j < WORDS; j++, out += tokens)
            _mm512_mask_storeu_epi32(out, (__mmask16)((1u << tokens) - 1), line[i][j]);
    }
    memset(out, 0, 2 * tokens * sizeof *out);
    memcpy(out + 2 * tokens, factors, tokens * sizeof *out);
}

/* Packs chunk `index` of x. */
void ql_few_int16_pack(const ql_product *p, ql_plan plan, size_t index)
{
    float *out = (float *)p->packed + index * (CHUNK / QL_BLOCK) * ql_few_tokens(p->m) * BLOCK_WORDS, table_unit = 1;
    (void)plan;
    if (p->w->table)
        fixed_table(p->w->table, TABLE_BITS, &table_unit);
    for (size_t at = 0; at < CHUNK; at += QL_BLOCK, out += ql_few_tokens(p->m) * BLOCK_WORDS)
        pack_block(p, index * CHUNK + at, table_unit, out);
}

void ql_few_int16_tile(const ql_product *p, ql_tile t, void *scratch)
{
    const few_way four = {4, 2, true}, eight = {8, 2, true};
    float unit;
    (void)scratch;
    if (p->w->table)
        few_avx512(four, p, t, (__m512)fixed_table(p->w->table, TABLE_BITS, &unit), p->packed);
    else
        few_avx512(eight, p, t, _mm512_setzero_ps(), p->packed);
}
