#include "base/grow.h"

#include <stdlib.h>

bool ql_grow(void **data, size_t *capacity, size_t count, size_t more, size_t size)
{
    size_t need, bytes;
    if (__builtin_add_overflow(count, more, &need))
        return false;
    if (need <= *capacity)
        return true;
    size_t roomy = need < 16 ? 16 : need + need / 2;
    if (roomy < need || __builtin_mul_overflow(roomy, size, &bytes))
        return false;
    void *grown = realloc(*data, bytes);
    if (!grown)
        return false;
    *data = grown;
    *capacity = roomy;
    return true;
}
