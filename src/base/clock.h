/* Wall time, for figures only: no result depends on it. */
#ifndef QL_SRC_BASE_CLOCK_H
#define QL_SRC_BASE_CLOCK_H

#include <time.h>

/* Seconds of the monotonic clock. */
static inline double ql_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif
