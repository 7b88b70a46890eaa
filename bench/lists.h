/* Lists on the command line: parts between commas. What is not one ends the program with status 2. */
#ifndef QL_BENCH_LISTS_H
#define QL_BENCH_LISTS_H

#include "bench.h"

void refuse(const char *what, const char *value);

/* NxK, or the name of several. `text` is cut in place. */
void list_shapes(options *o, char *text);

/* From 1 to `most`. */
size_t one_number(size_t most, const char *text);

/* At most MOST of them; `text` is cut in place. */
void list_numbers(size_t *list, size_t *count, size_t most, char *text);

#endif
