#include "kern/fill_neon.h"

#include "kern/decode.h"
#include "kern/table_neon.h"

enum { WIDTH = 16 };

/* line[i] becomes what was byte i of all the lines. */
static void turn(uint8x16_t line[WIDTH])
{
    /* Four times every line meets the one eight further on, and their bytes alternate. */
    for (int round = 0; round < 4; round++) {
        uint8x16_t next[WIDTH];
        for (int i = 0; i < 8; i++) {
            next[2 * i] = vzip1q_u8(line[i], line[i + 8]);
            next[2 * i + 1] = vzip2q_u8(line[i], line[i + 8]);
        }
        for (int i = 0; i < WIDTH; i++)
            line[i] = next[i];
    }
}

static void store_scaled(quads value, quads scale, float *out)
{
    for (int i = 0; i < 4; i++)
        vst1q_f32(out + 4 * i, vmulq_f32(value.part[i], scale.part[i]));
}

/* The scales of group `group` of 16 rows. */
static quads row_scales(const ql_wview *w, const size_t rows[WIDTH], size_t group)
{
    float scales[WIDTH];
    for (size_t r = 0; r < WIDTH; r++)
        scales[r] = ql_wview_scale(w, rows[r] * ql_row_groups(w) + group);
    return (quads){{vld1q_f32(scales), vld1q_f32(scales + 4), vld1q_f32(scales + 8), vld1q_f32(scales + 12)}};
}

/* 16 bytes of every row from `at` on: 16 columns, or of 4-bit codes 16 in the low and 16 in the high nibbles. */
static void turn_piece(const char *const rows[WIDTH], size_t at, planes table, bool four_bits, quads low, quads high,
                       float *panel)
{
    uint8x16_t line[WIDTH];
    for (size_t r = 0; r < WIDTH; r++)
        line[r] = vld1q_u8((const uint8_t *)rows[r] + at);
    turn(line);
    for (size_t i = 0; i < WIDTH; i++) {
        if (four_bits) {
            store_scaled(look_up(table, vandq_u8(line[i], vdupq_n_u8(15))), low, panel + i * WIDTH);
            store_scaled(look_up(table, vshrq_n_u8(line[i], 4)), high, panel + (i + 32) * WIDTH);
        } else {
            store_scaled(widen_int8(vreinterpretq_s8_u8(line[i])), low, panel + i * WIDTH);
        }
    }
}

void ql_fill_forward_neon(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel)
{
    const char *rows[WIDTH];
    size_t index[WIDTH], group = w->format.group;
    const bool four_bits = w->table != NULL;
    const planes table = load_planes(w->table);
    for (size_t r = 0; r < WIDTH; r++) { /* past the last row: the last again, never stored */
        index[r] = col + (r < cols ? r : cols - 1);
        rows[r] = (const char *)w->codes + index[r] * w->row_bytes;
    }
    for (size_t at = from; at < from + depth; at += QL_BLOCK, panel += QL_BLOCK * WIDTH) {
        quads low = row_scales(w, index, at / group), high = low;
        if (group == 32 && at + 32 < w->k)
            high = row_scales(w, index, at / group + 1);
        if (four_bits) {
            for (size_t i = 0; i < 32; i += 16)
                turn_piece(rows, at / 2 + i, table, true, low, high, panel + i * WIDTH);
        } else {
            for (size_t i = 0; i < QL_BLOCK; i += 16)
                turn_piece(rows, at + i, table, false, i < 32 ? low : high, low, panel + i * WIDTH);
        }
    }
}

void ql_fill_backward_neon(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, float *panel)
{
    const planes table = load_planes(w->table);
    (void)cols; /* rows are padded: columns past the last exist and are never stored */
    for (size_t row = from; row < from + depth; row++, panel += WIDTH) {
        const uint8_t *line = (const uint8_t *)w->codes + row * w->row_bytes;
        float32x4_t one = vdupq_n_f32(ql_wview_scale(w, row * ql_row_groups(w) + col / w->format.group));
        quads scale = {{one, one, one, one}};
        if (w->table) {
            uint8x16_t codes = vld1q_u8(line + col / QL_BLOCK * 32 + col % 32);
            codes = col % QL_BLOCK < 32 ? vandq_u8(codes, vdupq_n_u8(15)) : vshrq_n_u8(codes, 4);
            store_scaled(look_up(table, codes), scale, panel);
        } else {
            store_scaled(widen_int8(vld1q_s8((const int8_t *)line + col)), scale, panel);
        }
    }
}
