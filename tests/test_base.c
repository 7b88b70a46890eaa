/* The base room: half conversions against exhaustive facts, Philox against its published vectors,
 * the arena, workers and the instruction-set cap. */
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/workers.h"
#include "support.h"

START_TEST(f16_round_trips_every_pattern)
{
    for (uint32_t h = 0; h < 0x10000; h++) {
        float x = ql_f16_to_f32((uint16_t)h);
        if (isnan(x))
            ck_assert(isnan(ql_f16_to_f32(ql_f32_to_f16(x))));
        else
            ck_assert_uint_eq(ql_f32_to_f16(x), h);
    }
}
END_TEST

START_TEST(f16_rounds_to_nearest_even)
{
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float low = ql_f16_to_f32((uint16_t)h), high = ql_f16_to_f32((uint16_t)(h + 1));
        float middle = (low + high) / 2; /* exact in fp32 */
        ck_assert_uint_eq(ql_f32_to_f16(middle), h % 2 ? h + 1 : h);
        ck_assert_uint_eq(ql_f32_to_f16(nextafterf(middle, 0)), h);
        ck_assert_uint_eq(ql_f32_to_f16(nextafterf(middle, 1e9f)), h + 1);
    }
    ck_assert_uint_eq(ql_f32_to_f16(65519.996f), 0x7bff);
    ck_assert_uint_eq(ql_f32_to_f16(65520.0f), 0x7c00);
    ck_assert_uint_eq(ql_f32_to_f16(-INFINITY), 0xfc00);
}
END_TEST

START_TEST(bf16_rounds_to_nearest_even)
{
    for (uint32_t h = 0; h < 0x7f7f; h++) {
        uint32_t middle = h << 16 | 0x8000;
        ck_assert_uint_eq(ql_f32_to_bf16(ql_float_from_bits(middle)), h % 2 ? h + 1 : h);
        ck_assert_uint_eq(ql_f32_to_bf16(ql_float_from_bits(middle - 1)), h);
        ck_assert_uint_eq(ql_f32_to_bf16(ql_float_from_bits(middle + 1)), h + 1);
    }
    ck_assert(isnan(ql_bf16_to_f32(ql_f32_to_bf16(ql_float_from_bits(0x7f800001)))));
}
END_TEST

