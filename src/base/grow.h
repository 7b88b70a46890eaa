/* Arrays that grow by half of what they need. An overflow reads as out of memory. */
#ifndef QL_SRC_BASE_GROW_H
#define QL_SRC_BASE_GROW_H

#include <stdbool.h>
#include <stddef.h>

/* Makes room for `more` elements of `size` bytes after `count`; false when memory is not to be had. */
bool ql_grow(void **data, size_t *capacity, size_t count, size_t more, size_t size);

#endif
