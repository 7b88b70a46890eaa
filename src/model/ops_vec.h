/* Vectors of VN floats for the files that are compiled once for each instruction set. */
#ifndef QL_SRC_MODEL_OPS_VEC_H
#define QL_SRC_MODEL_OPS_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"

#if defined(__AVX512F__)
#include <immintrin.h>

enum { VN = 16 };
typedef __m512 vf;

static inline vf vset(float x)
{
    return _mm512_set1_ps(x);
}

static inline vf vload(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void vstore(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}

/* The first n <= VN floats; zeros in the other lanes. */
static inline vf vload_part(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}

static inline void vstore_part(float *p, vf x, size_t n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x);
}

static inline vf vfma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* Lanes [0, n) of a, the others of b. */
static inline vf vfirst(vf a, size_t n, vf b)
{
    return _mm512_mask_blend_ps((__mmask16)((1u << n) - 1), b, a);
}

/* The second operand where either is NaN. */
static inline vf vmax(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

static inline vf vmin(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

/* yes in the lanes where a < b, no elsewhere. */
static inline vf vless(vf a, vf b, vf yes, vf no)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}

static inline vf vround(vf x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* x * 2^n for whole n in [-200, 200]. */
static inline vf vscale2(vf x, vf n)
{
    return _mm512_scalef_ps(x, n);
}

static inline vf vwiden(const uint16_t *p)
{
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

/* bf16, to nearest even; a NaN stays one. The instruction takes subnormal numbers for 0. */
static inline void vnarrow(uint16_t *p, vf x)
{
#ifdef __AVX512BF16__
    _mm256_storeu_si256((__m256i *)(void *)p, (__m256i)_mm512_cvtneps_pbh(x));
#else
    __m512i u = _mm512_castps_si512(x), odd = _mm512_and_epi32(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), u, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#endif
}

/* One step of a transposition: the lanes with bit `step` change between a and b, `step` places apart. */
static inline void vexchange(vf *a, vf *b, int step)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 odd = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(step));
    __m512i low = _mm512_mask_add_epi32(lane, odd, lane, _mm512_set1_epi32(VN - step));
    __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(step));
    vf x = _mm512_permutex2var_ps(*a, low, *b);
    *b = _mm512_permutex2var_ps(*a, high, *b);
    *a = x;
}

#elif defined(__AVX2__)
#include <immintrin.h>

enum { VN = 8 };
typedef __m256 vf;

static inline vf vset(float x)
{
    return _mm256_set1_ps(x);
}

static inline vf vload(const float *p)
{
    return _mm256_loadu_ps(p);
}

static inline void vstore(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}

static inline __m256i first_lanes(size_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vf vload_part(const float *p, size_t n)
{
    return _mm256_maskload_ps(p, first_lanes(n));
}

static inline void vstore_part(float *p, vf x, size_t n)
{
    _mm256_maskstore_ps(p, first_lanes(n), x);
}

static inline vf vfma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline vf vfirst(vf a, size_t n, vf b)
{
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(first_lanes(n)));
}