/* Known answers of the Random123 distribution (kat_vectors, philox4x32 10). */
START_TEST(philox_known_answers)
{
    uint32_t out[4];
    ql_philox(0, 0, 0, out);
    const uint32_t zero[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    ck_assert_mem_eq(out, zero, sizeof zero);
    ql_philox(~0ull, ~0ull, ~0ull, out);
    const uint32_t ones[4] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
    ck_assert_mem_eq(out, ones, sizeof ones);
    ql_philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88, out);
    const uint32_t pi[4] = {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
    ck_assert_mem_eq(out, pi, sizeof pi);
}
END_TEST

START_TEST(arena_measures_what_it_carves)
{
    ql_arena plan = {0}, real = {.base = ql_alloc(4096)};
    ck_assert_ptr_null(ql_take(&plan, 3, float));
    ck_assert_ptr_null(ql_take(&plan, 100, char));
    float *a = ql_take(&real, 3, float);
    char *b = ql_take(&real, 100, char);
    ck_assert_uint_eq(plan.used, real.used);
    ck_assert_uint_eq(real.used, 64 + 128);
    ck_assert_ptr_eq(b, (char *)a + 64);
    ck_assert_uint_eq((uintptr_t)a % QL_ALIGN, 0);
    free(real.base);
    ql_take(&plan, SIZE_MAX / 2, double);
    ck_assert_uint_ge(plan.used, SIZE_MAX / 2 - QL_ALIGN); /* saturated: no allocation will grant it */
    ql_take(&plan, 1, char);
    ck_assert_uint_ge(plan.used, SIZE_MAX / 2 - QL_ALIGN);
}
END_TEST

static void mark(void *ctx, size_t index, size_t worker)
{
    unsigned char(*seen)[8] = ctx;
    __atomic_fetch_add(&seen[index][worker], 1, __ATOMIC_RELAXED);
}

START_TEST(workers_run_each_index_once)
{
    ql_workers *workers;
    unsigned char seen[100][8] = {{0}};
    ck_assert_int_eq(ql_workers_create(&workers, 4, NULL), QL_OK);
    ck_assert_int_eq(ql_workers_reserve(workers, (ql_scratch){100, 1000}, NULL), QL_OK);
    ck_assert(ql_scratch_fits(workers, (ql_scratch){100, 1000}));
    ck_assert_int_ge((char *)ql_worker_scratch(workers, 1) - (char *)ql_worker_scratch(workers, 0), 1000);
    ql_parallel(workers, 100, mark, seen);
    for (int i = 0; i < 100; i++) {
        int runs = 0;
        for (int worker = 0; worker < 8; worker++)
            runs += seen[i][worker];
        ck_assert_int_eq(runs, 1);
    }
    ql_workers_destroy(workers);
}
END_TEST

static void run_backwards(void *self, size_t count, ql_task *task, void *ctx)
{
    ++*(int *)self;
    for (size_t i = count; i-- > 0;)
        task(ctx, i, i % 2);
}

START_TEST(workers_take_the_callers_threads)
{
    ql_workers *workers;
    int calls = 0;
    unsigned char seen[5][8] = {{0}};
    ck_assert_int_eq(ql_workers_adopt(&workers, 2, run_backwards, &calls, NULL), QL_OK);
    ql_parallel(workers, 5, mark, seen);
    ck_assert_int_eq(calls, 1);
    ck_assert_int_eq(seen[3][1], 1);
    ql_workers_destroy(workers);
    ql_error err = {0};
    ck_assert_int_eq(ql_workers_adopt(&workers, 2, NULL, NULL, &err), QL_ERR_ARG);
    ck_assert_ptr_null(workers);
    ck_assert_str_ne(err.message, "");
}
END_TEST

START_TEST(caps_only_take_away)
{
    uint32_t all = ~0u;
    ck_assert_uint_eq(ql_cpu_cap(all, "scalar"), 0);
    ck_assert_uint_eq(ql_cpu_cap(all, "avx2"), QL_CPU_AVX2);
    ck_assert_uint_eq(ql_cpu_cap(all, "avx512") & QL_CPU_AVX512_BF16, 0);
    ck_assert_uint_eq(ql_cpu_cap(QL_CPU_AVX2, "amx"), QL_CPU_AVX2);
    ck_assert_uint_eq(ql_cpu_cap(QL_CPU_AVX2, "nonsense"), QL_CPU_AVX2);
}
END_TEST

START_TEST(errors_nest)
{
    ql_error err = {0};
    ql_fail(&err, QL_ERR_IO, "line %d", 3);
    ck_assert_int_eq(ql_fail_in(&err, QL_ERR_IO, "file %s", "a.json"), QL_ERR_IO);
    ck_assert_str_eq(err.message, "file a.json: line 3");
    ck_assert_int_eq(ql_fail(NULL, QL_ERR_ARG, "nobody listens"), QL_ERR_ARG);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("base");
    TCase *tests = tcase_create("base");
    tcase_add_test(tests, f16_round_trips_every_pattern);
    tcase_add_test(tests, f16_rounds_to_nearest_even);
    tcase_add_test(tests, bf16_rounds_to_nearest_even);
    tcase_add_test(tests, philox_known_answers);
    tcase_add_test(tests, arena_measures_what_it_carves);
    tcase_add_test(tests, workers_run_each_index_once);
    tcase_add_test(tests, workers_take_the_callers_threads);
    tcase_add_test(tests, caps_only_take_away);
    tcase_add_test(tests, errors_nest);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
