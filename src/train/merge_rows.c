#include "train/merge_rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/half.h"
#include "base/workers.h"
#include "kern/ggml.h"
#include "quant/weight.h"

/* ---- types ---- */

static const struct {
    ql_code code;
    const char *name;
} encoded[] = {{QL_CODE_Q8_0, "Q8_0"}, {QL_CODE_Q4_0, "Q4_0"}, {QL_CODE_Q4_1, "Q4_1"}};
enum { ENCODED = sizeof encoded / sizeof *encoded };

bool ql_merge_encodes(ql_code code)
{
    for (size_t i = 0; i < ENCODED; i++)
        if (encoded[i].code == code)
            return true;
    return false;
}

static bool is_dense(const ql_tensor *tensor)
{
    return !tensor->foreign && (tensor->dtype == QL_F32 || tensor->dtype == QL_F16 || tensor->dtype == QL_BF16);
}

bool ql_merge_readable(const ql_tensor *tensor)
{
    ql_code code;
    return is_dense(tensor) || (tensor->foreign && ql_code_of_blocks(&code, tensor->dtype_name));
}

bool ql_merge_writable(const ql_tensor *tensor)
{
    ql_code code;
    return is_dense(tensor) || (tensor->foreign && ql_code_of_blocks(&code, tensor->dtype_name) && ql_merge_encodes(code));
}

bool ql_merge_same_type(const ql_tensor *a, const ql_tensor *b)
{
    return a->foreign == b->foreign && (a->foreign ? strcmp(a->dtype_name, b->dtype_name) == 0 : a->dtype == b->dtype);
}

void ql_merge_set_type(ql_tensor *tensor, ql_code code)
{
    size_t block = ql_ggml_block_of(code).elements;
    if (block && (!tensor->ndim || tensor->shape[tensor->ndim - 1] % block))
        code = QL_CODE_F16;
    tensor->foreign = ql_code_is_ggml(code);
    if (!tensor->foreign) {
        tensor->dtype = ql_code_dtype(code);
        tensor->dtype_name = ql_dtype_name(tensor->dtype);
    }
    for (size_t i = 0; i < ENCODED && tensor->foreign; i++)
        if (encoded[i].code == code)
            tensor->dtype_name = encoded[i].name;
}

/* ---- memory ---- */

ql_status ql_merge_buffers_make(ql_merge_buffers *buffers, size_t longest, ql_error *err)
{
    buffers->x = calloc(longest, QL_MERGE_ROWS * sizeof *buffers->x);
    buffers->back = calloc(longest, QL_MERGE_ROWS * sizeof *buffers->back);
    buffers->coded = calloc(longest, QL_MERGE_ROWS * sizeof(float)); /* no type is wider */
    if (buffers->x && buffers->back && buffers->coded)
        return QL_OK;
    return ql_fail(err, QL_ERR_MEMORY, "rows of %zu elements: out of memory", longest);
}

void ql_merge_buffers_free(ql_merge_buffers *buffers)
{
    free(buffers->x);
    free(buffers->back);
    free(buffers->coded);
    *buffers = (ql_merge_buffers){0};
}

/* ---- a row ---- */

/* Rows being computed. */
typedef struct batch {
    const ql_merge_matrix *m;
    const ql_merge_buffers *buffers;
    ql_code from, to;            /* of blocks; what dense tensors are, their dtype says */
    size_t from_bytes, to_bytes; /* a row */
    size_t first;
    double error[QL_MERGE_ROWS]; /* the largest of each row */
    size_t bad[QL_MERGE_ROWS];   /* the first column that is not finite as written; k: none */
} batch;

/* The bytes of a row, and the code of blocks. */
static size_t row_bytes(const ql_tensor *tensor, size_t k, ql_code *code)
{
    if (!tensor->foreign)
        return k * ql_dtype_size(tensor->dtype);
    ql_code_of_blocks(code, tensor->dtype_name);
    return k / ql_ggml_block_of(*code).elements * ql_ggml_block_of(*code).bytes;
}

/* GGUF's Llama has row i + j d/2 of a head at place 2i + j. */
static size_t adapter_row(const ql_merge_matrix *m, size_t row)
{
    size_t d = m->pairs_of, in_head = d ? row % d : 0;
    return row - in_head + in_head % 2 * (d / 2) + in_head / 2;
}

static size_t source_row(const ql_merge_matrix *m, size_t row)
{
    return m->source_paired ? row : adapter_row(m, row);
}

