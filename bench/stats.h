/* Clocks, and the middle of measurements. */
#ifndef QL_BENCH_STATS_H
#define QL_BENCH_STATS_H

#include <stddef.h>

/* Median and quartiles. */
typedef struct spread {
    double median, low, high;
} spread;

/* Sorts the values. */
spread summarize(double *values, size_t count);

/* Seconds. */
typedef double bench_clock(void);

/* Processor time of this thread, which other programs do not lengthen. */
bench_clock processor_seconds;

/* That for one thread, the time of day for more. */
bench_clock *clock_for(size_t threads);

#endif
