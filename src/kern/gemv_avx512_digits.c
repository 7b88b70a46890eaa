#include "kern/gemv.h"

#include "kern/digits_avx512.h"

struct lookup {
    digits of;
    bool whole; /* a constant where this is inlined */
};
#include "kern/rows_avx512.h"

/* One token and 4-bit codes. Packed x: its digits, in powers of two of its own for every block of 64 columns, and after
 * all of them what sums of a block's products stand for. */
static size_t units_bytes(const ql_wview *w)
{
    return ql_gemv_padded(w) / (2 * QL_BLOCK) * sizeof(digits_unit);
}

static float *packed_factors(const ql_product *p)
{
    return (float *)(void *)((char *)p->packed + units_bytes(p->w));
}

void ql_gemv_digits_pack(const ql_product *p)
{
    const ql_wview *w = p->w;
    digits_unit *out = p->packed;
    float *factors = packed_factors(p), table_unit;
    const bool whole = digits_whole(digits_table(w->table, &table_unit));
    memset(factors, 0, span_factors(w) * sizeof *factors);
    for (size_t at = 0; at < w->k; at += 2 * QL_BLOCK) {
        __m512i runs[4];
        for (size_t block = 0; block < 2; block++) {
            size_t from = at + block * QL_BLOCK, left = from < w->k ? w->k - from : 0;
            const float *x = p->x + (left ? from : 0);
            float unit = digits_unit_of(x, left < QL_BLOCK ? left : QL_BLOCK);
            runs[2 * block] = fixed32(x, left, unit, DIGITS_MOST);
            runs[2 * block + 1] = fixed32(x + (left > 32 ? 32 : 0), left > 32 ? left - 32 : 0, unit, DIGITS_MOST);
            if (left)
                factors[from / QL_BLOCK] = 256 * unit * table_unit;
        }
        *out++ = digits_pack(runs, w->format.group == 32, whole);
    }
}

INLINE void add_unit(rows *to, size_t r, bool odd, size_t tokens, kind as, __m512i bytes, const lookup *table,
                     const packed *x, const char *xs, size_t index)
{
    const digits_unit *own = (const digits_unit *)(const void *)xs + index;
    const span factors = to->spans[0][r];
    __m512 *sum = &to->sums[0][odd][r];
    (void)tokens, (void)x;
    bytes = digits_keep(bytes);
    const digits w[2] = {digits_look_up(bytes, table->of), digits_look_up(_mm512_srli_epi16(bytes, 4), table->of)};
    __m512i part = digits_sum(own->starts, w, own->of, as.group == 32 ? 1 : 2, table->whole);
    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), factors_of(as, factors, false, index), *sum);
    if (as.group > 32)
        return;
    part = digits_sum(own->starts + 1, w + 1, own->of + 1, 1, table->whole);
    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), factors_of(as, factors, true, index), *sum);
}

INLINE void all_groups(const ql_product *p, ql_tile t, lookup table)
{
    const packed x = {p->packed, 0, sizeof(digits_unit), packed_factors(p)};
    switch (p->w->format.group) {
    case 32:
        all_rows(p, t, ROWS, 1, (kind){true, 32}, &table, &x);
        break;
    case 64:
        all_rows(p, t, ROWS, 1, (kind){true, 64}, &table, &x);
        break;
    default:
        all_rows(p, t, ROWS, 1, (kind){true, 128}, &table, &x);
    }
}

void ql_gemv_digits_tile(const ql_product *p, ql_tile t)
{
    float unit;
    const digits table = digits_table(p->w->table, &unit);
    if (digits_whole(table))
        all_groups(p, t, (lookup){table, true});
    else
        all_groups(p, t, (lookup){table, false});
}
