/* AdamW with moments in 8 bits: codes against the grid that the header describes, steps against sums in double. */
#include <check.h>
#include <math.h>
#include <string.h>

#include "base/half.h"
#include "optim_support.h"
#include "train/moments8.h"

enum { BLOCK = QL_MOMENT_BLOCK };

/* The grid of the header, made anew: `places` numbers up to 1, evenly in the exponent and, within an octave, evenly. */
static double grid(int at, int places)
{
    if (at == 0)
        return 0;
    double octaves = 127 - (places - at) * floor(12.0 * 8388608 / (places == 128 ? 127 : 254)) / 8388608;
    return ldexp(1 + octaves - floor(octaves), (int)floor(octaves) - 127);
}

static double value1(uint8_t code)
{
    return code > 128 ? -grid(code - 127, 128) : grid(code, 128);
}

static void all_codes(uint8_t code[BLOCK])
{
    for (int i = 0; i < BLOCK; i++)
        code[i] = (uint8_t)i;
}

/* Every code is decoded to its own number, and encoded to itself again; so are blocks whose scale is negative. */
START_TEST(moments_use_every_code)
{
    uint8_t code[BLOCK], again[BLOCK];
    float x[BLOCK];
    all_codes(code);
    for (int sign = -1; sign <= 1; sign += 2) {
        float scale = 3.7e-5f * (float)sign;
        ql_moment1_decode(code, BLOCK, scale, x);
        for (int i = 0; i < BLOCK; i++)
            ck_assert_double_eq_tol((double)x[i] / (double)scale, value1(code[i]), 1e-7 * fabs(value1(code[i])) + 1e-30);
        ck_assert(x[0] == 0 && x[128] == scale);
        x[255] /= 2; /* as large as x[128]: which of the two the scale is would be open */
        float found = ql_moment1_encode(x, BLOCK, again);
        ck_assert(found == scale);
        ck_assert_mem_eq(again, code, BLOCK - 1);
    }
    ql_moment2_decode(code, BLOCK, 0.013f, x);
    for (int i = 0; i < BLOCK; i++) {
        double root = grid(i, 255) * (double)0.013f;
        ck_assert_double_eq_tol((double)x[i], root * root, 3e-7 * root * root + 1e-30);
    }
    ck_assert_float_eq(ql_moment2_encode(x, BLOCK, again), 0.013f);
    ck_assert_mem_eq(again, code, BLOCK);
}
END_TEST

/* How far apart two positive numbers are, in steps of their grid: by exponent and, within an octave, evenly. */
static double apart(double a, double b, int places)
{
    int ea, eb;
    double fa = frexp(a, &ea), fb = frexp(b, &eb), step = floor(12.0 * 8388608 / (places == 128 ? 127 : 254)) / 8388608;
    return fabs(ea + 2 * fa - eb - 2 * fb) / step;
}

/* Whether `got` is what y in [-1, 1] rounds to. The smallest numbers of the grid are the only ones near 0. */
static bool rounded1(double y, double got)
{
    double lowest = grid(y > 0 ? 1 : 2, 128);
    if (fabs(y) >= lowest)
        return got * y > 0 && apart(fabs(y), fabs(got), 128) <= 0.5001;
    return fabs(fabs(got) - (fabs(y) < lowest / 2 ? 0 : lowest)) < 1e-6 * lowest ||
           fabs(fabs(y) / lowest - 0.5) < 1e-6;
}

static bool rounded2(double y, double got)
{
    double lowest = grid(1, 255);
    return y >= lowest ? got > 0 && apart(y, got, 255) <= 0.5001 : fabs(got - (y > 0 ? lowest : 0)) <= 1e-6 * lowest;
}

