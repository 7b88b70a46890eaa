/* Files: reading and writing safetensors, and emitting JSON.
 *
 * Tensors are mapped, never copied: opening a model of any size costs its header only. Everything a
 * file says is checked when it is opened, so a ql_tensor that was handed out lies inside its file and has
 * as many bytes as its shape needs. A file must not be changed while it is open. */
#ifndef QLORA_IO_H
#define QLORA_IO_H

#include <stdio.h>

#include "qlora/base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QL_TENSOR_DIMS 8 /* tensors of more dimensions are refused */

/* A dense array, row-major, little-endian. For writing fill in name, dtype, ndim, shape and data. */
typedef struct ql_tensor {
    const char *name;
    ql_dtype dtype;
    bool foreign; /* of a type that ql_dtype does not have (F8_E4M3, U16, Q4_0, ...): ignore dtype, see dtype_name */
    size_t ndim;
    size_t shape[QL_TENSOR_DIMS];
    const void *data; /* NULL when it has no elements; files do not promise that it is aligned to its type */
    size_t bytes;
    const char *dtype_name; /* as the file spells it */
    const char *file;       /* path of the file that holds it */
} ql_tensor;

/* The elements of a tensor: the product of its shape, 1 for a scalar. */
QL_API size_t ql_tensor_elements(const ql_tensor *tensor);

/* Converts elements [first, first + count) of an F32, F16, BF16 or F64 tensor; aligned or not. Other
 * types give QL_ERR_UNSUPPORTED, a range outside of the tensor QL_ERR_ARG. */
QL_API ql_status ql_tensor_read_f32(const ql_tensor *tensor, size_t first, size_t count, float *out, ql_error *err);

/* The tensors of a model, from one file or from many. Immutable, so threads may share it. */
typedef struct ql_tensors ql_tensors;

/* Opens a .safetensors file, a model.safetensors.index.json, a Hugging Face folder with one of either (the
 * single file goes first), or a GGUF file (its shapes turned to row-major, its block types foreign). The caller owns
 * *out; NULL on error. QL_ERR_FORMAT names what is wrong: offsets outside of the file, overlaps, holes (the format
 * wants the data indexed without a gap), a shape that disagrees with its bytes, names given twice, an index that names
 * a file outside of the folder or a tensor that its file lacks. Tensors of a type this library does not know are
 * listed, marked foreign. */
QL_API ql_status ql_tensors_open(ql_tensors **out, const char *path, ql_error *err);

QL_API void ql_tensors_close(ql_tensors *tensors); /* NULL is fine; invalidates every ql_tensor of it */

QL_API const char *ql_tensors_path(const ql_tensors *tensors); /* what was opened */
QL_API size_t ql_tensors_count(const ql_tensors *tensors);

/* Tensor number `index` in the order of the files and of the data in them: good for reading through. */
QL_API const ql_tensor *ql_tensors_at(const ql_tensors *tensors, size_t index);

/* NULL when there is none of that name. */
QL_API const ql_tensor *ql_tensors_find(const ql_tensors *tensors, const char *name);

/* The tensor `name` for use: a missing one is QL_ERR_FORMAT, a foreign type QL_ERR_UNSUPPORTED, another
 * shape than shape[ndim] QL_ERR_SHAPE. A NULL shape accepts any. *out is NULL on error. */
QL_API ql_status ql_tensors_need(const ql_tensor **out, const ql_tensors *tensors, const char *name, size_t ndim,
                                 const size_t *shape, ql_error *err);

/* The value of `key` in a safetensors file's __metadata__ (of the first file that has it), or NULL. */
QL_API const char *ql_tensors_metadata(const ql_tensors *tensors, const char *key);

/* Line `index` of that metadata (of the first file that has any): its value, and its key in *key. NULL after the last. */
QL_API const char *ql_tensors_metadata_at(const ql_tensors *tensors, size_t index, const char **key);

