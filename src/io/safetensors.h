/* One file of tensors: safetensors, or GGUF. */
#ifndef QL_SRC_IO_SAFETENSORS_H
#define QL_SRC_IO_SAFETENSORS_H

#include <jansson.h>

#include "io/gguf.h"
#include "io/map.h"
#include "qlora/io.h"

typedef struct ql_shard {
    char *path;
    ql_map map;
    json_t *header; /* of safetensors: owns the names of the tensors and the metadata */
    ql_gguf *gguf;
    ql_tensor *tensors;
    size_t count; /* in the order of their data */
} ql_shard;

/* Takes over path (freed by close, also after an error). Zeroed is closed. */
ql_status ql_shard_open(ql_shard *shard, char *path, ql_error *err);

void ql_shard_close(ql_shard *shard);

/* For qsort() and bsearch() over pointers to tensors. */
int ql_tensor_by_name(const void *left, const void *right);

/* Multiplies shape[ndim]; false when the product overflows. */
bool ql_shape_elements(const size_t *shape, size_t ndim, size_t *elements);

#endif