START_TEST(moments_are_rounded_to_the_nearest)
{
    float m[BLOCK], v[BLOCK], back[BLOCK];
    uint8_t code[BLOCK];
    for (int round = 0; round < 200; round++) {
        size_t count = round % 7 ? BLOCK : 1 + (size_t)round;
        double largest = 0, highest = 0;
        for (size_t i = 0; i < count; i++) {
            double size = exp(12 * sin((double)(round * 977 + (int)i * 31)) - 8);
            m[i] = i % 11 == 3 ? 0 : (float)(i % 3 ? size : -size);
            v[i] = i % 13 == 5 ? 0 : (float)(size * size);
            largest = fabs((double)m[i]) > fabs(largest) ? (double)m[i] : largest;
            highest = (double)v[i] > highest ? (double)v[i] : highest;
        }
        float scale = ql_moment1_encode(m, count, code);
        ck_assert_double_eq((double)scale, largest);
        ql_moment1_decode(code, count, scale, back);
        for (size_t i = 0; i < count; i++)
            ck_assert(rounded1((double)m[i] / largest, (double)back[i] / largest));
        scale = ql_moment2_encode(v, count, code);
        ql_moment2_decode(code, count, scale, back);
        for (size_t i = 0; i < count; i++)
            ck_assert(rounded2(sqrt((double)v[i] / highest), sqrt((double)back[i] / highest)));
    }
    memset(m, 0, sizeof m);
    ck_assert(ql_moment1_encode(m, BLOCK, code) == 0 && ql_moment2_encode(m, BLOCK, code) == 0);
    ql_moment1_decode(code, BLOCK, 0, back);
    ck_assert_mem_eq(back, m, sizeof m);
}
END_TEST

/* Step after step: from the moments that the codes mean, the update in double; then what the new codes mean. */
START_TEST(adamw8bit_agrees_with_sums_in_double)
{
    enum { N = 19 * 31 };
    ql_adapters *set = make_set(10, 9, 31);
    ql_adamw opt;
    const ql_adamw_options options = {QL_OPTIM_ADAMW_8BIT, 0.9, 0.99, 1e-8, 0.01, 1};
    ck_assert_uint_eq(set->count, N);
    ck_assert_int_eq(ql_adamw_init(&opt, N, &options, NULL), QL_OK);
    ck_assert_uint_eq(ql_adamw_bytes(QL_OPTIM_ADAMW_8BIT, 1 << 20), (1 << 20) * 2 + (1 << 12) * 8);
    ql_adapters_init(set, 3);
    for (int step = 1; step <= 30; step++) {
        double m[N], v[N], p[N];
        for (size_t i = 0; i < N; i++) {
            double root = grid(opt.v8[i], 255) * (double)opt.v_scale[i / BLOCK];
            set->grad[i] = i % 17 == 4 ? 0 : table_grad(i, (size_t)step);
            double g = (double)set->grad[i];
            m[i] = 0.9 * value1(opt.m8[i]) * (double)opt.m_scale[i / BLOCK] + 0.1 * g;
            v[i] = 0.99 * root * root + 0.01 * g * g;
            p[i] = (double)set->master[i] * (1 - 1e-3 * 0.01) -
                   1e-3 / (1 - pow(0.9, step)) * m[i] / (sqrt(v[i] / (1 - pow(0.99, step))) + 1e-8);
        }
        ql_adamw_step(&opt, set, 1e-3, 1, NULL);
        for (size_t i = 0; i < N; i++) {
            double scale = (double)opt.m_scale[i / BLOCK], top = (double)opt.v_scale[i / BLOCK];
            ck_assert_double_eq_tol((double)set->master[i], p[i], 1e-7 * fabs(p[i]) + 1e-8);
            ck_assert_uint_eq(set->value[i], ql_f32_to_f16(set->master[i]));
            ck_assert(rounded1(m[i] / scale, value1(opt.m8[i])));
            ck_assert(rounded2(sqrt(v[i]) / top, grid(opt.v8[i], 255)));
            ck_assert(i % 17 != 4 || (opt.m8[i] == 0 && opt.v8[i] == 0));
        }
    }
    ql_adamw_free(&opt);
    ql_adapters_destroy(set);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("optim_8bit");
    TCase *tc = tcase_create("optim_8bit");
    suite_add_tcase(suite, tc);
    tcase_add_test(tc, moments_use_every_code);
    tcase_add_test(tc, moments_are_rounded_to_the_nearest);
    tcase_add_test(tc, adamw8bit_agrees_with_sums_in_double);
    return test_run(suite);
}
