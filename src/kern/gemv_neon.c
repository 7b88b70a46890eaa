#include "kern/gemv.h"

#include "kern/table_neon.h"

/* A row of W is one stream of 64-column blocks, prefetched AHEAD bytes before they are needed. */
enum { AT_ONCE = 4, AHEAD = 2048 };

/* Copies x, with zeros where W is padded. */
void ql_gemv_neon_pack(const ql_product *p, ql_plan plan, size_t token)
{
    size_t k = p->w->k, end = ql_gemv_padded(p->w);
    float *out = (float *)p->packed + token * end;
    (void)plan;
    memcpy(out, p->x + token * p->ldx, k * sizeof *out);
    memset(out + k, 0, (end - k) * sizeof *out);
}

static void decode_scales(const ql_wview *w, size_t g, size_t count, float *out)
{
    ql_decode_scales(w, g, count, out);
}

/* sums += scale * W x of 32 columns. */
static inline __attribute__((always_inline)) void half_block(float32x4_t sums[AT_ONCE], size_t tokens, quads first,
                                                             quads second, const float *x, size_t ldx, float scale)
{
#pragma GCC unroll 4
    for (size_t t = 0; t < tokens; t++) {
        const float *xs = x + t * ldx;
        float32x4_t a = vmulq_f32(first.part[0], vld1q_f32(xs)), b = vmulq_f32(second.part[0], vld1q_f32(xs + 16));
#pragma GCC unroll 3
        for (size_t i = 1; i < 4; i++) {
            a = vfmaq_f32(a, first.part[i], vld1q_f32(xs + 4 * i));
            b = vfmaq_f32(b, second.part[i], vld1q_f32(xs + 16 + 4 * i));
        }
        sums[t] = vfmaq_n_f32(sums[t], vaddq_f32(a, b), scale);
    }
}

static inline quads load_dense(ql_code code, const char *at)
{
    quads values;
    for (size_t i = 0; i < 4; i++) {
        if (code == QL_CODE_F32) {
            values.part[i] = vld1q_f32((const float *)(const void *)at + 4 * i);
            continue;
        }
        uint16x4_t half = vld1_u16((const uint16_t *)(const void *)at + 4 * i);
        values.part[i] = code == QL_CODE_F16 ? vcvt_f32_f16(vreinterpret_f16_u16(half))
                                             : vreinterpretq_f32_u32(vshll_n_u16(half, 16));
    }
    return values;
}

/* One row against some tokens; the code, its bits and the tokens are constants where it is inlined. */
static inline __attribute__((always_inline)) void one_row(const ql_product *p, size_t row, size_t token, size_t tokens,
                                                          ql_code code, size_t bits, const float *scales,
                                                          const float *packed)
{
    const ql_wview *w = p->w;
    const char *line = (const char *)w->codes + row * w->row_bytes;
    const unsigned shift = bits <= 8 ? (unsigned)__builtin_ctz(w->format.group) : 0;
    const planes table = load_planes(bits == 4 ? w->table : NULL);
    size_t ldx = ql_gemv_padded(w);
    const float *x = packed + token * ldx;
    char tail[QL_BLOCK * sizeof(float)] = {0};
    float32x4_t sums[AT_ONCE] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    for (size_t at = 0; at < w->k; at += QL_BLOCK) {
        const char *codes = line + at * bits / 8;
        if (bits > 8 && w->k - at < QL_BLOCK) /* a dense row is not padded: reading on could leave the matrix */
            codes = memcpy(tail, codes, (w->k - at) * bits / 8);
        __builtin_prefetch(line + at * bits / 8 + AHEAD);
        for (size_t half = 0; half < QL_BLOCK && at + half < w->k; half += 32) {
            quads first, second;
            if (bits == 4) {
                uint8x16_t c0 = vld1q_u8((const uint8_t *)codes), c1 = vld1q_u8((const uint8_t *)codes + 16);
                first = look_up(table, half ? vshrq_n_u8(c0, 4) : vandq_u8(c0, vdupq_n_u8(15)));
                second = look_up(table, half ? vshrq_n_u8(c1, 4) : vandq_u8(c1, vdupq_n_u8(15)));
            } else if (bits == 8) {
                first = widen_int8(vld1q_s8((const int8_t *)codes + half));
                second = widen_int8(vld1q_s8((const int8_t *)codes + half + 16));
            } else {
                first = load_dense(code, codes + half * bits / 8);
                second = load_dense(code, codes + (half + 16) * bits / 8);
            }
            half_block(sums, tokens, first, second, x + at + half, ldx, bits > 8 ? 1 : scales[(at + half) >> shift]);
        }
    }
    for (size_t t = 0; t < tokens; t++) {
        float *y = p->y + (token + t) * p->ldy + row, sum = vaddvq_f32(sums[t]);
        *y = p->add ? *y + sum : sum;
    }
}

#include "kern/gemv_rows.h"

void ql_gemv_neon_tile(const ql_product *p, ql_tile t, void *scratch)
{
    (void)scratch;
    all_tokens(p, t, p->packed);
}
