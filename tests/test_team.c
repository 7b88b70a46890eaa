/* The team of threads: every task once and on a thread of its own number, loop after loop, several teams at once, more
 * threads than CPUs, in a forked child, and asleep when there is nothing to do; how many CPUs there are. Built a second
 * time with the thread sanitizer (tests/meson.build). */
#define _GNU_SOURCE
#include <check.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/team.h"
#include "support.h"

enum { MOST = 300, THREADS = 16 };

typedef struct loop {
    unsigned runs[MOST];  /* of each index; written by its task alone */
    unsigned work[THREADS]; /* of each worker, likewise */
    atomic_uint busy[THREADS], clashes;
} loop;

static void mark(void *ctx, size_t index, size_t worker)
{
    loop *l = ctx;
    if (atomic_fetch_add_explicit(&l->busy[worker], 1, memory_order_relaxed) != 0)
        atomic_fetch_add_explicit(&l->clashes, 1, memory_order_relaxed);
    if (worker && index % 5 == 0)
        sched_yield(); /* time for a loop to end too early */
    l->runs[index]++;
    l->work[worker]++;
    atomic_fetch_sub_explicit(&l->busy[worker], 1, memory_order_relaxed);
}

/* `loops` loops of 1 to MOST tasks; what is wrong, or NULL. */
static const char *run_loops(ql_team *team, size_t threads, size_t loops)
{
    loop l = {.clashes = 0};
    unsigned expected[MOST] = {0}, tasks = 0, done = 0;
    for (size_t i = 0; i < loops; i++) {
        size_t count = i % 7 ? 1 + i % 40 : 1 + i % MOST;
        ql_team_run(team, count, mark, &l);
        for (size_t k = 0; k < count; k++)
            expected[k]++;
        tasks += (unsigned)count;
        for (size_t k = 0; k < MOST; k++)
            if (l.runs[k] != expected[k])
                return "a loop ended before its tasks, or ran one twice";
    }
    for (size_t worker = 0; worker < threads; worker++)
        done += l.work[worker];
    return l.clashes ? "two threads of one number" : done != tasks ? "a worker's number that is not there" : NULL;
}

static void check_loops(size_t threads, size_t loops)
{
    ql_team *team = ql_team_create(threads);
    ck_assert_ptr_nonnull(team);
    const char *wrong = run_loops(team, threads, loops);
    ql_team_destroy(team);
    ck_assert_msg(!wrong, "%zu threads: %s", threads, wrong);
}

START_TEST(each_task_runs_once_before_the_loop_ends)
{
    for (size_t threads = 1; threads <= THREADS; threads *= 2)
        check_loops(threads, 2000);
    check_loops(3, 5000);
}
END_TEST

START_TEST(teams_come_and_go)
{
    for (size_t i = 0; i < 200; i++)
        check_loops(1 + i % 5, i % 3);
    ql_team_destroy(NULL);
}
END_TEST

static void *drive(void *wrong)
{
    ql_team *team = ql_team_create(3);
    *(const char **)wrong = team ? run_loops(team, 3, 1500) : "no memory";
    ql_team_destroy(team);
    return NULL;
}

START_TEST(several_teams_run_at_once)
{
    enum { DRIVERS = 4 };
    pthread_t threads[DRIVERS];
    const char *wrong[DRIVERS];
    for (int i = 0; i < DRIVERS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, drive, &wrong[i]), 0);
    for (int i = 0; i < DRIVERS; i++) {
        pthread_join(threads[i], NULL);
        ck_assert_msg(!wrong[i], "%s", wrong[i]);
    }
}
END_TEST

enum { LONG = 20 }; /* seconds */

/* Each task waits, at most LONG, until another has begun: one thread alone cannot do that. */
static void meet(void *ctx, size_t index, size_t worker)
{
    (void)index, (void)worker;
    atomic_uint *begun = ctx;
    double until = ql_seconds() + LONG;
    atomic_fetch_add(begun, 1);
    while (atomic_load(begun) < 2 && ql_seconds() < until)
        sched_yield();
}

static bool meets(ql_team *team)
{
    atomic_uint begun = 0;
    double begin = ql_seconds();
    ql_team_run(team, 2, meet, &begun);
    return ql_usable_cpus() < 2 || ql_seconds() - begin < LONG; /* with one CPU nobody else is woken */
}

START_TEST(tasks_run_side_by_side)
{
    ql_team *team = ql_team_create(2);
    for (int i = 0; i < 20; i++) {
        ck_assert(meets(team));
        if (i % 5 == 4)
            nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL); /* they sleep by then */
    }
    ql_team_destroy(team);
}
END_TEST

/* Sanitizers do not allow for threads in such a child: one forbids them; the other's allocator may be locked by a thread
 * that is starting at the fork, and stays so in the child. */
