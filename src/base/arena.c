#define _GNU_SOURCE
#include "base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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

/* Memory that takes whole huge pages is given them: kernels walk through many rows at once, and every page of
 * 4 KB on their way would cost a look into the page tables. */
static void *take_memory(size_t bytes)
{
    enum { HUGE_PAGE = 2 << 20 };
    if (bytes < HUGE_PAGE)
        return aligned_alloc(QL_ALIGN, bytes);
    void *p; /* aligned_alloc would ask for whole multiples of the alignment */
    if (posix_memalign(&p, HUGE_PAGE, bytes) != 0)
        return NULL;
    madvise(p, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    return p;
}

void *ql_alloc(size_t bytes)
{
    if (bytes > SIZE_MAX - QL_ALIGN)
        return NULL;
    size_t rounded = bytes ? (bytes + QL_ALIGN - 1) / QL_ALIGN * QL_ALIGN : QL_ALIGN;
    void *p = take_memory(rounded);
    if (p)
        memset(p, 0, rounded);
    return p;
}
