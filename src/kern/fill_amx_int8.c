#include "kern/fill_amx_int8.h"

#include <immintrin.h>

#include "base/sizes.h"
#include "kern/decode.h"
#include "kern/scales_avx512.h"

enum { LANES = 16, HALF = 32, ROWS = 32, STEP_BYTES = 2 * 16 * 64 /* of the 32 rows of a step */ };
enum { PART = QL_AMX_INT8_PART, MOST_RUNS = QL_AMX_INT8_TERMS / HALF };

/* How a row is decoded: a constant wherever it is inlined. Runs share a scale: of 64 columns, or 32. */
typedef struct way {
    bool nibbles, halves;
} way;

static inline __attribute__((always_inline)) size_t run_of(way how)
{
    return how.halves ? HALF : QL_BLOCK;
}

/* The scales of a row's groups as those of its runs, zeros after them to the end of a part. */
static inline __attribute__((always_inline)) void run_scales(way how, const ql_wview *w, size_t row, size_t from,
                                                             size_t depth, float *scales)
{
    size_t group = w->format.group, run = run_of(how), runs = ql_pieces(depth, run), parts = ql_pieces(depth, PART);
    size_t first = from / group, count = (from + depth - 1) / group - first + 1;
    float groups[MOST_RUNS + LANES], *to = group > run ? groups : scales;
    decode_scales_avx512(w, row * ql_row_groups(w) + first, count, to);
    for (size_t i = 0; group > run && i < runs; i++)
        scales[i] = groups[(from + i * run) / group - first];
    for (size_t i = runs; i < parts * (PART / run); i++)
        scales[i] = 0;
}

/* The largest magnitude, as bits, among each eight numbers or, of halves, all sixteen; NaN's, if one is there. */
static inline __attribute__((always_inline)) __m512i largest_of_parts(way how, __m512 scales)
{
    __m512i most = _mm512_and_si512(_mm512_castps_si512(scales), _mm512_set1_epi32(0x7fffffff));
    most = _mm512_max_epu32(most, _mm512_shuffle_epi32(most, _MM_PERM_CDAB));
    most = _mm512_max_epu32(most, _mm512_shuffle_epi32(most, _MM_PERM_BADC));
    most = _mm512_max_epu32(most, _mm512_shuffle_i64x2(most, most, _MM_SHUFFLE(2, 3, 0, 1)));
    return how.halves ? _mm512_max_epu32(most, _mm512_shuffle_i64x2(most, most, _MM_SHUFFLE(1, 0, 3, 2))) : most;
}

/* 1 / x to the last bits; 0 where x is 0 or so small that there is no such number. */
static inline __m512 inverse(__m512 x)
{
    __mmask16 large = _mm512_cmp_ps_mask(x, _mm512_set1_ps(0x1p-126f), _CMP_GE_OQ);
    __m512 about = _mm512_maskz_rcp14_ps(large, x);
    return _mm512_mul_ps(about, _mm512_fnmadd_ps(x, about, _mm512_set1_ps(2)));
}

/* Scales of runs become what the table is multiplied by for bytes; those of 8-bit codes, fixed point with 15 bits after
 * the point, twice, and negative, as there is no 1. factors: of the row's parts, `width` apart. */
static inline __attribute__((always_inline)) void norm_scales(way how, float largest_code, size_t parts, float *scales,
                                                              float *factors, size_t width)
{
    const size_t at_once = how.halves ? 1 : 2;
    for (size_t part = 0; part < parts; part += at_once, scales += LANES) {
        __m512 v = _mm512_loadu_ps(scales);
        __m512 largest = _mm512_castsi512_ps(largest_of_parts(how, v));
        largest = _mm512_mul_ps(largest, _mm512_set1_ps(largest_code / 127));
        v = _mm512_mul_ps(v, inverse(largest));
        if (how.nibbles) {
            _mm512_storeu_ps(scales, v);
        } else {
            largest = _mm512_sub_ps(_mm512_setzero_ps(), largest);
            __m512i fixed = _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(-32768)));
            fixed = _mm512_min_epi32(fixed, _mm512_set1_epi32(32767));
            _mm512_storeu_si512(scales, _mm512_mask_mov_epi16(_mm512_slli_epi32(fixed, 16), 0x55555555, fixed));
        }
        factors[part * width] = _mm512_cvtss_f32(largest);
        if (at_once == 2 && part + 1 < parts)
            factors[(part + 1) * width] = _mm_cvtss_f32(_mm512_extractf32x4_ps(largest, 2));
    }
}

/* The table's entries 4q .. 4q + 3 in every quarter. */
typedef struct quarters {
    __m512 of[4];
} quarters;

static inline quarters load_quarters(const ql_wview *w)
{
    quarters q;
    for (size_t i = 0; i < 4; i++)
        q.of[i] = w->table ? _mm512_broadcast_f32x4(_mm_loadu_ps(w->table + 4 * i)) : _mm512_setzero_ps();
    return q;
}

