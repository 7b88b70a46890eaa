#define _GNU_SOURCE
#include "stats.h"

#include <stdlib.h>
#include <time.h>

#include "base/clock.h"

double processor_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bench_clock *clock_for(size_t threads)
{
    return threads == 1 ? processor_seconds : ql_seconds;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

spread summarize(double *values, size_t count)
{
    qsort(values, count, sizeof *values, ascending);
    return (spread){values[count / 2], values[count / 4], values[count - 1 - count / 4]};
}
