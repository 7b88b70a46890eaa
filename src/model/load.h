/* One matrix of a model's files as a weight. */
#ifndef QL_SRC_MODEL_LOAD_H
#define QL_SRC_MODEL_LOAD_H

#include "qlora/io.h"
#include "qlora/quant.h"

typedef struct ql_matrix_source {
    const ql_tensors *files;
    const char *name;
    size_t n, k;
    size_t pairs; /* heads whose rows lie in adjacent pairs and are to be put into halves; 0: as they lie */
} ql_matrix_source;

/* Loads W[n][k]. A format of code F32 ("none") keeps it as it is stored, dense, in ggml's blocks or as
 * bitsandbytes quantized it, the former two borrowed from the mapped file where alignment and order allow: *mapped grows
 * by those bytes. Other formats quantize it, from its
 * dequantized values if need be. */
ql_status ql_matrix_load(ql_weight **out, const ql_matrix_source *source, ql_format format, size_t *mapped,
                         ql_workers *workers, ql_error *err);

/* What ql_matrix_load() would make, without its numbers unless they are borrowed. What bitsandbytes quantized is not
 * planned as stored: its configuration tells that. */
ql_status ql_matrix_plan(ql_weight **out, const ql_matrix_source *source, ql_format format, size_t *mapped, ql_error *err);

/* Whether bitsandbytes quantized that matrix, and the matrix as a weight with its codes and scales bit for bit. */
bool ql_bnb_stored(const ql_matrix_source *source);
ql_status ql_bnb_load(ql_weight **out, const ql_matrix_source *source, ql_error *err);

/* GGUF's Llama rotates adjacent pairs: row 2i + j of a head is row i + j * head_dim / 2 of Hugging Face's. Puts n rows
 * of row_bytes into the latter order. */
void ql_unpair_rows(void *to, const void *from, size_t row_bytes, size_t n, size_t heads);

#endif
