#include "kern/int8_avx512.h"

static inline __m512 few_step(__m512 sum, __m512 x, __m512 w)
{
    return (__m512)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}

static inline __m512 few_value(size_t bits, __m512i word, unsigned shift, __m512 table)
{
    return (__m512)(bits == 4 ? int8_of_nibbles(word, shift, (__m512i)table) : int8_of_bytes(word));
}

#include "kern/few_avx512.h"

enum { BLOCK_WORDS = 2 * 8 + 3 };

size_t ql_few_int8_packed(const ql_product *p)
{
    return p->transposed ? 0 : ql_few_padded(p->w) / QL_BLOCK * ql_few_tokens(p->m) * BLOCK_WORDS * sizeof(float);
}

ql_plan ql_few_int8_plan(const ql_product *p, size_t threads)
{
    enum { MOST_ROWS = 128 };
    ql_plan plan = ql_few_plan(p, threads);
    plan.rows = MOST_ROWS;
    plan.packed = ql_few_int8_packed(p);
    plan.packs = (p->m + QL_FEW_MOST - 1) / QL_FEW_MOST;
    return plan;
}

/* Packs one block of up to sixteen tokens: sixteen words, two starts and a factor, each [token]. */
static void pack_block(const ql_product *p, size_t token, size_t count, size_t at, float step, float *out)
{
    size_t tokens = ql_few_tokens(count), left = at < p->w->k ? p->w->k - at : 0;
    const bool split = p->w->format.group == HALF;
    __m512i line[LANES];
    int32_t starts[2][LANES] = {{0}};
    float factors[LANES] = {0};
    for (size_t t = 0; t < LANES; t++)
        line[t] = _mm512_setzero_si512();
    for (size_t t = 0; t < count; t++) {
        line[t] = quantize64(p->x + (token + t) * p->ldx + at, left, &factors[t]);
        __m512i four = int8_starts(line[t]);
        starts[0][t] = _mm512_mask_reduce_add_epi32(split ? 0x00ff : 0xffff, four);
        starts[1][t] = split ? _mm512_mask_reduce_add_epi32(0xff00, four) : 0;
        factors[t] *= step;
    }
    turn16(line);
    for (size_t j = 0; j < WORDS; j++, out += tokens)
        _mm512_mask_storeu_epi32(out, (__mmask16)((1u << tokens) - 1), line[j]);
    memcpy(out, starts[0], tokens * sizeof *out);
    memcpy(out + tokens, starts[1], tokens * sizeof *out);
    memcpy(out + 2 * tokens, factors, tokens * sizeof *out);
}

/* Packs the sixteen tokens `index`. */
void ql_few_int8_pack(const ql_product *p, ql_plan plan, size_t index)
{
    size_t token = index * QL_FEW_MOST, end = ql_few_padded(p->w);
    size_t count = p->m - token < QL_FEW_MOST ? p->m - token : QL_FEW_MOST;
    float *out = (float *)p->packed + end / QL_BLOCK * token * BLOCK_WORDS, step = 1;
    (void)plan;
    if (p->w->table)
        int8_table(p->w->table, &step);
    for (size_t at = 0; at < end; at += QL_BLOCK, out += ql_few_tokens(count) * BLOCK_WORDS)
        pack_block(p, token, count, at, step, out);
}

void ql_few_int8_tile(const ql_product *p, ql_tile t, void *scratch)
{
    const few_way four = {4, 1, true}, eight = {8, 1, true};
    float step;
    (void)scratch;
    if (p->w->table)
        few_avx512(four, p, t, (__m512)int8_table(p->w->table, &step), p->packed);
    else
        few_avx512(eight, p, t, _mm512_setzero_ps(), p->packed);
}
