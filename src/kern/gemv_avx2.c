#include "kern/gemv.h"

#include <immintrin.h>

/* A row of W is one stream of 64-column blocks, prefetched AHEAD bytes before they are needed. */
enum { AT_ONCE = 4, LANES = 8, AHEAD = 16384 };

/* Puts x in the order in which a block's values come out, and zeros where W is padded: vector q of a half has columns
 * 4 q to 4 q + 3 and those 16 further on. */
void ql_gemv_avx2_pack(const ql_product *p, ql_plan plan, size_t token)
{
    float *packed = p->packed;
    (void)plan;
    size_t k = p->w->k, end = ql_gemv_padded(p->w);
    const float *x = p->x + token * p->ldx;
    float *out = packed + token * end;
    if (!p->w->table) {
        memcpy(out, x, k * sizeof *x);
        memset(out + k, 0, (end - k) * sizeof *x);
        return;
    }
    for (size_t at = 0; at < end; at += QL_BLOCK)
        for (size_t s = 0; s < 8; s++)
            for (size_t l = 0; l < LANES; l++) {
                size_t col = at + s / 4 * 32 + l / 4 * 16 + s % 4 * 4 + l % 4;
                out[at + s * LANES + l] = col < k ? x[col] : 0;
            }
}

/* out[i] = the scales of groups [g, g + count) of the row-major array. */
static void decode_scales(const ql_wview *w, size_t g, size_t count, float *out)
{
    size_t i = 0;
    while (w->format.scale == QL_SCALE_DQ && i + LANES <= count) {
        size_t block = (g + i) / QL_DQ_GROUPS, left = QL_DQ_GROUPS - (g + i) % QL_DQ_GROUPS;
        size_t end = i + (left < count - i ? left : count - i);
        const uint8_t *codes = (const uint8_t *)w->scales + g;
        const __m256 step = _mm256_cvtph_ps(_mm_set1_epi16((short)w->steps[block]));
        const __m256 offset = _mm256_cvtph_ps(_mm_set1_epi16((short)w->offsets[block]));
        for (; i + LANES <= end; i += LANES) {
            __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(codes + i)));
            _mm256_storeu_ps(out + i, _mm256_fmadd_ps(_mm256_cvtepi32_ps(code), step, offset));
        }
        ql_decode_scales(w, g + i, end - i, out + i);
        i = end;
    }
    ql_decode_scales(w, g + i, count - i, out + i);
}

/* A table's values as four planes, one for each of their bytes, in both halves of a register. */
typedef struct planes {
    __m256i byte[4];
} planes;

static planes load_planes(const float *table)
{
    const __m128i by_byte = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m128i row[4];
    for (size_t i = 0; i < 4; i++)
        row[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(table + 4 * i)), by_byte);
    __m128i a = _mm_unpacklo_epi32(row[0], row[1]), b = _mm_unpacklo_epi32(row[2], row[3]);
    __m128i c = _mm_unpackhi_epi32(row[0], row[1]), d = _mm_unpackhi_epi32(row[2], row[3]);
    return (planes){{_mm256_broadcastsi128_si256(_mm_unpacklo_epi64(a, b)),
                     _mm256_broadcastsi128_si256(_mm_unpackhi_epi64(a, b)),
                     _mm256_broadcastsi128_si256(_mm_unpacklo_epi64(c, d)),
                     _mm256_broadcastsi128_si256(_mm_unpackhi_epi64(c, d))}};
}

/* The values of 32 codes, each in a byte. */
static inline void look_up_32(planes p, __m256i codes, __m256 values[4])
{
    __m256i b0 = _mm256_shuffle_epi8(p.byte[0], codes), b1 = _mm256_shuffle_epi8(p.byte[1], codes);
    __m256i b2 = _mm256_shuffle_epi8(p.byte[2], codes), b3 = _mm256_shuffle_epi8(p.byte[3], codes);
    __m256i low0 = _mm256_unpacklo_epi8(b0, b1), low1 = _mm256_unpackhi_epi8(b0, b1);
    __m256i high0 = _mm256_unpacklo_epi8(b2, b3), high1 = _mm256_unpackhi_epi8(b2, b3);
    values[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low0, high0));
    values[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low0, high0));
    values[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low1, high1));
    values[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low1, high1));
}

