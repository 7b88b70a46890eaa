/* The thin products of adapters, every instruction set: small integers make every sum exact, arrays end at pages that
 * fault, and what stands beside a number does not change its bits. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/half.h"
#include "base/rng.h"
#include "lora/thin.h"
#include "matmul_case.h"
#include "support.h"

enum { LANES = QL_THIN_LANES };

static const size_t tokens[] = {1, 2, 5, 12, 13, 31}, features[] = {1, 7, 16, 33, 48, 70}, ranks[] = {1, 3, 8, 16, 17, 40};
enum { SIZES = 6 };

static size_t span(size_t rows, size_t length, size_t ld)
{
    return (rows - 1) * ld + length;
}

/* Whole numbers from -4 to 4, or any in (-1, 1). */
static float *floats(guarded *g, size_t count, bool low, bool whole, ql_rng *rng)
{
    *g = guarded_new(count * sizeof(float), low);
    float *x = (float *)(void *)g->data;
    for (size_t i = 0; i < count; i++)
        x[i] = whole ? (float)ql_rng_below(rng, 9) - 4 : 2 * ql_uniform(ql_rng_next(rng)) - 1;
    return x;
}

static const ql_thin_kernels *tier(int index)
{
    const ql_thin_kernels *kernels = ql_thin_tiers[index];
    if (!(kernels->cpu & ~ql_cpu_features()))
        return kernels;
    printf("skipped: thin kernels of %s: not on this processor\n", kernels->name);
    return NULL;
}

/* Element (row, col) of the matrix whose panel that is. */
static float at(const float *panel, size_t rows, size_t row, size_t col)
{
    return panel[(col / LANES * rows + row) * LANES + col % LANES];
}

static void project_case(const ql_thin_kernels *kernels, size_t m, size_t k, size_t r, bool low, ql_rng *rng)
{
    guarded gx, gp, gh;
    size_t ldx = k + 3;
    float *x = floats(&gx, span(m, k, ldx), low, true, rng), *panel = floats(&gp, ql_thin_panel(k, r), low, true, rng);
    float *h = floats(&gh, m * r, low, true, rng);
    kernels->project(m, k, r, x, ldx, panel, 0.5f, h);
    for (size_t t = 0; t < m; t++)
        for (size_t i = 0; i < r; i++) {
            float sum = 0;
            for (size_t j = 0; j < k; j++)
                sum += x[t * ldx + j] * at(panel, k, j, i);
            ck_assert_msg(h[t * r + i] == 0.5f * sum, "%s: project m %zu k %zu r %zu: [%zu][%zu] is %g, not %g",
                          kernels->name, m, k, r, t, i, (double)h[t * r + i], 0.5 * (double)sum);
        }
    guarded_free(&gx), guarded_free(&gp), guarded_free(&gh);
}

static void expand_case(const ql_thin_kernels *kernels, size_t m, size_t cols, size_t r, bool low, ql_rng *rng)
{
    guarded gh, gp, gy;
    size_t ldy = cols + 5, count = span(m, cols, ldy);
    float *h = floats(&gh, m * r, low, true, rng), *panel = floats(&gp, ql_thin_panel(r, cols), low, true, rng);
    float *y = floats(&gy, count, low, true, rng), *before = malloc(count * sizeof *before);
    memcpy(before, y, count * sizeof *y);
    kernels->expand(m, r, cols, h, panel, y, ldy);
    for (size_t i = 0; i < count; i++) {
        float sum = before[i];
        for (size_t l = 0; l < r && i % ldy < cols; l++)
            sum += h[i / ldy * r + l] * at(panel, r, l, i % ldy);
        ck_assert_msg(y[i] == sum, "%s: expand m %zu cols %zu r %zu: [%zu][%zu] is %g, not %g", kernels->name, m, cols,
                      r, i / ldy, i % ldy, (double)y[i], (double)sum);
    }
    free(before);
    guarded_free(&gh), guarded_free(&gp), guarded_free(&gy);
}

