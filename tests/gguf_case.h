/* Small GGUF files for tests. */
#ifndef QL_TESTS_GGUF_CASE_H
#define QL_TESTS_GGUF_CASE_H

#include "io/gguf.h"
#include "qlora/model.h"

/* A file being put together: metadata, tensor infos and data. Zeroed is empty. */
typedef struct gguf_part {
    unsigned char *bytes;
    size_t size, room;
} gguf_part;

typedef struct gguf_writer {
    gguf_part metadata, infos, data;
    uint64_t values, tensors;
    const char *without; /* a key or a tensor that is left out when it is to be added */
} gguf_writer;

enum { GGUF_F32 = 0, GGUF_F16 = 1, GGUF_Q4_0 = 2, GGUF_Q8_0 = 8, GGUF_BF16 = 30 }; /* types of tensors */

void gguf_u32(gguf_writer *w, const char *key, uint32_t value);
void gguf_f32(gguf_writer *w, const char *key, float value);
void gguf_bool(gguf_writer *w, const char *key, bool value);
void gguf_string(gguf_writer *w, const char *key, const char *value);
void gguf_strings(gguf_writer *w, const char *key, const char *const *values, size_t count);
void gguf_f32s(gguf_writer *w, const char *key, const float *values, size_t count);
void gguf_i32s(gguf_writer *w, const char *key, const int32_t *values, size_t count);

/* Shape row-major, as in the program. */
void gguf_tensor(gguf_writer *w, const char *name, uint32_t type, size_t ndim, const size_t *shape, const void *data,
                 size_t bytes);

/* FOLDER/NAME of what was put in; frees it. The path is in a static buffer (see test_file). */
const char *gguf_finish(gguf_writer *w, const char *folder, const char *name);

/* Metadata of a model of that shape, and nothing else. */
void gguf_config(gguf_writer *w, const ql_model_config *config);

/* Metadata and tensors of a Hugging Face folder, as stored. */
void gguf_of_folder(gguf_writer *w, const char *dir);

#endif
