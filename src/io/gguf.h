/* GGUF files, versions 2 and 3: typed metadata and tensors, read in place.
 *
 * ql_tensors_open opens them as it opens safetensors: shapes are row-major (GGUF lists the fastest dimension
 * first), block types (Q4_0, Q4_K, ...) are foreign, their dtype_name tells. */
#ifndef QL_SRC_IO_GGUF_H
#define QL_SRC_IO_GGUF_H

#include "io/map.h"
#include "qlora/io.h"

/* Types of metadata values, numbered as in the file. */
typedef enum ql_gguf_type {
    QL_GGUF_U8,
    QL_GGUF_I8,
    QL_GGUF_U16,
    QL_GGUF_I16,
    QL_GGUF_U32,
    QL_GGUF_I32,
    QL_GGUF_F32,
    QL_GGUF_BOOL,
    QL_GGUF_STRING,
    QL_GGUF_ARRAY,
    QL_GGUF_U64,
    QL_GGUF_I64,
    QL_GGUF_F64,
    QL_GGUF_TYPES
} ql_gguf_type;

typedef struct ql_gguf_value {
    char *key;
    ql_gguf_type type;
    ql_gguf_type element;      /* of an array: numbers, bools or strings */
    size_t count;              /* elements of an array, 1 otherwise */
    const unsigned char *data; /* in the file, not aligned; a string starts with its length */
} ql_gguf_value;

typedef struct ql_gguf ql_gguf;

/* The metadata of an open GGUF file; NULL when `tensors` are of another format. */
const ql_gguf *ql_tensors_gguf(const ql_tensors *tensors);

/* Whether `path` is a file that begins as GGUF files do. */
bool ql_path_is_gguf(const char *path);

/* The name of a tensor in GGUF for one in Hugging Face's files: "model.layers.3.self_attn.q_proj.weight" is
 * "blk.3.attn_q.weight". false: it has none, or not in `size` bytes. */
bool ql_gguf_name(char *out, size_t size, const char *name);

size_t ql_gguf_count(const ql_gguf *gguf);
const ql_gguf_value *ql_gguf_at(const ql_gguf *gguf, size_t index); /* sorted by key */
const ql_gguf_value *ql_gguf_find(const ql_gguf *gguf, const char *key);

/* The value of a key that must be there. Missing, of another type or out of range: QL_ERR_FORMAT, names the
 * file and the key. Integers of any width serve as integers, these and floats as numbers. */
ql_status ql_gguf_get_int(const ql_gguf *gguf, const char *key, int64_t min, int64_t max, int64_t *out, ql_error *err);
ql_status ql_gguf_get_double(const ql_gguf *gguf, const char *key, double min, double max, double *out, ql_error *err);
ql_status ql_gguf_get_bool(const ql_gguf *gguf, const char *key, bool *out, ql_error *err);

/* *text is not NUL-terminated and may be no valid UTF-8. */
ql_status ql_gguf_get_string(const ql_gguf *gguf, const char *key, const char **text, size_t *length, ql_error *err);

/* An array of strings (element QL_GGUF_STRING) or of numbers (of any type, read as doubles). */
ql_status ql_gguf_get_strings(const ql_gguf *gguf, const char *key, const ql_gguf_value **out, ql_error *err);
ql_status ql_gguf_get_numbers(const ql_gguf *gguf, const char *key, const ql_gguf_value **out, ql_error *err);

/* Walks an array of strings: start with *at = 0, call it value->count times at most. */
const char *ql_gguf_next_string(const ql_gguf_value *value, size_t *at, size_t *length);

/* Element `index` of an array of numbers. */
double ql_gguf_number_at(const ql_gguf_value *value, size_t index);

/* For the reader of tensors: checks the file from its first byte to its last. *tensors and the names in it are
 * freed by ql_gguf_close. path is borrowed. */
ql_status ql_gguf_open(ql_gguf **out, ql_tensor **tensors, size_t *count, const char *path, const ql_map *map,
                       ql_error *err);
void ql_gguf_close(ql_gguf *gguf, ql_tensor *tensors, size_t count);

#endif