#ifdef __has_feature
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
#if !defined WATCHED_FOR_RACES && !defined __SANITIZE_ADDRESS__ && !HAS_FEATURE(address_sanitizer)
#define FORKS
#endif

#ifdef FORKS
START_TEST(a_forked_child_has_threads_of_its_own)
{
    ql_team *team = ql_team_create(4);
    ck_assert_ptr_null(run_loops(team, 4, 50));
    for (int i = 0; i < 3; i++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(60);
            bool right = i == 2 || (!run_loops(team, 4, 200) && meets(team));
            ql_team_destroy(team);
            _exit(right ? 7 : 1);
        }
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert(WIFEXITED(status));
        ck_assert_int_eq(WEXITSTATUS(status), 7);
        ck_assert_ptr_null(run_loops(team, 4, 50));
    }
    ql_team_destroy(team);
}
END_TEST
#endif

static double processor_seconds(void)
{
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (double)used.tv_sec + 1e-9 * (double)used.tv_nsec;
}

START_TEST(idle_threads_sleep)
{
    ql_team *team = ql_team_create(4);
    ck_assert_ptr_null(run_loops(team, 4, 50));
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    double before = processor_seconds();
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
    ck_assert_double_lt(processor_seconds() - before, 0.02);
    ql_team_destroy(team);
}
END_TEST

static void which_signals(void *ctx, size_t index, size_t worker)
{
    (void)index;
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    if (worker && !sigismember(&blocked, SIGINT))
        atomic_fetch_add((atomic_uint *)ctx, 1);
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

START_TEST(signals_are_for_the_caller)
{
    atomic_uint open = 0;
    sigset_t blocked;
    ql_team *team = ql_team_create(3);
    ql_team_run(team, 30, which_signals, &open);
    ck_assert_uint_eq(open, 0);
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    ck_assert(!sigismember(&blocked, SIGINT));
    ql_team_destroy(team);
}
END_TEST

/* A tree as the kernel shows it: the process's group /a/b, of which /a has a quota of 2.5 CPUs. */
START_TEST(quotas_of_all_groups_above_count)
{
    char *folder = test_folder(), name[4096];
    snprintf(name, sizeof name, "%s/a", folder);
    ck_assert_int_eq(mkdir(name, 0700), 0);
    snprintf(name, sizeof name, "%s/a/b", folder);
    ck_assert_int_eq(mkdir(name, 0700), 0);
    ck_assert_uint_eq(ql_quota_cpus(folder, "/a/b"), SIZE_MAX);
    test_file(folder, "a/b/cpu.max", "max 100000\n", 11);
    ck_assert_uint_eq(ql_quota_cpus(folder, "/a/b"), SIZE_MAX);
    test_file(folder, "a/cpu.max", "250000 100000\n", 14);
    ck_assert_uint_eq(ql_quota_cpus(folder, "/a/b"), 3);
    ck_assert_uint_eq(ql_quota_cpus(folder, "/a/"), 3);
    ck_assert_uint_eq(ql_quota_cpus(folder, "/"), SIZE_MAX);
    test_file(folder, "a/b/cpu.max", "40000 50000\n", 12);
    ck_assert_uint_eq(ql_quota_cpus(folder, "/a/b"), 1);
    test_file(folder, "cpu.max", "400000 100000\n", 14);
    ck_assert_uint_eq(ql_quota_cpus(folder, "/"), 4);
    ck_assert_uint_eq(ql_quota_cpus(folder, ""), 4);
    ck_assert_uint_eq(ql_quota_cpus(folder, "/a"), 3);
    test_folder_remove(folder);
}
END_TEST

START_TEST(affinity_bounds_the_cpus)
{
    cpu_set_t all, one;
    ck_assert_uint_ge(ql_usable_cpus(), 1);
    ck_assert_int_eq(sched_getaffinity(0, sizeof all, &all), 0);
    CPU_ZERO(&one);
    for (int i = 0; CPU_COUNT(&one) == 0; i++)
        if (CPU_ISSET(i, &all))
            CPU_SET(i, &one);
    ck_assert_int_eq(sched_setaffinity(0, sizeof one, &one), 0);
    ck_assert_uint_eq(ql_usable_cpus(), 1);
    check_loops(4, 300); /* all on one CPU */
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("team");
    TCase *tests = tcase_create("team");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, each_task_runs_once_before_the_loop_ends);
    tcase_add_test(tests, teams_come_and_go);
    tcase_add_test(tests, several_teams_run_at_once);
    tcase_add_test(tests, tasks_run_side_by_side);
#ifdef FORKS
    tcase_add_test(tests, a_forked_child_has_threads_of_its_own);
#else
    puts("skipped: a forked child under a sanitizer");
#endif
    tcase_add_test(tests, idle_threads_sleep);
    tcase_add_test(tests, signals_are_for_the_caller);
    tcase_add_test(tests, quotas_of_all_groups_above_count);
    tcase_add_test(tests, affinity_bounds_the_cpus);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
