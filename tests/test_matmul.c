/* Every kernel of the list that this processor has, in every format, against sums in double. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cpu.h"
#include "kern/kernels.h"
#include "kern/decode.h"
#include "kern/gemv.h"
#include "matmul_case.h"
#include "matmul_error.h"
#include "matmul_run.h"
#include "support.h"

typedef struct shape {
    size_t m, n, k;
} shape;

static const shape shapes[] = {{1, 1, 1},    {1, 33, 65},   {2, 16, 64},  {3, 70, 172},  {5, 31, 256},
                               {16, 100, 8}, {15, 4, 300},  {29, 97, 40}, {17, 66, 315}, {64, 64, 128},
                               {4, 17, 200}, {7, 50, 129},  {10, 33, 70}, {12, 20, 191}, {13, 3, 640}};

/* |y - sum| <= gamma_(k+4) sum |x| |w| (Higham 2002, 3.1): k products and sums in any order, the
 * product with the scale, the scale itself, the earlier y. Rounding x and w to bf16 first adds at most
 * (1 + 2^-8)^2 - 1 = 2^-7 + 2^-16 of each term. Exact data leave no error at all. */
static void check_result(const ql_matmul_kernel *kernel, const run *r, const weight_case *c, bool exact)
{
    const ql_product *p = &r->product;
    size_t inputs = ql_product_inputs(p), outputs = ql_product_outputs(p);
    double u = ldexp(1, -24), gamma = (double)(inputs + 4) * u / (1 - (double)(inputs + 4) * u);
    bool fixed = case_in_fixed_point(kernel, p);
    if ((ql_kernel_rounds(kernel, p) & QL_ROUND_BF16) && !fixed)
        gamma = ldexp(1, -7) + ldexp(1, -16) + 1.01 * gamma;
    for (size_t i = 0; i < p->m; i++) {
        for (size_t j = 0; j < p->ldy && i * p->ldy + j < span(p->m, outputs, p->ldy); j++) {
            double got = (double)p->y[i * p->ldy + j], before = (double)r->before[i * p->ldy + j];
            double sum = j >= outputs || p->add ? before : 0, size = fabs(sum);
            for (size_t l = 0; l < inputs && j < outputs; l++) {
                double w = c->values[p->transposed ? l * p->w->k + j : j * p->w->k + l];
                sum += (double)p->x[i * p->ldx + l] * w;
                size += fabs((double)p->x[i * p->ldx + l] * w);
            }
            bool bytes = (ql_kernel_rounds(kernel, p) & QL_ROUND_INT8) && j < outputs;
            double bound = exact || j >= outputs ? 0 : gamma * size;
            if (bytes)
                bound = case_byte_error(p, c, i, j, case_byte_run(kernel, p)) + gamma * size;
            else if (fixed && bound > 0)
                bound = case_fixed_error(p, c, i, j) + gamma * size;
            if (!(fabs(got - sum) <= bound)) /* ck_assert writes a file each time */
                ck_abort_msg("%s, code %d scale %d group %u%s%s, m %zu n %zu k %zu: [%zu][%zu] is %.9g, not %.9g "
                             "(bound %.3g)",
                             kernel->name, (int)p->w->format.code, (int)p->w->format.scale, p->w->format.group,
                             p->w->format.flat ? " flat" : "", p->transposed ? " transposed" : "", p->m, p->w->n,
                             p->w->k, i, j, got, sum, bound);
        }
    }
}

/* The list, and after it what only tests run. */
static const ql_matmul_kernel *kernel_at(int index)
{
#ifdef __x86_64__
    if (index == (int)ql_matmul_kernel_count)
        return &ql_matmul_amx_emulated;
    if (index == (int)ql_matmul_kernel_count + 1)
        return &ql_matmul_amx_int8_emulated;
#endif
    return ql_matmul_kernels[index];
}

static bool runnable(const ql_matmul_kernel *kernel)
{
    return (kernel->cpu & ~ql_cpu_features()) == 0;
}

static void check_weight(const ql_matmul_kernel *kernel, ql_format format, shape s, bool exact, bool low, ql_rng *rng)
{
    weight_case c;
    weight_case_make(&c, format, s.n, s.k, exact, low, rng);
    for (int way = 0; way < 4 && kernel->accepts(&c.view); way++) {
        run r;
        run_make(&r, &c, way & 1, s.m, way & 2, exact, low, rng);
        multiply(kernel, &r.product, 1);
        check_result(kernel, &r, &c, exact);
        run_free(&r);
    }
    weight_case_free(&c);
}

