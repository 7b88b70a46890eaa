/* Row kernels; QL_TIER names the instruction set this file is compiled for. */
#include "model/ops_kernels.h"
#include "model/ops_tier.h"
#include "model/ops_exp.h"

#define INLINE static inline __attribute__((always_inline))

/* A row in fp32 or, where it is not NULL, in bf16: one of them is a constant NULL in every call. */
INLINE vf vget_either(const float *wide, const uint16_t *narrow, size_t i, size_t d)
{
    return narrow ? vget_narrow(narrow + i, d - i) : vget(wide + i, d - i);
}

INLINE void vput_either(ql_either out, vf x, size_t i, size_t d)
{
    if (out.narrow)
        vput_narrow(out.narrow + i, x, d - i);
    else
        vput(out.wide + i, x, d - i);
}

INLINE float norm_forward(size_t d, const float *wide, const uint16_t *narrow, const float *w, float eps, ql_either y)
{
    vf squares = vset(0);
    for (size_t i = 0; i < d; i += VN) {
        vf v = vget_either(wide, narrow, i, d);
        squares = vfma(v, v, squares);
    }
    float rstd = 1.0f / __builtin_sqrtf(vsum(squares) / (float)d + eps);
    for (size_t i = 0; i < d; i += VN)
        vput_either(y, vget_either(wide, narrow, i, d) * vset(rstd) * vget(w + i, d - i), i, d);
    return rstd;
}

static float rmsnorm(size_t d, const float *x, const uint16_t *narrow, const float *w, float eps, ql_either y)
{
    if (narrow && y.narrow)
        return norm_forward(d, NULL, narrow, w, eps, (ql_either){.narrow = y.narrow});
    if (narrow)
        return norm_forward(d, NULL, narrow, w, eps, (ql_either){.wide = y.wide});
    if (y.narrow)
        return norm_forward(d, x, NULL, w, eps, (ql_either){.narrow = y.narrow});
    return norm_forward(d, x, NULL, w, eps, (ql_either){.wide = y.wide});
}

/* dx = rstd * (w dy) - x * rstd^3 / d * sum(w dy x) */
INLINE void norm_backward(size_t d, const float *wide, const uint16_t *narrow, const float *w, float rstd,
                          const float *dy, float *dx, bool add)
{
    vf dots = vset(0);
    for (size_t i = 0; i < d; i += VN)
        dots = vfma(vget(w + i, d - i) * vget(dy + i, d - i), vget_either(wide, narrow, i, d), dots);
    vf pull = vset(-rstd * rstd * rstd * (vsum(dots) / (float)d));
    for (size_t i = 0; i < d; i += VN) {
        vf direct = vget(w + i, d - i) * vget(dy + i, d - i) * vset(rstd);
        vf grad = vfma(vget_either(wide, narrow, i, d), pull, direct);
        if (add)
            grad = vget(dx + i, d - i) + grad;
        vput(dx + i, grad, d - i);
    }
}

static void rmsnorm_backward(size_t d, const float *x, const float *w, float rstd, const float *dy, float *dx, bool add)
{
    norm_backward(d, x, NULL, w, rstd, dy, dx, add);
}

static void rmsnorm_backward_narrow(size_t d, const uint16_t *x, const float *w, float rstd, const float *dy, float *dx)
{
    norm_backward(d, NULL, x, w, rstd, dy, dx, true);
}

static void rotate(size_t half, const float *cos, const float *sin, bool inverse, float *x)
{
    vf sign = vset(inverse ? -1.0f : 1.0f);
    for (size_t i = 0; i < half; i += VN) {
        size_t left = half - i;
        vf a = vget(x + i, left), b = vget(x + half + i, left);
        vf c = vget(cos + i, left), s = vget(sin + i, left) * sign;
        vput(x + i, a * c - b * s, left);
        vput(x + half + i, b * c + a * s, left);
    }
}

/* Each unit is f(g) = g s. SwiGLU: s = 1 / (1 + exp(-g)), and f'(g) = s (1 + g (1 - s)). GEGLU, gelu by tanh:
 * s = 1 / (1 + exp(-2 u)), u = sqrt(2 / pi) (g + 0.044715 g^3), and f'(g) = s (1 + g (1 - s) 2 u'). */
INLINE vf share_of(ql_glu glu, vf g, bool rough)
{
    if (glu == QL_GEGLU)
        g = vset(1.5957691f) * g * vfma(g * g, vset(0.044715f), vset(1));
    return rough ? vsigmoid_rough(g) : vsigmoid(g);
}

/* What goes to bf16 by its instruction need not be as exact as fp32. */
INLINE bool rough_for(ql_either out)
{
#ifdef __AVX512BF16__
    return out.narrow != NULL;
#else
    (void)out;
    return false;
#endif
}

