/* Writing files of tensors whose data is made while it is written, so that none need be whole in memory. */
#ifndef QL_SRC_IO_TENSOR_WRITE_H
#define QL_SRC_IO_TENSOR_WRITE_H

#include "io/output.h"
#include "qlora/io.h"

/* Writes the data of one of the caller's tensors to `output`, in as many pieces as it likes: exactly as many bytes as
 * its shape and type take. An error ends the writing, and the file does not appear. */
typedef ql_status ql_tensor_emit(void *ctx, const ql_tensor *tensor, ql_output *output, ql_error *err);

/* As ql_safetensors_write (which see for order and checks), but `emit` is called once for each tensor, in the order of
 * the file, and they need no data. A NULL `emit` writes the data that they have. */
ql_status ql_safetensors_stream(const char *path, const ql_tensor *tensors, size_t count, const ql_metadata *metadata,
                                size_t pairs, ql_tensor_emit *emit, void *ctx, ql_error *err);

/* As ql_safetensors_write, but the data begins at a multiple of `alignment`, which is one of 8: as the format allows,
 * with more spaces after the header. */
ql_status ql_safetensors_write_aligned(const char *path, const ql_tensor *tensors, size_t count,
                                       const ql_metadata *metadata, size_t pairs, size_t alignment, ql_error *err);

#endif
