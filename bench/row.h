/* A line of a table for each thing measured, and an object in JSON. */
#ifndef QL_BENCH_ROW_H
#define QL_BENCH_ROW_H

#include "bench.h"

typedef struct row {
    const char *weights, *tier; /* format, or what a baseline holds; kernel or library */
    timing t;
    double speedup; /* over the first number of threads of a list; 0: not asked for */
} row;

void row_header(void);
void row_show(const row *r, const bench_case *c, FILE *json);

#endif