START_TEST(kernel_is_right)
{
    const ql_matmul_kernel *kernel = kernel_at(_i);
    if (!runnable(kernel)) {
        printf("skipped: kernel %s needs another processor\n", kernel->name);
        return;
    }
    ql_format format;
    ql_rng rng = {.seed = 7, .stream = (uint64_t)_i};
    for (size_t f = 0; case_format(f, &format); f++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            check_weight(kernel, format, shapes[s], true, s % 2, &rng);
            check_weight(kernel, format, shapes[s], false, s % 2, &rng);
        }
}
END_TEST

/* Groups of all sizes, rows that end anywhere in a unit of 128 columns, and as many groups as there may be. */
START_TEST(few_tokens_are_right)
{
    const ql_matmul_kernel *kernel = kernel_at(_i);
    static const size_t lengths[] = {31, 33, 64, 96, 127, 128, 129, 160, 191, 193, 255, 257, 321, 1090};
    static const ql_code codes[] = {QL_CODE_NF4, QL_CODE_INT8};
    ql_rng rng = {.seed = 14};
    for (uint32_t group = 32; group <= 512 && runnable(kernel); group *= 2)
        for (size_t c = 0; c < 2; c++) {
            ql_format format = {codes[c], QL_SCALE_DQ, group, false};
            for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
                check_weight(kernel, format, (shape){1 + i % 4, 5, lengths[i]}, true, i % 2, &rng);
                check_weight(kernel, format, (shape){1, 5, lengths[i]}, false, i % 2, &rng);
                check_weight(kernel, format, (shape){2 + i % 3, 5, lengths[i]}, false, i % 2, &rng);
            }
            check_weight(kernel, format, (shape){1, 2, QL_GEMV_SCALES * 32 - 30}, false, false, &rng);
        }
}
END_TEST

/* Every product of the largest size and of one sign: integer sums, where a kernel has them, must hold them. */
START_TEST(largest_sums_fit)
{
    const ql_matmul_kernel *kernel = kernel_at(_i);
    static const size_t tokens[] = {1, 2, 4, 8, 16};
    ql_format format;
    ql_rng rng = {.seed = 13};
    for (size_t f = 0; case_format(f, &format) && runnable(kernel); f++) {
        weight_case c;
        weight_case_make(&c, format, 20, 512, false, false, &rng);
        unsigned code = 0;
        for (unsigned i = 1; i < 16 && c.view.table; i++)
            code = fabsf(c.view.table[i]) > fabsf(c.view.table[code]) ? i : code;
        if (c.view.table || format.code == QL_CODE_INT8)
            memset(c.arrays[0].data, c.view.table ? (int)(code * 17) : 127, c.view.n * c.view.row_bytes);
        for (size_t i = 0; i < c.view.n * c.view.k; i++)
            c.values[i] = (double)ql_wview_at(&c.view, i / c.view.k, i % c.view.k);
        for (size_t i = 0; i < 5 && kernel->accepts(&c.view); i++) {
            run r;
            run_make(&r, &c, false, tokens[i], false, false, false, &rng);
            for (size_t x = 0; x < span(r.product.m, c.view.k, r.product.ldx); x++)
                ((float *)(void *)r.x.data)[x] = 0.99999f;
            multiply(kernel, &r.product, 1);
            check_result(kernel, &r, &c, false);
            run_free(&r);
        }
        weight_case_free(&c);
    }
}
END_TEST

/* More than one rectangle each way, more than one panel, ragged everywhere. */
START_TEST(kernel_is_right_in_several_tiles)
{
    const ql_matmul_kernel *kernel = kernel_at(_i);
    static const ql_format formats[] = {{QL_CODE_NF4, QL_SCALE_DQ, 64, false}, {QL_CODE_INT8, QL_SCALE_DQ, 64, false}};
    ql_rng rng = {.seed = 8, .stream = (uint64_t)_i};
    for (int f = 0; f < 2 && runnable(kernel); f++) {
        check_weight(kernel, formats[f], (shape){290, 277, 341}, true, false, &rng);
        check_weight(kernel, formats[f], (shape){30, 550, 600}, true, false, &rng);
        check_weight(kernel, formats[f], (shape){45, 70, 1100}, false, false, &rng);
    }
}
END_TEST