/* Whether the row goes out with its own bytes: blocks that are decoded and encoded again may change. */
static bool unchanged(const batch *b, size_t row)
{
    const ql_merge_matrix *m = b->m;
    if (m->weight || !ql_merge_same_type(m->source, m->out) || (m->adapter && m->adapter->dora))
        return false;
    for (size_t i = 0; m->adapter && i < m->adapter->r; i++)
        if (m->adapter->master_b[adapter_row(m, row) * m->adapter->r + i] != 0)
            return false;
    return true;
}

static void read_row(const batch *b, size_t row, float *x)
{
    const ql_merge_matrix *m = b->m;
    size_t from = source_row(m, row);
    if (m->weight)
        ql_weight_dequantize(m->weight, from, 1, x, m->k);
    else if (m->source->foreign)
        ql_ggml_values(b->from, (const char *)m->source->data + from * b->from_bytes, 0, m->k, x);
    else
        ql_tensor_read_f32(m->source, from * m->k, m->k, x, NULL); /* floating and inside: cannot fail */
    if (m->adapter)
        ql_adapter_add_rows(m->adapter, adapter_row(m, row), 1, x, m->k);
}

static void write_dense(ql_dtype type, const float *x, size_t k, unsigned char *coded, float *back)
{
    if (type == QL_F32) {
        memcpy(coded, x, k * sizeof *x);
        memcpy(back, x, k * sizeof *x);
        return;
    }
    for (size_t j = 0; j < k; j++) {
        uint16_t half = type == QL_F16 ? ql_f32_to_f16(x[j]) : ql_f32_to_bf16(x[j]);
        memcpy(coded + 2 * j, &half, sizeof half);
        back[j] = type == QL_F16 ? ql_f16_to_f32(half) : ql_bf16_to_f32(half);
    }
}

static void make_row(void *ctx, size_t index, size_t worker)
{
    (void)worker;
    batch *b = ctx;
    const ql_merge_matrix *m = b->m;
    float *x = b->buffers->x + index * m->k, *back = b->buffers->back + index * m->k;
    unsigned char *coded = b->buffers->coded + index * b->to_bytes;
    b->error[index] = 0;
    b->bad[index] = m->k;
    if (unchanged(b, b->first + index)) {
        memcpy(coded, (const char *)m->source->data + source_row(m, b->first + index) * b->from_bytes, b->to_bytes);
        return;
    }
    read_row(b, b->first + index, x);
    if (!m->out->foreign)
        write_dense(m->out->dtype, x, m->k, coded, back);
    else if (ql_blocks_encode(b->to, m->out->name, x, m->k, coded, NULL) == QL_OK)
        ql_ggml_values(b->to, coded, 0, m->k, back);
    else
        memcpy(back, x, m->k * sizeof *x); /* a number that is not finite */
    for (size_t j = m->k; j-- > 0;) {
        double error = fabs((double)back[j] - (double)x[j]);
        if (!isfinite(back[j]))
            b->bad[index] = j;
        else if (error > b->error[index])
            b->error[index] = error;
    }
}

/* ---- all rows ---- */

static ql_status note_rows(ql_merge_matrix *m, const batch *b, size_t rows, ql_error *err)
{
    for (size_t i = 0; i < rows; i++) {
        if (b->bad[i] < m->k)
            return ql_fail(err, QL_ERR_VALUE, "%s: tensor %s, row %zu, column %zu: %g is no finite %s number",
                           m->source->file, m->out->name, b->first + i, b->bad[i],
                           (double)b->buffers->x[i * m->k + b->bad[i]], m->out->dtype_name);
        m->max_error = b->error[i] > m->max_error ? b->error[i] : m->max_error;
    }
    return QL_OK;
}

ql_status ql_merge_write_rows(ql_merge_matrix *m, const ql_merge_buffers *buffers, ql_output *output,
                              ql_workers *workers, ql_error *err)
{
    batch b = {.m = m, .buffers = buffers};
    b.from_bytes = row_bytes(m->source, m->k, &b.from);
    b.to_bytes = row_bytes(m->out, m->k, &b.to);
    for (size_t rows; b.first < m->n && !output->error; b.first += rows) {
        rows = m->n - b.first < QL_MERGE_ROWS ? m->n - b.first : QL_MERGE_ROWS;
        ql_parallel(workers, rows, make_row, &b);
        ql_status status = note_rows(m, &b, rows, err);
        if (status)
            return status;
        ql_output_write(output, buffers->coded, rows * b.to_bytes);
    }
    return QL_OK;
}