INLINE vf slope_of(ql_glu glu, vf g, vf s)
{
    vf one = vset(1);
    if (glu == QL_GEGLU)
        g = g * vset(1.5957691f) * vfma(g * g, vset(3 * 0.044715f), one);
    return s * vfma(g, one - s, one);
}

INLINE void glu_forward(ql_glu glu, size_t d, const ql_glu_row *in, ql_either act, ql_glu_waiting waiting)
{
    for (size_t i = 0; i < d; i += VN) {
        vf g = vget_either(in->gate, in->narrow_gate, i, d), u = vget_either(in->up, in->narrow_up, i, d);
        if (waiting.gate) {
            vput_narrow(waiting.gate + i, g, d - i);
            vput_narrow(waiting.up + i, u, d - i);
        }
        vput_either(act, g * share_of(glu, g, rough_for(act)) * u, i, d);
    }
}

INLINE void glu_backward(ql_glu glu, size_t d, const ql_glu_row *in, const float *dact, const ql_glu_out *out)
{
    for (size_t i = 0; i < d; i += VN) {
        vf g = vget_either(in->gate, in->narrow_gate, i, d), u = vget_either(in->up, in->narrow_up, i, d);
        vf dy = vget(dact + i, d - i), s = share_of(glu, g, rough_for(out->dgate)), f = g * s;
        vput_either(out->dgate, dy * u * slope_of(glu, g, s), i, d);
        vput_either(out->dup, dy * f, i, d);
        if (out->act.wide || out->act.narrow)
            vput_either(out->act, f * u, i, d);
    }
}

/* What is NULL becomes a constant. */
INLINE void glu_forward_from(ql_glu glu, size_t d, const ql_glu_row *in, ql_either act, const ql_glu_waiting *waiting)
{
    if (waiting && act.narrow)
        glu_forward(glu, d, in, (ql_either){.narrow = act.narrow}, *waiting);
    else if (waiting)
        glu_forward(glu, d, in, (ql_either){.wide = act.wide}, *waiting);
    else if (act.narrow)
        glu_forward(glu, d, in, (ql_either){.narrow = act.narrow}, (ql_glu_waiting){0});
    else
        glu_forward(glu, d, in, (ql_either){.wide = act.wide}, (ql_glu_waiting){0});
}

INLINE void glu_backward_from(ql_glu glu, size_t d, const ql_glu_row *in, const float *dact, const ql_glu_out *out)
{
    ql_either dgate = out->dgate, dup = out->dup, act = out->act;
    if (dgate.narrow && act.narrow)
        glu_backward(glu, d, in, dact,
                     &(ql_glu_out){{.narrow = dgate.narrow}, {.narrow = dup.narrow}, {.narrow = act.narrow}, 0});
    else if (dgate.narrow)
        glu_backward(glu, d, in, dact, &(ql_glu_out){{.narrow = dgate.narrow}, {.narrow = dup.narrow}, {0}, 0});
    else if (act.wide)
        glu_backward(glu, d, in, dact, &(ql_glu_out){{.wide = dgate.wide}, {.wide = dup.wide}, {.wide = act.wide}, 0});
    else
        glu_backward(glu, d, in, dact, &(ql_glu_out){{.wide = dgate.wide}, {.wide = dup.wide}, {0}, 0});
}

#define GLU(name, glu)                                                                                                 \
    static void name(size_t d, const ql_glu_row *in, ql_either act, const ql_glu_waiting *waiting)                     \
    {                                                                                                                  \
        if (in->narrow_gate)                                                                                           \
            glu_forward_from(glu, d, &(ql_glu_row){.narrow_gate = in->narrow_gate, .narrow_up = in->narrow_up}, act,   \
                             NULL);                                                                                    \
        else                                                                                                           \
            glu_forward_from(glu, d, &(ql_glu_row){.gate = in->gate, .up = in->up}, act, waiting);                     \
    }                                                                                                                  \
    static void name##_backward(size_t d, const ql_glu_row *in, const float *dact, const ql_glu_out *out)              \
    {                                                                                                                  \
        if (in->narrow_gate)                                                                                           \
            glu_backward_from(glu, d, &(ql_glu_row){.narrow_gate = in->narrow_gate, .narrow_up = in->narrow_up}, dact, \
                              out);                                                                                    \
        else                                                                                                           \
            glu_backward_from(glu, d, &(ql_glu_row){.gate = in->gate, .up = in->up}, dact, out);                       \
    }

GLU(swiglu, QL_SWIGLU)
GLU(geglu, QL_GEGLU)

static void softcap(size_t n, float *x, float cap)
{
    for (size_t i = 0; i < n; i += VN)
        vput(x + i, vsoftcap(vget(x + i, n - i), cap), n - i);
}

