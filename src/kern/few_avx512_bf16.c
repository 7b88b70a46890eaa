#include <stddef.h>

#include "kern/pairs_avx512.h"

static inline __m512 few_step(__m512 sum, __m512 x, __m512 w)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
}

/* Two values a word, of the nibbles in its halves' low bits after the shift: columns 0 and 2, or 1 and 3, of four.
 * vpermw looks at five bits, so the table stands there twice. */
static inline __m512 few_value(size_t bits, __m512i word, unsigned shift, __m512 table)
{
    (void)bits;
    return (__m512)_mm512_permutexvar_epi16(_mm512_srli_epi16(word, shift), (__m512i)table);
}

#include "kern/few_avx512.h"

/* Packs chunk `index` of x: for every four columns their pairs (0, 2) and (1, 3), each [token]. */
void ql_few_avx512_bf16_pack(const ql_product *p, ql_plan plan, size_t index)
{
    float *packed = p->packed;
    (void)plan;
    size_t tokens = ql_few_tokens(p->m), from = index * CHUNK;
    float *out = packed + from / 2 * tokens;
    for (size_t col = from; col < from + CHUNK; col += WORDS) {
        __m512i turned[WORDS];
        turn_x(p, col, turned);
        for (size_t i = 0; i < WORDS; i += i % 4 == 1 ? 3 : 1, out += tokens)
            _mm512_mask_storeu_epi32(out, (__mmask16)((1u << tokens) - 1),
                                     join_bf16((__m512)turned[i], (__m512)turned[i + 2]));
    }
}

void ql_few_avx512_bf16_tile(const ql_product *p, ql_tile t, void *scratch)
{
    (void)scratch;
    const few_way pairs = {4, 2, false};
    few_avx512(pairs, p, t, (__m512)table_bf16(p->w->table), p->packed);
}