static inline vf vmax(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

static inline vf vmin(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}

static inline vf vless(vf a, vf b, vf yes, vf no)
{
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

static inline vf vround(vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vf vscale2(vf x, vf n)
{
    /* In two steps: 2^n alone may be beyond the range that x 2^n is in. */
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
    __m256i low = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i high = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
    return x * _mm256_castsi256_ps(low) * _mm256_castsi256_ps(high);
}

static inline vf vwiden(const uint16_t *p)
{
    __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}

static inline void vnarrow(uint16_t *p, vf x)
{
    __m256i u = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    __m128i both = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    _mm_storeu_si128((__m128i *)(void *)p, both);
}

static inline void vexchange(vf *a, vf *b, int step)
{
    vf x = *a, y = *b;
    if (step == 4) {
        *a = __builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11);
        *b = __builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15);
    } else if (step == 2) {
        *a = __builtin_shufflevector(x, y, 0, 1, 8, 9, 4, 5, 12, 13);
        *b = __builtin_shufflevector(x, y, 2, 3, 10, 11, 6, 7, 14, 15);
    } else {
        *a = __builtin_shufflevector(x, y, 0, 8, 2, 10, 4, 12, 6, 14);
        *b = __builtin_shufflevector(x, y, 1, 9, 3, 11, 5, 13, 7, 15);
    }
}

#else

enum { VN = 4 };
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

static inline vf vset(float x)
{
    return (vf){x, x, x, x};
}

static inline vf vload(const float *p)
{
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline void vstore(float *p, vf x)
{
    memcpy(p, &x, sizeof x);
}

static inline vf vload_part(const float *p, size_t n)
{
    vf x = {0};
    for (size_t i = 0; i < n; i++)
        x[i] = p[i];
    return x;
}

static inline void vstore_part(float *p, vf x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = x[i];
}

static inline vf vfma(vf a, vf b, vf c)
{
    return a * b + c;
}

static inline vf vfirst(vf a, size_t n, vf b)
{
    for (size_t i = n; i < VN; i++)
        a[i] = b[i];
    return a;
}

static inline vf vpick(vi mask, vf yes, vf no)
{
    return (vf)(((vi)yes & mask) | ((vi)no & ~mask));
}

static inline vf vmax(vf a, vf b)
{
    return vpick(a > b, a, b);
}

static inline vf vmin(vf a, vf b)
{
    return vpick(a < b, a, b);
}

static inline vf vless(vf a, vf b, vf yes, vf no)
{
    return vpick(a < b, yes, no);
}

static inline vf vround(vf x)
{
    /* Good for |x| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction. */
    return (x + 12582912.0f) - 12582912.0f;
}

static inline vf vscale2(vf x, vf n)
{
    vi whole = __builtin_convertvector(n, vi), half = whole >> 1;
    return x * (vf)((half + 127) << 23) * (vf)((whole - half + 127) << 23);
}

static inline vf vwiden(const uint16_t *p)
{
    return (vf){ql_bf16_to_f32(p[0]), ql_bf16_to_f32(p[1]), ql_bf16_to_f32(p[2]), ql_bf16_to_f32(p[3])};
}

static inline void vnarrow(uint16_t *p, vf x)
{
    for (int i = 0; i < VN; i++)
        p[i] = ql_f32_to_bf16(x[i]);
}

static inline void vexchange(vf *a, vf *b, int step)
{
    vf x = *a, y = *b;
    if (step == 2) {
        *a = __builtin_shufflevector(x, y, 0, 1, 4, 5);
        *b = __builtin_shufflevector(x, y, 2, 3, 6, 7);
    } else {
        *a = __builtin_shufflevector(x, y, 0, 4, 2, 6);
        *b = __builtin_shufflevector(x, y, 1, 5, 3, 7);
    }
}

#endif

/* For loops over n floats that go `p += VN, left -= VN`: the vector at p of which `left` are there. */
static inline vf vget(const float *p, size_t left)
{
    return left >= VN ? vload(p) : vload_part(p, left);
}

static inline void vput(float *p, vf x, size_t left)
{
    if (left >= VN)
        vstore(p, x);
    else
        vstore_part(p, x, left);
}

/* The same in bf16. */
static inline vf vget_narrow(const uint16_t *p, size_t left)
{
    uint16_t part[VN] = {0};
    if (left >= VN)
        return vwiden(p);
    memcpy(part, p, left * sizeof *p);
    return vwiden(part);
}

static inline void vput_narrow(uint16_t *p, vf x, size_t left)
{
    uint16_t part[VN];
    if (left >= VN) {
        vnarrow(p, x);
        return;
    }
    vnarrow(part, x);
    memcpy(p, part, left * sizeof *p);
}

#if defined(__AVX512F__)
/* Halves are added up, as below. */
static inline float vsum(vf x)
{
    return _mm512_reduce_add_ps(x);
}

static inline float vhighest(vf x)
{
    return _mm512_reduce_max_ps(x);
}
#else
static inline float vsum(vf x)
{
    float lane[VN];
    vstore(lane, x);
    for (size_t width = VN / 2; width; width /= 2)
        for (size_t i = 0; i < width; i++)
            lane[i] += lane[i + width];
    return lane[0];
}

static inline float vhighest(vf x)
{
    float lane[VN];
    vstore(lane, x);
    for (size_t i = 1; i < VN; i++)
        lane[0] = lane[i] > lane[0] ? lane[i] : lane[0];
    return lane[0];
}
#endif

#endif
