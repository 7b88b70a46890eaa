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

/* Where the middle half of a row's roofs is wider than this part of their median, it says so. */
#define ROOF_MOVES 0.15

/* Seconds. */
typedef double bench_clock(void);

/* Processor time of this thread, which other programs do not lengthen. */
bench_clock processor_seconds;

/* That for one thread, the time of day for more. */
bench_clock *clock_for(size_t threads);

#endif
