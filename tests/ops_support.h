/* What the tests of src/model/ops.h share. */
#ifndef QL_TESTS_OPS_SUPPORT_H
#define QL_TESTS_OPS_SUPPORT_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cpu.h"
#include "base/workers.h"
#include "model/ops.h"
#include "model/ops_kernels.h"
#include "support.h"

static const char *const tier_caps[] = {"scalar", "avx2", "avx512", "avx512-bf16"};
static const char *const tier_names[] = {"plain", "avx2", "avx512", "avx512-bf16"};
enum { TIERS = 4 };

/* Caps this (forked) test at tier i; false, with a line, where the processor lacks it or
 * tests do not fork. */
static inline bool use_tier(int i)
{
    setenv("QLORA_ISA", tier_caps[i], 1);
    if (strcmp(ql_ops_select(ql_cpu_features())->name, tier_names[i]) == 0)
        return true;
    printf("skipped: %s is not to be had here, or this process runs another tier already\n", tier_caps[i]);
    return false;
}

/* n floats that end where a page without access begins. Freed with the process. */
static inline float *guarded(size_t n)
{
    size_t page = 4096, bytes = (n * sizeof(float) + page - 1) / page * page;
    char *memory = mmap(NULL, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(memory != MAP_FAILED);
    ck_assert_int_eq(mprotect(memory + bytes, page, PROT_NONE), 0);
    return (float *)(memory + bytes) - n;
}

static uint32_t random_state = 12345;

/* Uniform in (-1, 1). */
static inline float random_float(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return ((float)(random_state >> 8) + 0.5f) / 8388608.0f - 1.0f;
}

/* rows x cols of random numbers, rows ld apart, with NaN between the rows. */
static inline float *random_matrix(size_t rows, size_t cols, size_t ld)
{
    float *x = guarded((rows - 1) * ld + cols);
    for (size_t i = 0; i < (rows - 1) * ld + cols; i++)
        x[i] = i % ld < cols ? random_float() : NAN;
    return x;
}

/* For results: all NaN, so that what is not written shows. */
static inline float *empty_matrix(size_t rows, size_t cols, size_t ld)
{
    float *x = guarded((rows - 1) * ld + cols);
    for (size_t i = 0; i < (rows - 1) * ld + cols; i++)
        x[i] = NAN;
    return x;
}

static inline void assert_gaps_untouched(const float *x, size_t rows, size_t cols, size_t ld)
{
    for (size_t i = 0; i < (rows - 1) * ld + cols; i++)
        if (i % ld >= cols)
            ck_assert(isnan(x[i]));
}

static inline ql_workers *make_workers(size_t threads, ql_scratch need)
{
    ql_workers *workers;
    ql_error err = {0};
    ck_assert_ok(ql_workers_create(&workers, threads, &err), &err);
    ck_assert_ok(ql_workers_reserve(workers, need, &err), &err);
    return workers;
}

#define assert_near(got, want, bound, ...)                                                                             \
    do {                                                                                                               \
        double near_got = (got), near_want = (want), near_bound = (bound);                                             \
        if (!(fabs(near_got - near_want) <= near_bound)) {                                                             \
            printf(__VA_ARGS__);                                                                                       \
            ck_abort_msg(": got %.9g, want %.9g, off by %.3g, bound %.3g", near_got, near_want,                        \
                         near_got - near_want, near_bound);                                                            \
        }                                                                                                              \
    } while (0)

#endif
