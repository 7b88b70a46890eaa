/* Exponentials, sigmoid and tanh of vectors. */
#ifndef QL_SRC_MODEL_OPS_EXP_H
#define QL_SRC_MODEL_OPS_EXP_H

#include "model/ops_vec.h"

/* exp(x) within 2 ulp (tests/test_ops_rows.c sweeps the range); 0 from -105 down, infinity from 89 up,
 * NaN of NaN. x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 q(r) with q the minimax
 * polynomial of degree 4, 3.1e-9 from it relatively. */
static inline vf vexp(vf x)
{
    x = vmin(vset(90.0f), vmax(vset(-105.0f), x));
    vf n = vround(x * vset(0x1.715476p+0f));
    vf r = vfma(n, vset(-0x1.62e4p-1f), x); /* ln 2 in two parts; n times the first is exact */
    r = vfma(n, vset(-0x1.7f7d1cp-20f), r);
    vf q = vset(0x1.6a23d0p-10f);
    q = vfma(q, r, vset(0x1.123a20p-7f));
    q = vfma(q, r, vset(0x1.5558f2p-5f));
    q = vfma(q, r, vset(0x1.555492p-3f));
    q = vfma(q, r, vset(0x1.fffffcp-2f));
    vf e = vfma(q * r, r, r);
    return vscale2(e + vset(1.0f), n);
}

#if defined(__AVX512F__)
/* 2^x within 2.7e-6 of itself, for what is rounded to bf16: 0 and infinity beyond the range, NaN of NaN. 2^r for r in
 * [0, 1) by the minimax polynomial of degree 4. */
static inline vf vexp2_rough(vf x)
{
    vf r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vf p = vset(0x1.bb7cd4p-7f);
    p = vfma(p, r, vset(0x1.aa13f0p-5f));
    p = vfma(p, r, vset(0x1.ee798ap-3f));
    p = vfma(p, r, vset(0x1.62d166p-1f));
    p = vfma(p, r, vset(0x1.00002cp+0f));
    return vscale2(p, x); /* takes the whole part, downwards */
}
#else
static inline vf vexp2_rough(vf x)
{
    return vexp(x * vset(0x1.62e43p-1f));
}
#endif

/* 1 / (1 + exp(-x)); NaN of NaN. */
static inline vf vsigmoid(vf x)
{
    return vset(1.0f) / (vset(1.0f) + vexp(-x));
}

/* The same within 3e-6 of itself or of 2^-126. */
static inline vf vsigmoid_rough(vf x)
{
    return vset(1.0f) / (vset(1.0f) + vexp2_rough(x * vset(-0x1.715476p+0f)));
}

/* tanh(x) within 4 ulp (tests/test_ops_heads.c): by exp away from zero, near it by its odd series up to x^11, which
 * cancels nothing. NaN of NaN. */
static inline vf vtanh(vf x)
{
    vf one = vset(1.0f), e = vexp(x + x), square = x * x;
    vf far = one - vset(2.0f) / (e + one);
    vf p = vset(-1382.0f / 155925.0f);
    p = vfma(p, square, vset(62.0f / 2835.0f));
    p = vfma(p, square, vset(-17.0f / 315.0f));
    p = vfma(p, square, vset(2.0f / 15.0f));
    p = vfma(p, square, vset(-1.0f / 3.0f));
    return vless(square, vset(0.09f), vfma(p * square, x, x), far);
}

/* A score cap * tanh(x / cap); its derivative is 1 - (score / cap)^2. */
static inline vf vsoftcap(vf x, float cap)
{
    return vset(cap) * vtanh(x * vset(1.0f / cap));
}

static inline vf vsoftcap_slope(vf score, float cap)
{
    vf share = score * vset(1.0f / cap);
    return vset(1.0f) - share * share;
}

#endif
