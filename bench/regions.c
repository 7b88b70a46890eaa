/* qlora-bench regions: what it costs to hand tasks to threads and to wait for them, ours beside OpenMP's. */
#define _GNU_SOURCE
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/workers.h"
#include "commands.h"

enum { RUNS = 9, MOST = 16 /* numbers of threads */ };

/* The thread that drives does `serial` microseconds of work, then each thread `tasks` of `work` microseconds. */
typedef struct pattern {
    const char *name;
    double serial, work;
    size_t tasks, regions;
} pattern;

static const pattern patterns[] = {
    {"empty, one after the other", 0, 0, 1, 2000},
    {"empty, after 20 us of one thread", 20, 0, 1, 1000},
    {"empty, after 300 us of one thread", 300, 0, 1, 100},
    {"4 x 5 us a thread, after 5 us", 5, 5, 4, 500},
    {"2 x 50 us a thread, after 5 us", 5, 50, 2, 200},
};

enum { PATTERNS = sizeof patterns / sizeof *patterns };

static double turns_per_us;

static double turn(size_t turns)
{
    double x = 1;
    for (size_t i = 0; i < turns; i++) {
        x = x * 0.999 + 0.001;
        __asm__ volatile("" : "+x"(x));
    }
    return x;
}

static void work(void *ctx, size_t index, size_t worker)
{
    (void)index, (void)worker;
    turn((size_t)(*(const double *)ctx * turns_per_us));
}

static void run_openmp(void *self, size_t count, ql_task *task, void *ctx)
{
#pragma omp parallel for num_threads(*(size_t *)self) schedule(dynamic, 1)
    for (size_t i = 0; i < count; i++)
        task(ctx, i, (size_t)omp_get_thread_num());
}

static void calibrate(void)
{
    size_t turns = 2000000;
    turn(turns);
    double begin = ql_seconds();
    turn(turns);
    turns_per_us = (double)turns / (1e6 * (ql_seconds() - begin));
}

static double processor_seconds(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + 1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

static int ascending(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

/* Microseconds of a region beyond its work (median), and the CPUs kept busy meanwhile. */
static void measure(ql_workers *workers, size_t threads, const pattern *p, double *beyond, double *busy)
{
    double seconds[RUNS], task = p->work, before = 0, begin = 0;
    for (size_t run = 0; run < RUNS + 1; run++) { /* the first is not counted */
        if (run == 1) {
            before = processor_seconds();
            begin = ql_seconds();
        }
        double start = ql_seconds();
        for (size_t i = 0; i < p->regions; i++) {
            turn((size_t)(p->serial * turns_per_us));
            ql_parallel(workers, p->tasks * threads, work, &task);
        }
        if (run)
            seconds[run - 1] = ql_seconds() - start;
    }
    *busy = (processor_seconds() - before) / (ql_seconds() - begin);
    qsort(seconds, RUNS, sizeof *seconds, ascending);
    *beyond = 1e6 * seconds[RUNS / 2] / (double)p->regions - p->serial - p->work * (double)p->tasks;
}

static bool measure_all(size_t threads, bool ours)
{
    ql_workers *workers = NULL;
    ql_error err;
    if (ours ? ql_workers_create(&workers, threads, &err) : ql_workers_adopt(&workers, threads, run_openmp, &threads, &err)) {
        fprintf(stderr, "qlora-bench regions: %s\n", err.message);
        return false;
    }
    printf("%7zu  %-7s", threads, ours ? "ours" : "OpenMP");
    for (size_t i = 0; i < PATTERNS; i++) {
        double beyond, busy;
        measure(workers, threads, &patterns[i], &beyond, &busy);
        printf("  %8.2f (%4.1f)", beyond, busy);
        fflush(stdout);
    }
    putchar('\n');
    ql_workers_destroy(workers);
    return true;
}

static int help(void)
{
    printf("usage: qlora-bench regions [THREADS ...]\n\n"
           "Microseconds that a parallel loop takes beyond its work, median of %d, and in brackets the CPUs busy meanwhile, for\n"
           "2, 4, 8 and 16 threads or those named. OpenMP waits as OMP_WAIT_POLICY and GOMP_SPINCOUNT say.\n", RUNS);
    return 0;
}

int bench_regions(int argc, char **argv)
{
    size_t threads[MOST] = {2, 4, 8, 16}, count = argc > 1 ? (size_t)argc - 1 : 4;
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0))
        return help();
    for (size_t i = 0; argc > 1 && i < count; i++) {
        char *end;
        unsigned long number = strtoul(argv[i + 1], &end, 10);
        if (*end || !number || number > 1024 || count > MOST) {
            fprintf(stderr, "qlora-bench regions: \"%s\" is no number of threads\n", argv[i + 1]);
            return 2;
        }
        threads[i] = number;
    }
    calibrate();
    for (size_t i = 0; i < PATTERNS; i++)
        printf("%c  %s\n", (char)('a' + i), patterns[i].name);
    printf("threads  %-7s  %14s  %14s  %14s  %14s  %14s\n", "", "a", "b", "c", "d", "e");
    bool fine = true;
    for (size_t i = 0; i < count && fine; i++)
        fine = measure_all(threads[i], true) && measure_all(threads[i], false);
    return fine ? 0 : 1;
}