START_TEST(threads_do_not_change_a_bit)
{
    const ql_matmul_kernel *kernel = kernel_at(_i);
    if (!runnable(kernel))
        return;
    static const size_t tokens[] = {1, 4, 100, 300};
    ql_rng rng = {.seed = 9, .stream = (uint64_t)_i};
    weight_case c;
    weight_case_make(&c, ql_format_default(), 330, 520, false, false, &rng);
    for (size_t i = 0; i < 8; i++) {
        run r;
        run_make(&r, &c, i & 1, tokens[i / 2], false, false, false, &rng);
        size_t bytes = span(r.product.m, ql_product_outputs(&r.product), r.product.ldy) * sizeof(float);
        float *one = malloc(bytes);
        multiply(kernel, &r.product, 1);
        memcpy(one, r.product.y, bytes);
        for (size_t threads = 2; threads <= 16; threads += threads == 3 ? 13 : 1) {
            memset(r.product.y, 0, sizeof(float));
            multiply(kernel, &r.product, threads);
            ck_assert_msg(memcmp(one, r.product.y, bytes) == 0, "%s: %zu threads", kernel->name, threads);
        }
        free(one);
        run_free(&r);
    }
    weight_case_free(&c);
}
END_TEST

/* y in bf16 is y in fp32 rounded, and nothing past its rows is written. */
static void check_narrow_y(const ql_matmul_kernel *kernel, const ql_product *narrow_x, const float *wide, size_t ys)
{
    const uint16_t mark = 0x4129;
    size_t outputs = ql_product_outputs(narrow_x);
    guarded y = guarded_new(ys * sizeof(uint16_t), false);
    uint16_t *at = (uint16_t *)(void *)y.data;
    ql_product p = *narrow_x;
    for (size_t j = 0; j < ys; j++)
        at[j] = mark;
    p.y = NULL;
    p.narrow_y = at;
    multiply(kernel, &p, 2);
    for (size_t j = 0; j < ys; j++)
        ck_assert_msg(at[j] == (j % p.ldy < outputs ? ql_f32_to_bf16(wide[j]) : mark), "%s: %zu tokens, number %zu",
                      kernel->name, p.m, j);
    guarded_free(&y);
}

/* x in bf16 counts as its values in fp32, to the bit, and nothing past its rows is read. */
START_TEST(narrow_x_gives_the_bits_of_wide_x)
{
    const ql_matmul_kernel *kernel = kernel_at(_i);
    static const size_t tokens[] = {1, 7, 16, 45};
    ql_rng rng = {.seed = 12};
    weight_case c;
    weight_case_make(&c, ql_format_default(), 70, 172, false, false, &rng);
    for (size_t i = 0; i < 8 && runnable(kernel); i++) {
        run r;
        run_make(&r, &c, i & 1, tokens[i / 2], false, false, false, &rng);
        ql_product *p = &r.product, narrow;
        size_t count = span(p->m, ql_product_inputs(p), p->ldx), ys = span(p->m, ql_product_outputs(p), p->ldy);
        guarded x = guarded_new(count * sizeof(uint16_t), false);
        for (size_t j = 0; j < count; j++) {
            uint16_t half = ql_f32_to_bf16(p->x[j]);
            memcpy(x.data + 2 * j, &half, sizeof half);
            ((float *)(void *)r.x.data)[j] = ql_bf16_to_f32(half);
        }
        multiply(kernel, p, 1);
        float *wide = malloc(ys * sizeof(float));
        memcpy(wide, p->y, ys * sizeof(float));
        memcpy(p->y, r.before, ys * sizeof(float));
        narrow = *p;
        narrow.x = NULL;
        narrow.narrow = (const uint16_t *)(void *)x.data;
        multiply(kernel, &narrow, 2);
        ck_assert_msg(memcmp(wide, p->y, ys * sizeof(float)) == 0, "%s: %zu tokens", kernel->name, p->m);
        if (kernel->reads_narrow && kernel->reads_narrow(p))
            check_narrow_y(kernel, &narrow, wide, ys);
        free(wide);
        guarded_free(&x);
        run_free(&r);
    }
    weight_case_free(&c);
}
END_TEST

/* A token with a NaN gives nothing else, the others nothing of it. */
START_TEST(nan_is_not_lost)
{
    const ql_matmul_kernel *kernel = kernel_at(_i);
    static const size_t tokens[] = {1, 2, 4, 7, 16, 45};
    ql_rng rng = {.seed = 14};
    weight_case c;
    weight_case_make(&c, ql_format_default(), 70, 172, false, false, &rng);
    for (size_t i = 0; i < 12 && runnable(kernel); i++) {
        run r;
        run_make(&r, &c, i & 1, tokens[i / 2], false, false, false, &rng);
        ql_product *p = &r.product;
        size_t bad = p->m / 2;
        ((float *)(void *)r.x.data)[bad * p->ldx + 5] = NAN;
        multiply(kernel, p, 1);
        for (size_t t = 0; t < p->m; t++)
            for (size_t j = 0; j < ql_product_outputs(p); j++)
                ck_assert_msg(isnan(p->y[t * p->ldy + j]) == (t == bad), "%s: token %zu of %zu", kernel->name, t, p->m);
        run_free(&r);
    }
    weight_case_free(&c);
}
END_TEST

