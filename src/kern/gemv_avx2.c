#include "kern/gemv.h"

#include <immintrin.h>

#include "kern/table_avx2.h"

/* A row of W is one stream of 64-column blocks, prefetched AHEAD bytes before they are needed. */
enum { AT_ONCE = 4, LANES = 8, AHEAD = 16384 };

/* Puts x in the order in which a block's codes come out, and zeros where W is padded: nibble s of the
 * block's 32-bit word l is column 4 l + s / 2 + 32 (s % 2). */
void ql_gemv_avx2_pack(const ql_product *p, ql_plan plan, size_t token, void *out_bytes)
{
    float *packed = out_bytes;
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
                size_t col = at + l * 4 + s / 2 + s % 2 * 32;
                out[at + s * LANES + l] = col < k ? x[col] : 0;
            }
}

/* out[i] = the scales of groups [g, g + count) of the row-major array. */
static void decode_scales(const ql_wview *w, size_t g, size_t count, float *out)
{
    for (size_t i = 0, run; i < count; i += run) {
        size_t block = (g + i) / QL_DQ_GROUPS, left = QL_DQ_GROUPS - (g + i) % QL_DQ_GROUPS;
        run = left < LANES ? left : LANES;
        if (w->format.scale != QL_SCALE_DQ || count - i < run) {
            run = run < count - i ? run : count - i;
            ql_decode_scales(w, g + i, run, out + i);
            continue;
        }
        uint64_t codes = 0;
        memcpy(&codes, (const uint8_t *)w->scales + g + i, run);
        __m256 value = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)codes)));
        __m256 step = _mm256_cvtph_ps(_mm_set1_epi16((short)w->steps[block]));
        __m256 offset = _mm256_cvtph_ps(_mm_set1_epi16((short)w->offsets[block]));
        float decoded[LANES];
        _mm256_storeu_ps(decoded, _mm256_fmadd_ps(value, step, offset));
        memcpy(out + i, decoded, run * sizeof *out);
    }
}

static inline __attribute__((always_inline)) void block_4bit(__m256 sums[AT_ONCE], size_t tokens, table16 table,
                                                             const void *codes, const float *x, size_t ldx,
                                                             const float scales[2])
{
    __m256i code = _mm256_loadu_si256(codes);
    __m256 part[2][AT_ONCE];
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) {
        __m256 value = look_up(table, _mm256_srli_epi32(code, 4 * n));
#pragma GCC unroll 4
        for (size_t t = 0; t < tokens; t++) {
            __m256 xs = _mm256_load_ps(x + t * ldx + n * LANES);
            part[n % 2][t] = n < 2 ? _mm256_mul_ps(value, xs) : _mm256_fmadd_ps(value, xs, part[n % 2][t]);
        }
    }
#pragma GCC unroll 4
    for (size_t t = 0; t < tokens; t++) {
        sums[t] = _mm256_fmadd_ps(part[0][t], _mm256_broadcast_ss(scales), sums[t]);
        sums[t] = _mm256_fmadd_ps(part[1][t], _mm256_broadcast_ss(scales + 1), sums[t]);
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
    const table16 table = load_table(w->table);
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

void ql_gemv_avx2_tile(const ql_product *p, ql_tile t, const void *packed, void *scratch)
{
    (void)scratch;
    all_tokens(p, t, packed);
}
