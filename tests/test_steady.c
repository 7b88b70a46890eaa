/* A step allocates nothing: every call of an allocator from this project's objects is counted (the linker wraps
 * them). */
#include <stdatomic.h>
#include <stdlib.h>

#include "support.h"
#include "train_case.h"

static ql_error err;
static atomic_size_t calls;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
int __real_posix_memalign(void **out, size_t align, size_t bytes);
char *__real_strdup(const char *text);

void *__wrap_malloc(size_t bytes)
{
    calls++;
    return __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    calls++;
    return __real_calloc(count, bytes);
}

void *__wrap_realloc(void *old, size_t bytes)
{
    calls++;
    return __real_realloc(old, bytes);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
    calls++;
    return __real_aligned_alloc(align, bytes);
}

int __wrap_posix_memalign(void **out, size_t align, size_t bytes)
{
    calls++;
    return __real_posix_memalign(out, align, bytes);
}

char *__wrap_strdup(const char *text)
{
    calls++;
    return __real_strdup(text);
}

static void count(train_setup *setup)
{
    train_case c;
    size_t before = calls;
    train_case_open(&c, setup);
    ck_assert_uint_gt(calls, before); /* they are counted */
    train_case_run(&c, 1);
    size_t steps = ql_trainer_steps(c.trainer);
    ql_status status = QL_OK;
    ql_step_report report;
    before = calls; /* Check allocates too: nothing of it in between */
    for (size_t i = 1; i < steps && !status; i++)
        status = ql_trainer_step(c.trainer, &report, &err);
    before = calls - before;
    ck_assert_ok(status, &err);
    ck_assert_uint_eq(ql_trainer_done(c.trainer), steps);
    ck_assert_msg(before == 0, "%zu allocations in %zu steps", before, steps - 1);
    train_case_close(&c);
}

START_TEST(steps_allocate_nothing)
{
    static const char *const formats[] = {"nf4", "int8", "bnb-nf4", "none"};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        train_setup setup = train_setup_defaults();
        ck_assert_ok(ql_format_parse(&setup.format, formats[i], 64, true, &err), &err);
        setup.threads = 1 + i % 2;
        setup.train.recompute_blocks = i % 3;
        setup.train.bf16_activations = i < 2;
        setup.config.arch = i == 1 ? QL_ARCH_QWEN3 : QL_ARCH_QWEN2;
        setup.config.qk_norm = i == 1;
        setup.config.tied = i == 2;
        count(&setup);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("steady");
    TCase *tests = tcase_create("steady");
    tcase_set_timeout(tests, 240);
    tcase_add_test(tests, steps_allocate_nothing);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