/* Scratch is reserved once, for the most tokens. */
START_TEST(scratch_is_enough_for_fewer_tokens)
{
    const ql_matmul_kernel *kernel = kernel_at(_i);
    ql_format format;
    ql_rng rng = {.seed = 11};
    for (size_t f = 0; case_format(f, &format); f++) {
        weight_case c;
        weight_case_make(&c, format, 40, 8, false, false, &rng);
        for (size_t most = 1; most < 40; most++)
            for (size_t m = 1; m < 2 * most; m++) {
                ql_product all = {.w = &c.view, .transposed = m > most, .m = most}, some = all;
                some.m = (m - 1) % most + 1;
                ql_scratch have = ql_product_scratch(kernel, &all, 2), need = ql_product_scratch(kernel, &some, 2);
                if (have.shared < need.shared || have.worker < need.worker)
                    ck_abort_msg("%s: less scratch for %zu tokens than for %zu", kernel->name, most, some.m);
            }
        weight_case_free(&c);
    }
}
END_TEST

/* What ql_matmul_then() promises its callers. */
START_TEST(rectangles_begin_at_multiples_of_16)
{
    const ql_matmul_kernel *kernel = kernel_at(_i);
    ql_format format;
    ql_rng rng = {.seed = 12};
    for (size_t f = 0; case_format(f, &format); f++) {
        weight_case c;
        weight_case_make(&c, format, 600, 8, false, false, &rng);
        for (size_t m = 16; m < 600 && kernel->accepts(&c.view); m += m / 2 + 1)
            for (size_t threads = 1; threads < 40; threads++) {
                ql_plan plan = ql_kernel_plan(kernel, &(ql_product){.w = &c.view, .m = m}, threads);
                ck_assert_msg(plan.cols % 16 == 0 || plan.cols >= 600, "%s: %zu outputs for %zu tokens, %zu threads",
                              kernel->name, plan.cols, m, threads);
            }
        weight_case_free(&c);
    }
}
END_TEST

START_TEST(selection_follows_features)
{
    ql_rng rng = {.seed = 10};
    weight_case c;
    weight_case_make(&c, ql_format_default(), 3, 64, false, false, &rng);
    const ql_matmul_kernel *last = NULL;
    for (size_t i = 0; i < ql_matmul_kernel_count; i++) {
        const ql_matmul_kernel *chosen = ql_matmul_select(&c.view, ql_matmul_kernels[i]->cpu, 0);
        ck_assert(!chosen->bf16_inputs && !chosen->int8_inputs);
        ck_assert((chosen->cpu & ~ql_matmul_kernels[i]->cpu) == 0);
        last = chosen;
    }
    ck_assert_ptr_eq(ql_matmul_select(&c.view, ~0u, 0), last);
    ck_assert_str_eq(ql_matmul_select(&c.view, 0, QL_ROUND_BF16 | QL_ROUND_INT8)->name, "portable");
    weight_case_free(&c);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("matmul"), *few = tcase_create("few");
    int kernels = (int)ql_matmul_kernel_count;
#ifdef __x86_64__
    kernels += 2;
#endif
    tcase_set_timeout(tcase, 300);
    tcase_set_timeout(few, 300);
    tcase_add_loop_test(tcase, kernel_is_right, 0, kernels);
    tcase_add_loop_test(few, few_tokens_are_right, 0, kernels);
    tcase_add_loop_test(tcase, largest_sums_fit, 0, kernels);
    tcase_add_loop_test(tcase, kernel_is_right_in_several_tiles, 0, kernels);
    tcase_add_loop_test(tcase, threads_do_not_change_a_bit, 0, kernels);
    tcase_add_loop_test(tcase, narrow_x_gives_the_bits_of_wide_x, 0, kernels);
    tcase_add_loop_test(tcase, nan_is_not_lost, 0, kernels);
    tcase_add_loop_test(tcase, scratch_is_enough_for_fewer_tokens, 0, kernels);
    tcase_add_loop_test(tcase, rectangles_begin_at_multiples_of_16, 0, kernels);
    tcase_add_test(tcase, selection_follows_features);
    Suite *suite = suite_create("matmul");
    suite_add_tcase(suite, tcase);
    suite_add_tcase(suite, few);
    return test_run(suite);
}
