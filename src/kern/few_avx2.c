#include "kern/few.h"
#include "kern/gemv.h"
#include "kern/rows_avx2.h"

/* Rows of W as in gemv_avx2.c, decoded in registers for all tokens, whose sums fit there. Of their x as many columns as
 * AT_ONCE tokens have in CHUNK stay in the first-level cache while some rows go by, whose codes there are prefetched
 * AHEAD rows before they are needed. */
enum { AT_ONCE = 8, CHUNK = 512, AHEAD = 4 };

bool ql_few_avx2_fits(const ql_product *p)
{
    return p->m <= AT_ONCE && ql_few_fits(p) && ql_row_groups(p->w) <= QL_GEMV_SCALES;
}

ql_plan ql_few_avx2_plan(const ql_product *p, size_t threads)
{
    ql_plan plan = ql_few_plan(p, threads);
    plan.packs = p->m;
    return plan;
}

/* Puts x in the order in which a block's values come out, and zeros where W is padded: block after block, in it token
 * after token. */
void ql_few_avx2_pack(const ql_product *p, ql_plan plan, size_t token)
{
    float *out = (float *)p->packed + token * QL_BLOCK;
    (void)plan;
    for (size_t at = 0; at < ql_gemv_padded(p->w); at += QL_BLOCK, out += p->m * QL_BLOCK)
        pack_block(p->w, p->x + token * p->ldx, at, out);
}

#define INLINE static inline __attribute__((always_inline))

/* As block_times(), for so many tokens that one chain of sums each is enough: the scale goes into the values. */
INLINE void block_of_many(__m256 sums[AT_ONCE], size_t tokens, size_t bits, planes table, const char *codes,
                          const float *x, const float scales[2])
{
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; half++) {
        __m256 value[4], scale = _mm256_broadcast_ss(scales + half);
        half_block(QL_CODE_INT8, bits, table, codes, half, value);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            __m256 w = _mm256_mul_ps(value[i], scale);
#pragma GCC unroll 8
            for (size_t t = 0; t < tokens; t++)
                sums[t] = _mm256_fmadd_ps(w, _mm256_load_ps(x + t * QL_BLOCK + (4 * half + i) * LANES), sums[t]);
        }
    }
}

/* Rows of a rectangle whose scales are decoded together, and the columns that they are multiplied with. */
typedef struct run {
    const ql_product *p;
    size_t row, rows, from, end;
    const float *scales;
} run;

/* A row's share; `bits` and `tokens` are constants where it is inlined. */
INLINE void row_part(const run *r, size_t row, planes table, const float *scales, size_t tokens, size_t bits)
{
    const ql_product *p = r->p;
    const ql_wview *w = p->w;
    const char *codes = (const char *)w->codes + row * w->row_bytes + r->from * bits / 8;
    const unsigned shift = (unsigned)__builtin_ctz(w->format.group);
    const size_t ahead = AHEAD * w->row_bytes, end = r->end;
    const float *x = (const float *)p->packed + r->from * tokens;
    __m256 sums[AT_ONCE] = {0};
    for (size_t at = r->from; at < end; at += QL_BLOCK, codes += QL_BLOCK * bits / 8, x += QL_BLOCK * tokens) {
        const float two[2] = {scales[at >> shift], scales[(at + 32) >> shift]};
        _mm_prefetch(codes + ahead, _MM_HINT_T0);
        if (tokens <= 4)
            block_times(sums, tokens, QL_CODE_INT8, bits, table, codes, x, QL_BLOCK, two);
        else
            block_of_many(sums, tokens, bits, table, codes, x, two);
    }
    for (size_t t = 0; t < tokens; t++) {
        float *y = p->y + t * p->ldy + row, sum = sum_lanes(sums[t]);
        *y = p->add || r->from ? *y + sum : sum;
    }
}

INLINE void rows_part(const run *r, planes table, size_t tokens)
{
    size_t groups = ql_row_groups(r->p->w);
    for (size_t i = 0; i < r->rows; i++)
        if (r->p->w->table)
            row_part(r, r->row + i, table, r->scales + i * groups, tokens, 4);
        else
            row_part(r, r->row + i, table, r->scales + i * groups, tokens, 8);
}

static void rows_times(const run *r, planes table)
{
    switch (r->p->m) {
    case 3:
        rows_part(r, table, 3);
        break;
    case 4:
        rows_part(r, table, 4);
        break;
    case 5:
        rows_part(r, table, 5);
        break;
    case 6:
        rows_part(r, table, 6);
        break;
    case 7:
        rows_part(r, table, 7);
        break;
    default:
        rows_part(r, table, 8);
    }
}

void ql_few_avx2_tile(const ql_product *p, ql_tile t, void *scratch)
{
    const ql_wview *w = p->w;
    const size_t groups = ql_row_groups(w), most = QL_GEMV_SCALES / groups;
    const size_t chunk = p->m <= AT_ONCE / 2 ? 2 * CHUNK : CHUNK;
    float scales[QL_GEMV_SCALES + QL_GEMV_SLACK];
    planes table = {0};
    (void)scratch;
    if (w->table)
        table = load_planes(w->table);
    for (size_t at = 0; at < t.cols; at += most) {
        run r = {.p = p, .row = t.col + at, .rows = t.cols - at < most ? t.cols - at : most, .scales = scales};
        decode_scales(w, r.row * groups, r.rows * groups, scales);
        scales[r.rows * groups] = 0; /* for a last half block that is not there */
        for (r.from = 0; r.from < w->k; r.from += chunk) {
            r.end = w->k - r.from < chunk ? w->k : r.from + chunk;
            rows_times(&r, table);
        }
    }
}