static inline __attribute__((always_inline)) void block_4bit(__m256 sums[AT_ONCE], size_t tokens, planes table,
                                                             const void *codes, const float *x, size_t ldx,
                                                             const float scales[2])
{
    const __m256i code = _mm256_loadu_si256(codes), nibble = _mm256_set1_epi8(15);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        __m256 value[4], scale = _mm256_broadcast_ss(scales + half);
        look_up_32(table, _mm256_and_si256(half ? _mm256_srli_epi16(code, 4) : code, nibble), value);
#pragma GCC unroll 4
        for (size_t t = 0; t < tokens; t++) {
            const float *xs = x + t * ldx + half * 32;
            __m256 part = _mm256_mul_ps(value[0], _mm256_load_ps(xs));
#pragma GCC unroll 3
            for (size_t i = 1; i < 4; i++)
                part = _mm256_fmadd_ps(value[i], _mm256_load_ps(xs + i * LANES), part);
            sums[t] = _mm256_fmadd_ps(part, scale, sums[t]);
        }
    }
}

static inline __m256 load_row(ql_code code, const char *at)
{
    switch (code) {
    case QL_CODE_F32:
        return _mm256_loadu_ps((const float *)(const void *)at);
    case QL_CODE_F16:
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at));
    case QL_CODE_BF16:
        return _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)at)), 16));
    default:
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)at)));
    }
}

static inline __attribute__((always_inline)) void block_other(__m256 sums[AT_ONCE], size_t tokens, ql_code code,
                                                              const char *codes, const float *x, size_t ldx,
                                                              const float scales[2])
{
    size_t size = code == QL_CODE_INT8 ? 1 : code == QL_CODE_F32 ? 4 : 2;
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++) {
        __m256 value = load_row(code, codes + i * LANES * size);
        if (code == QL_CODE_INT8)
            value = _mm256_mul_ps(value, _mm256_broadcast_ss(scales + i / 4));
#pragma GCC unroll 4
        for (size_t t = 0; t < tokens; t++)
            sums[t] = _mm256_fmadd_ps(value, _mm256_load_ps(x + t * ldx + i * LANES), sums[t]);
    }
}

static inline float sum_lanes(__m256 v)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* One row against some tokens; `bits` of a code and the code itself are constants where it is inlined. */
static inline __attribute__((always_inline)) void one_row(const ql_product *p, size_t row, size_t token, size_t tokens,
                                                          ql_code code, size_t bits, const float *scales,
                                                          const float *packed)
{
    const ql_wview *w = p->w;
    const char *line = (const char *)w->codes + row * w->row_bytes;
    const unsigned shift = bits <= 8 ? (unsigned)__builtin_ctz(w->format.group) : 0;
    planes table = {0};
    if (bits == 4)
        table = load_planes(w->table);
    size_t ldx = ql_gemv_padded(w);
    const float *x = packed + token * ldx;
    char tail[QL_BLOCK * sizeof(float)] = {0};
    __m256 sums[AT_ONCE] = {0};
    for (size_t at = 0; at < w->k; at += QL_BLOCK) {
        const char *codes = line + at * bits / 8;
        float two[2] = {0};
        if (bits <= 8)
            two[0] = scales[at >> shift], two[1] = w->k - at > 32 ? scales[(at + 32) >> shift] : 0;
        else if (w->k - at < QL_BLOCK) /* a dense row is not padded: reading on could leave the matrix */
            codes = memcpy(tail, codes, (w->k - at) * bits / 8);
        for (size_t ahead = 0; ahead < QL_BLOCK * bits / 8; ahead += 64)
            _mm_prefetch(line + at * bits / 8 + AHEAD + ahead, _MM_HINT_T0);
        if (bits == 4)
            block_4bit(sums, tokens, table, codes, x + at, ldx, two);
        else
            block_other(sums, tokens, code, codes, x + at, ldx, two);
    }
#pragma GCC unroll 4
    for (size_t t = 0; t < tokens; t++) {
        float *y = p->y + (token + t) * p->ldy + row, sum = sum_lanes(sums[t]);
        *y = p->add ? *y + sum : sum;
    }
}

#include "kern/gemv_rows.h"

void ql_gemv_avx2_tile(const ql_product *p, ql_tile t, void *scratch)
{
    (void)scratch;
    all_tokens(p, t, p->packed);
}