/* In each quarter the 16 values of the table times one of four scales, as bytes. */
static inline __m512i four_tables(quarters table, const float *scales)
{
    const __m512i each = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    __m512 by = _mm512_permutexvar_ps(each, _mm512_loadu_ps(scales));
    __m512i v[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++)
        v[i] = _mm512_cvtps_epi32(_mm512_mul_ps(table.of[i], by));
    return _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
}

/* 64 columns of 4-bit codes. tables: where the low and the high codes' begin. */
static inline __m512i look_up(const char *codes, __m512i four, int low, int high)
{
    const __m512i shifts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(4), 1);
    const __m512i begins = _mm512_inserti64x4(_mm512_set1_epi8((char)low), _mm256_set1_epi8((char)high), 1);
    __m512i packed = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)codes));
    __m512i places = _mm512_ternarylogic_epi32(_mm512_srlv_epi32(packed, shifts), _mm512_set1_epi8(15), begins, 0xea);
    return _mm512_permutexvar_epi8(places, four);
}

/* 64 columns of bytes; the scales of the first and the last 32. */
static inline __m512i scale_bytes(const char *codes, float low, float high)
{
    __m512i bytes = _mm512_loadu_si512(codes), zero = _mm512_setzero_si512();
    __m512i by = _mm512_mask_mov_epi32(_mm512_castps_si512(_mm512_set1_ps(low)), 0xff00,
                                       _mm512_castps_si512(_mm512_set1_ps(high)));
    __m512i first = _mm512_srai_epi16(_mm512_unpacklo_epi8(zero, bytes), 8);
    __m512i second = _mm512_srai_epi16(_mm512_unpackhi_epi8(zero, bytes), 8);
    return _mm512_packs_epi16(_mm512_mulhrs_epi16(first, by), _mm512_mulhrs_epi16(second, by));
}

/* Up to four steps of a row. */
static inline __attribute__((always_inline)) void fill_steps(way how, const char *codes, quarters table,
                                                             const float *scales, size_t steps, char *out)
{
    __m512i four = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++, out += STEP_BYTES) {
        if (i >= steps)
            break;
        if (how.nibbles && (i == 0 || (how.halves && i == 2)))
            four = four_tables(table, scales + 2 * i);
        int first = how.halves ? (int)(i % 2 * 32) : (int)(16 * i);
        size_t low = how.halves ? 2 * i : i, high = how.halves ? 2 * i + 1 : i;
        _mm512_store_si512(out, how.nibbles ? look_up(codes + i * HALF, four, first, first + (how.halves ? 16 : 0))
                                            : scale_bytes(codes + i * QL_BLOCK, scales[low], scales[high]));
    }
}

/* 32 outputs. Lines of codes are used up at once, as rows far apart may share the sets of a cache. */
static inline __attribute__((always_inline)) void fill_rows(way how, const ql_wview *w, size_t row, size_t rows,
                                                            size_t from, size_t depth, char *panel, float *factors,
                                                            size_t width)
{
    float scales[ROWS][MOST_RUNS + 2 * LANES], largest_code = 127;
    size_t steps = ql_pieces(depth, QL_BLOCK), row_bytes = w->row_bytes, run = run_of(how);
    const size_t line = how.nibbles ? HALF : QL_BLOCK; /* bytes of a step */
    quarters table = load_quarters(w);
    for (int i = 0; how.nibbles && i < 16; i++)
        largest_code = i && largest_code >= fabsf(w->table[i]) ? largest_code : fabsf(w->table[i]);
    for (size_t o = 0; o < rows; o++) {
        run_scales(how, w, row + o, from, depth, scales[o]);
        norm_scales(how, largest_code, ql_pieces(depth, PART), scales[o], factors + o, width);
    }
    const char *codes = (const char *)w->codes + row * row_bytes + from / QL_BLOCK * line;
    for (size_t s = 0; s < steps; s += 4, codes += 4 * line, panel += 4 * STEP_BYTES) {
        const char *at = codes;
        for (size_t o = 0; o < rows; o++, at += row_bytes) {
            _mm_prefetch(at + 4 * line, _MM_HINT_T0);
            _mm_prefetch(at + 4 * line + 64, _MM_HINT_T0);
            if (steps - s >= 4)
                fill_steps(how, at, table, scales[o] + s * QL_BLOCK / run, 4, panel + o * QL_BLOCK);
            else
                fill_steps(how, at, table, scales[o] + s * QL_BLOCK / run, steps - s, panel + o * QL_BLOCK);
        }
    }
}

void ql_fill_amx_int8(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, char *panel,
                      float *factors, size_t width)
{
    const bool halves = w->format.group < QL_BLOCK;
    for (size_t o = 0; o < cols; o += ROWS, panel += ql_pieces(depth, QL_BLOCK) * STEP_BYTES, factors += ROWS) {
        size_t rows = ql_least(ROWS, cols - o);
        if (w->table && halves)
            fill_rows((way){true, true}, w, col + o, rows, from, depth, panel, factors, width);
        else if (w->table)
            fill_rows((way){true, false}, w, col + o, rows, from, depth, panel, factors, width);
        else if (halves)
            fill_rows((way){false, true}, w, col + o, rows, from, depth, panel, factors, width);
        else
            fill_rows((way){false, false}, w, col + o, rows, from, depth, panel, factors, width);
    }
}
