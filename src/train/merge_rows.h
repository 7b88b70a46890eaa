/* A matrix on its way from a model to its merged copy, some rows at a time. */
#ifndef QL_SRC_TRAIN_MERGE_ROWS_H
#define QL_SRC_TRAIN_MERGE_ROWS_H

#include "io/output.h"
#include "qlora/io.h"
#include "qlora/lora.h"

enum { QL_MERGE_ROWS = 64 }; /* computed at a time */

/* Memory for rows of up to `longest` elements. Zeroed is empty. */
typedef struct ql_merge_buffers {
    float *x, *back;      /* [QL_MERGE_ROWS][longest] before and after rounding */
    unsigned char *coded; /* as written */
} ql_merge_buffers;

ql_status ql_merge_buffers_make(ql_merge_buffers *buffers, size_t longest, ql_error *err);
void ql_merge_buffers_free(ql_merge_buffers *buffers);

typedef struct ql_merge_matrix {
    const ql_tensor *source, *out; /* of n rows of k elements */
    const ql_weight *weight;       /* the rows to take instead of the source's, or NULL */
    const ql_adapter *adapter;     /* with masters; NULL: none */
    size_t n, k;
    size_t pairs_of;    /* head_dim when rows go out in GGUF's pairs, the adapter's lying in halves; else 0 */
    bool source_paired; /* the source's rows lie in pairs then */
    double max_error; /* out: the largest difference that rounding made */
} ql_merge_matrix;

/* Writes the rows as out's type. QL_ERR_VALUE names the first number that it cannot hold. */
ql_status ql_merge_write_rows(ql_merge_matrix *matrix, const ql_merge_buffers *buffers, ql_output *output,
                              ql_workers *workers, ql_error *err);

/* Types: whether rows can be read as floats, be written; whether two are the same; whether blocks can be encoded. */
bool ql_merge_readable(const ql_tensor *tensor);
bool ql_merge_writable(const ql_tensor *tensor);
bool ql_merge_same_type(const ql_tensor *a, const ql_tensor *b);
bool ql_merge_encodes(ql_code code);

/* Gives a tensor the type of a dense code or of blocks; F16 where its rows are no whole blocks. */
void ql_merge_set_type(ql_tensor *tensor, ql_code code);

#endif
