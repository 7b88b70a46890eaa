/* One list, two passes: with a NULL base an arena measures, with a real one it carves. The same
 * code that plans memory therefore lays it out. */
#ifndef QL_SRC_BASE_ARENA_H
#define QL_SRC_BASE_ARENA_H

#include <stddef.h>

#define QL_ALIGN 64 /* a cache line and a ZMM register */

typedef struct ql_arena {
    char *base;  /* NULL while measuring */
    size_t used; /* bytes, always a multiple of QL_ALIGN */
} ql_arena;

/* Takes `count` elements of `size` bytes; NULL while measuring. Saturates instead of overflowing. */
void *ql_arena_take(ql_arena *arena, size_t count, size_t size);

#define ql_take(arena, count, type) ((type *)ql_arena_take((arena), (count), sizeof(type)))

/* Zeroed memory aligned to QL_ALIGN; NULL when it is not to be had. Free with free(). */
void *ql_alloc(size_t bytes);

#endif
