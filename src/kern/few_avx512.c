#include <immintrin.h>
#include <stddef.h>

static inline __m512 few_step(__m512 sum, __m512 x, __m512 w)
{
    return _mm512_fmadd_ps(x, w, sum);
}

/* vpermps looks at the low four bits of a word only. */
static inline __m512 few_value(size_t bits, __m512i word, unsigned shift, __m512 table)
{
    if (bits == 4)
        return _mm512_permutexvar_ps(_mm512_srli_epi32(word, shift), table);
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(word, 24 - shift), 24));
}

#include "kern/few_avx512.h"

/* Packs chunk `index` of x: [column][token]. */
void ql_few_avx512_pack(const ql_product *p, ql_plan plan, size_t index)
{
    float *packed = p->packed;
    (void)plan;
    size_t tokens = ql_few_tokens(p->m), from = index * CHUNK;
    for (size_t col = from; col < from + CHUNK; col += WORDS) {
        __m512i turned[WORDS];
        turn_x(p, col, turned);
        for (size_t i = 0; i < WORDS; i++)
            _mm512_mask_storeu_epi32(packed + (col + i) * tokens, (__mmask16)((1u << tokens) - 1), turned[i]);
    }
}

void ql_few_avx512_tile(const ql_product *p, ql_tile t, void *scratch)
{
    (void)scratch;
    const few_way four = {4, 4, false}, eight = {8, 4, false};
    if (p->w->table)
        few_avx512(four, p, t, _mm512_loadu_ps(p->w->table), p->packed);
    else
        few_avx512(eight, p, t, _mm512_setzero_ps(), p->packed);
}
