#include "kern/gemv.h"

#include "kern/fixed_avx512.h"
#include "kern/spans_avx512.h"
#include "kern/units_avx512.h"

/* x in fixed point of 14 bits and a sign, in powers of two of its own for all columns that share a scale; a table's
 * values of 14 bits likewise. A lane of integers gets eight products at most: 8 * 2^14 * (2^14 - 1) < 2^31.
 *
 * One token meets 4-bit codes by bytes instead (gemv_avx512_digits.c); for more, of which each takes more products that
 * way, there is no gain.
 *
 * Why not bf16: some processors take two cycles over a vdpbf16ps and half of one over this, and it loses less.
 *
 * A row is one stream of units of 64 bytes. */
enum { BITS = 14, MOST = (1 << BITS) - 1, RUN = 32, UNIT = 128, LANES = 16, ROWS = 4 };
enum { AT_ONCE = QL_GEMV_INT16_TOKENS };

#define INLINE static inline __attribute__((always_inline))

/* Packed x of a token: the integers of its padded columns, and from here on what they stand for, a factor for all
 * columns that share a scale of W. */
static size_t factors_at(const ql_wview *w)
{
    return ql_gemv_padded(w) / 2;
}

static bool by_digits(const ql_product *p)
{
    return p->m == 1 && p->w->table;
}

static void pack_factors(const ql_product *p, const float *x, float *units, float *factors)
{
    float table_unit = 1;
    if (p->w->table)
        fixed_table(p->w->table, BITS, &table_unit);
    size_t k = p->w->k, group = p->w->format.group, end = ql_gemv_padded(p->w);
    for (size_t g = 0; g * group < end; g++) {
        size_t at = g * group, left = at < k ? k - at : 0;
        units[g] = fixed_unit(largest_bits(x + (left ? at : 0), left < group ? left : group), BITS);
        factors[g] = units[g] * table_unit;
    }
}

/* Puts x in the order in which the codes come out of a unit, and zeros where W is padded. */
void ql_gemv_int16_pack(const ql_product *p, ql_plan plan, size_t token)
{
    (void)plan;
    if (by_digits(p)) {
        ql_gemv_digits_pack(p);
        return;
    }
    const ql_wview *w = p->w;
    size_t k = w->k, end = ql_gemv_padded(w), shift = (size_t)__builtin_ctz(w->format.group);
    const float *x = p->x + token * p->ldx;
    float *own = (float *)p->packed + token * end, units[QL_GEMV_SCALES + QL_GEMV_SLACK];
    pack_factors(p, x, units, own + factors_at(w));
    uint16_t *out = (uint16_t *)(void *)own;
    for (size_t at = 0; at < end; at += UNIT, out += UNIT) {
        __m512i runs[4];
        for (size_t i = 0; i < 4; i++) {
            size_t from = at + i * RUN, left = from < k ? k - from : 0;
            runs[i] = fixed32(x + (left ? from : 0), left, units[from >> shift], MOST);
        }
        if (w->table)
            deal_unit(runs, out);
        else
            memcpy(out, runs, sizeof runs);
    }
}

/* What a row's integer sums are multiplied with, [group], and zeros after them. */
static inline void multiply_scales(size_t groups, const float *scales, const float *factors, float *out)
{
    size_t g = 0;
    for (; g + LANES <= groups; g += LANES)
        _mm512_storeu_ps(out + g, _mm512_mul_ps(_mm512_loadu_ps(scales + g), _mm512_loadu_ps(factors + g)));
    __mmask16 lanes = (__mmask16)((1u << (groups - g)) - 1);
    _mm512_storeu_ps(out + g, _mm512_maskz_mul_ps(lanes, _mm512_loadu_ps(scales + g), _mm512_loadu_ps(factors + g)));
}

/* Packed x of some tokens, and a row's factors. */
typedef struct tokens_of {
    size_t ldx;
    const int16_t *x;
    float factors[AT_ONCE][QL_GEMV_SCALES + 2 * QL_GEMV_SLACK];
} tokens_of;

/* From memory into the second-level cache. */
INLINE void fetch(const char *codes)
{
    enum { AHEAD = 8192 };
    _mm_prefetch(codes + AHEAD, _MM_HINT_T1);
}

/* Lanes 0 to 7 have the columns of a unit's first 64-block, the others those of the second. In groups of 32 low and
 * high nibbles have scales of their own. */
INLINE void unit_words(__m512 sums[AT_ONCE], size_t group, __m512i table, __m512i code, const tokens_of *tokens,
                       size_t count, size_t unit, const float *factors, __m512i low, __m512i high)
{
    __m512i part[2][AT_ONCE];
#pragma GCC unroll 4
    for (unsigned n = 0; n < 4; n++) {
        __m512i value = _mm512_permutexvar_epi16(_mm512_srli_epi16(code, 4 * n), table);
        unsigned chain = group == 32 ? n % 2 : 0;
#pragma GCC unroll 4
        for (size_t t = 0; t < count; t++) {
            __m512i xs = _mm512_load_si512(tokens->x + t * tokens->ldx + unit * UNIT + n * RUN);
            part[chain][t] = n <= chain ? _mm512_madd_epi16(value, xs) : _mm512_dpwssd_epi32(part[chain][t], value, xs);
        }
    }
#pragma GCC unroll 4
    for (size_t t = 0; t < count; t++, factors += sizeof *tokens->factors / sizeof *factors) {
        __m512 sum = _mm512_cvtepi32_ps(part[0][t]);
        if (group >= UNIT) {
            sums[t] = _mm512_fmadd_ps(sum, _mm512_set1_ps(*factors), sums[t]);
            continue;
        }
        __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(factors));
        sums[t] = _mm512_fmadd_ps(sum, _mm512_permutexvar_ps(low, four), sums[t]);
        if (group == 32)
            sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[1][t]), _mm512_permutexvar_ps(high, four), sums[t]);
    }
}

