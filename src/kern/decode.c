#include "kern/decode.h"

static void decode_dense(const ql_wview *w, const char *line, size_t col, size_t count, float *dst)
{
    if (w->format.code == QL_CODE_F32) {
        memcpy(dst, (const float *)(const void *)line + col, count * sizeof *dst);
        return;
    }
    const uint16_t *half = (const uint16_t *)(const void *)line + col;
    if (w->format.code == QL_CODE_F16) {
        for (size_t i = 0; i < count; i++)
            dst[i] = ql_f16_to_f32(half[i]);
    } else {
        for (size_t i = 0; i < count; i++)
            dst[i] = ql_bf16_to_f32(half[i]);
    }
}

/* Elements [col, col + count) lie in one group and in one half of a block. */
static void decode_run(const ql_wview *w, const char *line, float scale, size_t col, size_t count, float *dst)
{
    if (w->format.code == QL_CODE_INT8) {
        const int8_t *codes = (const int8_t *)line + col;
        for (size_t i = 0; i < count; i++)
            dst[i] = (float)codes[i] * scale;
        return;
    }
    size_t in_block = col % QL_BLOCK;
    unsigned shift = in_block < 32 ? 0 : 4;
    const uint8_t *codes = (const uint8_t *)line + col / QL_BLOCK * (QL_BLOCK / 2) + in_block % 32;
    float scaled[16];
    for (int i = 0; i < 16; i++)
        scaled[i] = w->table[i] * scale;
    for (size_t i = 0; i < count; i++)
        dst[i] = scaled[codes[i] >> shift & 15];
}

void ql_decode_row(const ql_wview *w, size_t row, size_t col, size_t count, float *dst)
{
    const char *line = (const char *)w->codes + row * w->row_bytes;
    if (ql_is_dense(w)) {
        decode_dense(w, line, col, count, dst);
        return;
    }
    if (ql_code_is_ggml(w->format.code)) {
        ql_ggml_values(w->format.code, line, col, count, dst);
        return;
    }
    size_t group = w->format.group, end = col + count;
    size_t first = w->format.flat ? row * w->k : 0; /* where the row starts, counted in its groups' array */
    size_t base = w->format.flat ? 0 : row * w->groups;
    while (col < end) {
        size_t in_group = (first + col) % group, half = 32 - col % 32;
        size_t run = group - in_group < half ? group - in_group : half;
        run = end - col < run ? end - col : run;
        decode_run(w, line, ql_wview_scale(w, base + (first + col) / group), col, run, dst);
        col += run, dst += run;
    }
}

void ql_decode_scales(const ql_wview *w, size_t g, size_t count, float *dst)
{
    for (size_t i = 0; i < count; i++)
        dst[i] = ql_wview_scale(w, g + i);
}