START_TEST(products_are_exact)
{
    const ql_thin_kernels *kernels = tier(_i);
    ql_rng rng = {.seed = 3, .stream = (uint64_t)_i};
    for (size_t i = 0; kernels && i < SIZES * SIZES * SIZES; i++) {
        project_case(kernels, tokens[i % SIZES], features[i / SIZES % SIZES], ranks[i / SIZES / SIZES], i % 2, &rng);
        expand_case(kernels, tokens[i % SIZES], features[i / SIZES % SIZES], ranks[i / SIZES / SIZES], i % 2, &rng);
    }
}
END_TEST

/* Both ways into a panel, of FP16 numbers of every kind. */
START_TEST(panels_are_exact)
{
    const ql_thin_kernels *kernels = tier(_i);
    ql_rng rng = {.seed = 4};
    for (size_t i = 0; kernels && i < SIZES * SIZES; i++) {
        size_t long_side = features[i % SIZES], ld = features[i / SIZES] + 2;
        size_t narrow = features[i / SIZES] < LANES ? features[i / SIZES] : LANES;
        guarded wide = guarded_new(span(long_side, narrow, ld) * 2, i % 2), flat, out;
        uint16_t *rows = (uint16_t *)(void *)wide.data;
        for (size_t j = 0; j < span(long_side, narrow, ld); j++)
            rows[j] = (uint16_t)ql_rng_below(&rng, 0x7c00) | (uint16_t)(ql_rng_below(&rng, 2) << 15);
        float *panel = floats(&out, long_side * LANES, i % 2, true, &rng);
        kernels->widen(long_side, narrow, rows, ld, panel);
        for (size_t j = 0; j < long_side * LANES; j++)
            ck_assert(panel[j] == (j % LANES < narrow ? ql_f16_to_f32(rows[j / LANES * ld + j % LANES]) : 0));
        ld = long_side + 1;
        flat = guarded_new(span(narrow, long_side, ld) * 2, i % 2);
        uint16_t *columns = (uint16_t *)(void *)flat.data;
        for (size_t j = 0; j < span(narrow, long_side, ld); j++)
            columns[j] = (uint16_t)ql_rng_below(&rng, 0x7c00);
        kernels->turn(narrow, long_side, columns, ld, panel);
        for (size_t j = 0; j < long_side * LANES; j++)
            ck_assert(panel[j] == (j % LANES < narrow ? ql_f16_to_f32(columns[j % LANES * ld + j / LANES]) : 0));
        guarded_free(&wide), guarded_free(&flat), guarded_free(&out);
    }
}
END_TEST

/* All tokens at once or each alone, all features at once or a block at a time. */
START_TEST(neighbours_do_not_change_a_bit)
{
    enum { M = 31, K = 70, R = 19 };
    const ql_thin_kernels *kernels = tier(_i);
    if (!kernels)
        return;
    guarded gx, gp, gq;
    ql_rng rng = {.seed = 5};
    float *x = floats(&gx, M * K, false, false, &rng), *down = floats(&gp, ql_thin_panel(K, R), false, false, &rng);
    float *up = floats(&gq, ql_thin_panel(R, K), false, false, &rng);
    float h[M * R], one[M * R], y[M * K], alone[M * K];
    kernels->project(M, K, R, x, K, down, 0.3f, h);
    for (size_t t = 0; t < M; t++)
        kernels->project(1, K, R, x + t * K, K, down, 0.3f, one + t * R);
    ck_assert_mem_eq(h, one, sizeof h);
    memcpy(y, x, sizeof y);
    memcpy(alone, x, sizeof y);
    kernels->expand(M, R, K, h, up, y, K);
    for (size_t t = 0; t < M; t++)
        for (size_t j = 0; j < K; j += LANES)
            kernels->expand(1, R, K - j < LANES ? K - j : LANES, h + t * R, up + j * R, alone + t * K + j, K);
    ck_assert_mem_eq(y, alone, sizeof y);
    guarded_free(&gx), guarded_free(&gp), guarded_free(&gq);
}
END_TEST

int main(void)
{
    int tiers = 0;
    while (ql_thin_tiers[tiers])
        tiers++;
    Suite *suite = suite_create("thin");
    TCase *tc = tcase_create("thin");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, products_are_exact, 0, tiers);
    tcase_add_loop_test(tc, panels_are_exact, 0, tiers);
    tcase_add_loop_test(tc, neighbours_do_not_change_a_bit, 0, tiers);
    return test_run(suite);
}