/* Advice about a tensor's pages: fetch asks the kernel to read ahead, release gives the memory back once a
 * tensor has been read (it is read again from the file if it is used again). Neither changes what is seen. */
QL_API void ql_tensors_fetch(const ql_tensors *tensors, const ql_tensor *tensor);
QL_API void ql_tensors_release(const ql_tensors *tensors, const ql_tensor *tensor);

/* A line of a safetensors file's __metadata__. */
typedef struct ql_metadata {
    const char *key, *value;
} ql_metadata;

/* Writes tensors to a safetensors file in the order and with the bytes of the reference implementation
 * (widest types first, then by name; header padded to 8 bytes); metadata keeps the order given. The same
 * input gives the same bytes. The file appears whole or not at all: on error what was at `path` stays. */
QL_API ql_status ql_safetensors_write(const char *path, const ql_tensor *tensors, size_t count,
                                      const ql_metadata *metadata, size_t pairs, ql_error *err);

/* What tells one file from another. */
typedef struct ql_file_digest {
    uint64_t bytes;
    char sha256[65]; /* hexadecimal */
    bool whole;      /* of all bytes; else of the first and the last limit/2 bytes, one after the other */
} ql_file_digest;

/* Reads a file for its SHA-256: all of it when `limit` is 0 or it has no more bytes, else both its ends. */
QL_API ql_status ql_file_sha256(ql_file_digest *out, const char *path, uint64_t limit, ql_error *err);

/* Writes a file of those bytes, whole or not at all: on error what was at `path` stays. */
QL_API ql_status ql_file_write(const char *path, const void *data, size_t bytes, ql_error *err);

/* Removes the temporary files of all files that are being written now, which then cannot be finished. For the handler
 * of a signal that ends the process: it is async-signal-safe. */
QL_API void ql_outputs_discard(void);

/* Builds one JSON text. Zeroed is empty and ready; `pretty` may be set before the first call. Out of memory
 * and wrong nesting are remembered and reported when the text is written. Keys are NULL inside of arrays and
 * for the outermost value. Bytes that are no UTF-8 become U+FFFD, NaN and infinities null. */
typedef struct ql_json {
    char *text; /* NUL-terminated once there is any */
    size_t length;
    size_t capacity;
    bool pretty;      /* one member a line, indented by two spaces */
    bool started;     /* the container that is open has a member already */
    unsigned depth;   /* containers that are open; 64 at most */
    uint64_t arrays;  /* bit d: the one opened at depth d is an array */
    ql_status status; /* what went wrong first */
} ql_json;

QL_API void ql_json_object(ql_json *json, const char *key); /* opens {, until ql_json_end */
QL_API void ql_json_array(ql_json *json, const char *key);  /* opens [, until ql_json_end */
QL_API void ql_json_end(ql_json *json);
QL_API void ql_json_string(ql_json *json, const char *key, const char *value); /* NULL writes null */
QL_API void ql_json_text(ql_json *json, const char *key, const char *value,
                         size_t length); /* may hold NULs; value[length] must be one */
QL_API void ql_json_integer(ql_json *json, const char *key, int64_t value);
QL_API void ql_json_number(ql_json *json, const char *key, double value); /* with the digits to read it back exactly */
QL_API void ql_json_bool(ql_json *json, const char *key, bool value);
QL_API void ql_json_null(ql_json *json, const char *key);

/* Appends the text and a newline to an open file, flushes it, and empties the text for the next line; `name`
 * is the file's, for messages. */
QL_API ql_status ql_json_line(ql_json *json, FILE *file, const char *name, ql_error *err);

/* Writes the text and a newline to a file of its own, whole or not at all, and empties the text. */
QL_API ql_status ql_json_write(ql_json *json, const char *path, ql_error *err);

QL_API void ql_json_free(ql_json *json); /* leaves it empty and ready */

#ifdef __cplusplus
}
#endif
#endif