/* `group` is a constant where this is inlined: 32, 64, or 128 for all that are larger. */
INLINE void row_4bit(__m512 sums[AT_ONCE], const ql_wview *w, size_t group, __m512i table, const char *line,
                     const tokens_of *tokens, size_t count)
{
    const unsigned shift = (unsigned)__builtin_ctz(group < UNIT ? (unsigned)group : w->format.group);
    const __m512i second = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i low = group == 32 ? _mm512_slli_epi32(second, 1) : second;
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(1));
    const size_t whole = (w->k + UNIT - QL_BLOCK - 1) / UNIT;
    for (size_t u = 0; u < whole; u++) {
        fetch(line + u * (UNIT / 2));
        unit_words(sums, group, table, _mm512_loadu_si512(line + u * (UNIT / 2)), tokens, count, u,
                  tokens->factors[0] + (group < UNIT ? u * (UNIT / group) : u * UNIT >> shift), low, high);
    }
    if (whole * UNIT < w->k) /* half a unit */
        unit_words(sums, group, table, _mm512_maskz_loadu_epi32(0xff, line + whole * UNIT / 2), tokens, count, whole,
                  tokens->factors[0] + (whole * UNIT >> shift), low, high);
}

INLINE void row_int8(__m512 sums[AT_ONCE], const ql_wview *w, bool split, const char *line, const tokens_of *tokens,
                     size_t count)
{
    const unsigned shift = (unsigned)__builtin_ctz(w->format.group);
    for (size_t at = 0; at < w->k; at += QL_BLOCK) {
        fetch(line + at);
        __m512i first = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(line + at)));
        __m512i second = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(line + at + RUN)));
#pragma GCC unroll 4
        for (size_t t = 0; t < count; t++) {
            const int16_t *x = tokens->x + t * tokens->ldx + at;
            const float *factor = tokens->factors[t] + (at >> shift);
            __m512i part = _mm512_madd_epi16(first, _mm512_load_si512(x));
            if (split) {
                __m512i other = _mm512_madd_epi16(second, _mm512_load_si512(x + RUN));
                sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(other), _mm512_set1_ps(factor[1]), sums[t]);
            } else {
                part = _mm512_dpwssd_epi32(part, second, _mm512_load_si512(x + RUN));
            }
            sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), _mm512_set1_ps(*factor), sums[t]);
        }
    }
}

INLINE void one_row(__m512 out[AT_ONCE], const ql_wview *w, size_t row, __m512i table, const tokens_of *tokens,
                    size_t count)
{
    const char *line = (const char *)w->codes + row * w->row_bytes;
    __m512 sums[AT_ONCE] = {0};
    if (w->table && w->format.group == 32)
        row_4bit(sums, w, 32, table, line, tokens, count);
    else if (w->table && w->format.group == 64)
        row_4bit(sums, w, 64, table, line, tokens, count);
    else if (w->table)
        row_4bit(sums, w, UNIT, table, line, tokens, count);
    else if (w->format.group == 32)
        row_int8(sums, w, true, line, tokens, count);
    else
        row_int8(sums, w, false, line, tokens, count);
    for (size_t t = 0; t < count; t++)
        out[t] = sums[t];
}

INLINE void all_rows(const ql_product *p, ql_tile t, size_t count, const float *packed)
{
    const ql_wview *w = p->w;
    size_t groups = ql_row_groups(w), most = QL_GEMV_SCALES / groups, padded = ql_gemv_padded(w);
    float scales[QL_GEMV_SCALES + 2 * QL_GEMV_SLACK], unit;
    const __m512i table = w->table ? fixed_table(w->table, BITS, &unit) : _mm512_setzero_si512();
    tokens_of tokens; /* not cleared, as an initializer would */
    tokens.ldx = 2 * padded;
    tokens.x = (const int16_t *)(const void *)packed;
    __m512 sums[AT_ONCE][ROWS] = {{{0}}};
    for (size_t i = 0; i < t.cols; i++) {
        size_t row = t.col + i, at = i % most, left = t.cols - i;
        if (at == 0)
            decode_scales_avx512(w, row * groups, (left < most ? left : most) * groups, scales);
        for (size_t n = 0; n < count; n++)
            multiply_scales(groups, scales + at * groups, packed + n * padded + factors_at(w), tokens.factors[n]);
        __m512 own[AT_ONCE];
        one_row(own, w, row, table, &tokens, count);
        for (size_t n = 0; n < count; n++) {
            sums[n][i % ROWS] = own[n];
            if (i % ROWS == ROWS - 1 || left == 1)
                write_sums(p, n, row - i % ROWS, i % ROWS + 1, sums[n]);
        }
    }
}

void ql_gemv_int16_tile(const ql_product *p, ql_tile t, void *scratch)
{
    (void)scratch;
    if (by_digits(p)) {
        ql_gemv_digits_tile(p, t);
        return;
    }
    switch (p->m) {
    case 1:
        all_rows(p, t, 1, p->packed);
        break;
    case 2:
        all_rows(p, t, 2, p->packed);
        break;
    case 3:
        all_rows(p, t, 3, p->packed);
        break;
    default:
        all_rows(p, t, 4, p->packed);
    }
}
