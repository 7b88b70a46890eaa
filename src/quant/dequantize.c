/* Weights back to fp32, and to bitsandbytes' order. */
#include <string.h>

#include "base/cpu.h"
#include "quant/encode.h"

static void read_dense(const ql_encoder *encoder, const ql_wview *view, size_t row, float *dst)
{
    encoder->load(dst, (const char *)view->codes + row * view->row_bytes, ql_code_dtype(view->format.code), view->k);
}

/* x[cols] = columns [col, col + cols) of a row; col is a multiple of 64 and cols at most 64. */
static void read_block(const ql_encoder *encoder, const ql_wview *view, size_t row, size_t col, size_t cols,
                       float x[QL_BLOCK])
{
    const char *codes = (const char *)view->codes + row * view->row_bytes;
    if (view->table)
        encoder->decode4(x, (const uint8_t *)codes + col / 2, view->table);
    else
        encoder->decode8(x, (const int8_t *)codes + col);
    for (size_t done = 0, group; done < cols;) {
        size_t run = ql_wview_run(view, row, col + done, &group);
        run = run < cols - done ? run : cols - done;
        encoder->multiply(x + done, run, ql_wview_scale(view, group));
        done += run;
    }
}

void ql_weight_dequantize(const ql_weight *w, size_t row, size_t rows, float *dst, size_t ld)
{
    const ql_wview *view = &w->view;
    const ql_encoder *encoder = ql_encoder_select(ql_cpu_features());
    assert(row <= view->n && rows <= view->n - row && (ld >= view->k || rows < 2));
    for (size_t i = 0; i < rows; i++) {
        float *line = dst + i * ld;
        if (ql_code_is_dense(view->format.code)) {
            read_dense(encoder, view, row + i, line);
            continue;
        }
        if (ql_code_is_ggml(view->format.code)) {
            ql_ggml_values(view->format.code, (const char *)view->codes + (row + i) * view->row_bytes, 0, view->k, line);
            continue;
        }
        for (size_t col = 0; col < view->k; col += QL_BLOCK) {
            float x[QL_BLOCK];
            size_t cols = view->k - col < QL_BLOCK ? view->k - col : QL_BLOCK;
            read_block(encoder, view, row + i, col, cols, x);
            memcpy(line + col, x, cols * sizeof *x);
        }
    }
}
