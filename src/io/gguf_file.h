/* What the reader of GGUF and its getters share. */
#ifndef QL_SRC_IO_GGUF_FILE_H
#define QL_SRC_IO_GGUF_FILE_H

#include "io/gguf.h"

struct ql_gguf {
    const char *path;
    ql_gguf_value *values; /* sorted by key once read */
    size_t count;
};

/* A little-endian number of 1 to 8 bytes. */
static inline uint64_t ql_gguf_load(const unsigned char *data, size_t bytes)
{
    uint64_t value = 0;
    for (size_t i = bytes; i-- > 0;)
        value = value << 8 | data[i];
    return value;
}

/* Bytes of a number or bool; 0 for strings and arrays. */
size_t ql_gguf_width(ql_gguf_type type);

/* The number in the file of a type of tensors, and the elements and bytes of one of its blocks; -1: there is none. */
int ql_gguf_tensor_type(const char *name, size_t *elements, size_t *bytes);

#endif
