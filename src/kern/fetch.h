/* Weights on their way to the cache while others are decoded and multiplied: rows lie too far apart for the processor to
 * guess which come next. */
#ifndef QL_SRC_KERN_FETCH_H
#define QL_SRC_KERN_FETCH_H

#include "kern/wview.h"

/* Terms [from, from + depth) of the rows that lie `ahead` rows after those that start at rows[count]. */
static inline void ql_fetch_terms(const ql_wview *w, const char *const *rows, size_t count, size_t ahead, size_t from,
                                  size_t depth)
{
    enum { LINE = 64 };
    size_t first = ahead * w->row_bytes + from * w->row_bytes / w->k, bytes = depth * w->row_bytes / w->k;
    for (size_t at = 0; at < bytes; at += LINE)
        for (size_t r = 0; r < count; r++)
            __builtin_prefetch(rows[r] + first + at);
}

#endif
