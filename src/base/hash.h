/* A hash of bytes, for tables in memory and to see damage; not against malice. */
#ifndef QL_SRC_BASE_HASH_H
#define QL_SRC_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t ql_hash_mix(uint64_t a, uint64_t b)
{
    __uint128_t product = (__uint128_t)(a ^ 0x9e3779b97f4a7c15u) * (b ^ 0xd1b54a32d192ed03u);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t ql_hash(const char *text, size_t length)
{
    uint64_t hash = length;
    for (; length >= 8; text += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, text, 8);
        hash = ql_hash_mix(hash, word);
    }
    uint64_t tail = 0;
    for (size_t i = 0; i < length; i++)
        tail |= (uint64_t)(uint8_t)text[i] << 8 * i;
    return ql_hash_mix(hash, tail);
}

/* The least 2^n - 1 that leaves a table of `count` entries half empty. */
static inline size_t ql_hash_mask(size_t count)
{
    size_t mask = 15;
    while (mask / 2 < count)
        mask = mask * 2 + 1;
    return mask;
}

#endif
