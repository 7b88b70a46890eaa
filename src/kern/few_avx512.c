#include "kern/few_avx512.h"

static inline __m512 step_f32(__m512 sum, __m512 x, __m512 w)
{
    return _mm512_fmadd_ps(x, w, sum);
}

/* vpermps looks at the low four bits of a word only. */
static inline __m512 value_4bit(__m512i word, unsigned shift, __m512 table)
{
    return _mm512_permutexvar_ps(_mm512_srli_epi32(word, shift), table);
}

static inline __m512 value_int8(__m512i word, unsigned shift, __m512 table)
{
    (void)table;
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(word, 24 - shift), 24));
}

/* Packs chunk `index` of x: [column][token]. */
void ql_few_avx512_pack(const ql_product *p, ql_plan plan, size_t index, void *out_bytes)
{
    float *packed = out_bytes;
    (void)plan;
    size_t tokens = ql_few_tokens(p->m), from = index * CHUNK;
    for (size_t col = from; col < from + CHUNK; col += WORDS) {
        __m512i turned[WORDS];
        turn_x(p, col, turned);
        for (size_t i = 0; i < WORDS; i++)
            _mm512_mask_storeu_epi32(packed + (col + i) * tokens, (__mmask16)((1u << tokens) - 1), turned[i]);
    }
}

void ql_few_avx512_tile(const ql_product *p, ql_tile t, const void *packed, void *scratch)
{
    (void)scratch;
    const few_way four = {value_4bit, step_f32, 4, 4, false}, eight = {value_int8, step_f32, 8, 4, false};
    if (p->w->table)
        few_avx512(four, p, t, _mm512_loadu_ps(p->w->table), packed);
    else
        few_avx512(eight, p, t, _mm512_setzero_ps(), packed);
}
