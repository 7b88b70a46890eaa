#include "base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void *ql_arena_take(ql_arena *arena, size_t count, size_t size)
{
    const size_t limit = SIZE_MAX / 2 / QL_ALIGN * QL_ALIGN; /* no allocator grants so much */
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > limit - arena->used) {
        arena->used = limit;
        return NULL;
    }
    void *p = arena->base ? arena->base + arena->used : NULL;
    arena->used += (bytes + QL_ALIGN - 1) / QL_ALIGN * QL_ALIGN;
    return p;
}

void *ql_alloc(size_t bytes)
{
    if (bytes > SIZE_MAX - QL_ALIGN)
        return NULL;
    size_t rounded = bytes ? (bytes + QL_ALIGN - 1) / QL_ALIGN * QL_ALIGN : QL_ALIGN;
    void *p = aligned_alloc(QL_ALIGN, rounded);
    if (p)
        memset(p, 0, rounded);
    return p;
}