static void softcap_exp_slope(size_t n, float *x, float cap, float shift)
{
    for (size_t i = 0; i < n; i += VN) {
        vf score = vget(x + i, n - i);
        vput(x + i, vexp(score - vset(shift)) * vsoftcap_slope(score, cap), n - i);
    }
}

/* x * 0 is NaN for infinities and NaN. */
static bool all_finite(size_t n, const float *x)
{
    vf zeros = vset(0);
    for (size_t i = 0; i < n; i += VN)
        zeros = vfma(vget(x + i, n - i), vset(0), zeros);
    return vsum(zeros) == 0;
}

static const float no_value = -__FLT_MAX__; /* with the exponential 0 */

static inline __attribute__((always_inline)) void add_exponentials(size_t n, float *x, float shift, bool keep,
                                                                   bool rough, ql_exp_sum *out)
{
    const vf base2 = vset(0x1.715476p+0f), from = vset(-shift * 0x1.715476p+0f);
    vf best = vset(out->max), zeros = vset(0), sum = vset(0);
    for (size_t i = 0; i < n; i += VN) {
        vf v = vget(x + i, n - i);
        if (n - i < VN)
            v = vfirst(v, n - i, vset(no_value));
        best = vmax(v, best);
        zeros = vfma(v, vset(0), zeros);
        vf e = rough ? vexp2_rough(vfma(v, base2, from)) : vexp(v - vset(shift));
        if (keep)
            vput(x + i, e, n - i);
        sum = sum + e;
    }
    out->max = vhighest(best);
    out->bad |= vsum(zeros) != 0;
    out->sum += (double)vsum(sum);
}

static void exp_sum(size_t n, float *x, float shift, bool keep, bool rough, ql_exp_sum *out)
{
    /* fp32 within a stretch, double between: the error does not grow with n. */
    enum { STRETCH = 64 * VN };
    for (size_t at = 0; at < n; at += STRETCH) {
        size_t count = n - at < STRETCH ? n - at : STRETCH;
        if (keep && rough)
            add_exponentials(count, x + at, shift, true, true, out);
        else if (rough)
            add_exponentials(count, x + at, shift, false, true, out);
        else if (keep)
            add_exponentials(count, x + at, shift, true, false, out);
        else
            add_exponentials(count, x + at, shift, false, false, out);
    }
}

static void scale(size_t n, float *x, float factor)
{
    for (size_t i = 0; i < n; i += VN)
        vput(x + i, vget(x + i, n - i) * vset(factor), n - i);
}

static void add_scaled(size_t n, float factor, const float *x, float *y)
{
    for (size_t i = 0; i < n; i += VN)
        vput(y + i, vfma(vget(x + i, n - i), vset(factor), vget(y + i, n - i)), n - i);
}

static float dot(size_t n, const float *x, const float *y)
{
    vf sum = vset(0);
    for (size_t i = 0; i < n; i += VN)
        sum = vfma(vget(x + i, n - i), vget(y + i, n - i), sum);
    return vsum(sum);
}

static void exponentials(size_t n, float *x)
{
    for (size_t i = 0; i < n; i += VN)
        vput(x + i, vexp(vget(x + i, n - i)), n - i);
}

static void add(size_t n, const float *x, float *y)
{
    for (size_t i = 0; i < n; i += VN)
        vput(y + i, vget(y + i, n - i) + vget(x + i, n - i), n - i);
}

static void narrow(size_t n, const float *x, uint16_t *y)
{
    for (size_t i = 0; i < n; i += VN)
        vput_narrow(y + i, vget(x + i, n - i), n - i);
}

static void widen(size_t n, const uint16_t *x, float *y)
{
    for (size_t i = 0; i < n; i += VN)
        vput(y + i, vget_narrow(x + i, n - i), n - i);
}

const ql_row_kernels QL_TIER_NAME(ql_rows) = {
    .rmsnorm = rmsnorm,
    .rmsnorm_backward = rmsnorm_backward,
    .rmsnorm_backward_narrow = rmsnorm_backward_narrow,
    .rotate = rotate,
    .glu = {[QL_SWIGLU] = swiglu, [QL_GEGLU] = geglu},
    .glu_backward = {[QL_SWIGLU] = swiglu_backward, [QL_GEGLU] = geglu_backward},
    .softcap = softcap,
    .softcap_exp_slope = softcap_exp_slope,
    .all_finite = all_finite,
    .exp_sum = exp_sum,
    .scale = scale,
    .add_scaled = add_scaled,
    .dot = dot,
    .exponentials = exponentials,
    .add = add,
    .narrow = narrow,
    .widen = widen,
};
