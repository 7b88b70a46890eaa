/* Writing GGUF version 3, little-endian, aligned to 32 bytes. */
#ifndef QL_SRC_IO_GGUF_WRITE_H
#define QL_SRC_IO_GGUF_WRITE_H

#include "io/gguf.h"
#include "io/tensor_write.h"

/* Metadata in the order in which it is put. Zeroed is empty; running out of memory is remembered and reported by
 * the writer. */
typedef struct ql_gguf_meta {
    unsigned char *data;
    size_t length, capacity;
    uint64_t count;
    bool failed;
} ql_gguf_meta;

void ql_gguf_put_string(ql_gguf_meta *meta, const char *key, const char *text);
void ql_gguf_put_f32(ql_gguf_meta *meta, const char *key, float value);
void ql_gguf_put_u32(ql_gguf_meta *meta, const char *key, uint32_t value);
void ql_gguf_put_bool(ql_gguf_meta *meta, const char *key, bool value);
void ql_gguf_put_value(ql_gguf_meta *meta, const ql_gguf_value *value); /* as it is in another file */

/* An array of `count` elements, which are added next: strings, f32 or i32. */
void ql_gguf_put_array(ql_gguf_meta *meta, const char *key, ql_gguf_type element, size_t count);
void ql_gguf_add_string(ql_gguf_meta *meta, const char *text, size_t length);
void ql_gguf_add_f32(ql_gguf_meta *meta, float value);
void ql_gguf_add_i32(ql_gguf_meta *meta, int32_t value);

void ql_gguf_meta_free(ql_gguf_meta *meta); /* leaves it empty and ready */

/* Writes metadata and tensors in the order given. Shapes are row-major, as everywhere here; the file lists the fastest
 * dimension first. The type is the dtype, or that of dtype_name for a foreign tensor ("Q8_0"). The data comes from
 * `emit`. The file appears whole or not at all: on error what was at `path` stays. */
ql_status ql_gguf_write(const char *path, const ql_gguf_meta *meta, const ql_tensor *tensors, size_t count,
                        ql_tensor_emit *emit, void *ctx, ql_error *err);

#endif
