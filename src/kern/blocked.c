#include "kern/blocked.h"

#include "kern/decode.h"

/* Tokens of a rectangle: with 256 terms their packed x stays in a second-level cache of 1 MB beside
 * the rectangle of the result. */
enum { MOST_ROWS = 280, MOST_COLS = 256 };

static size_t pieces(size_t length, size_t piece)
{
    return (length + piece - 1) / piece;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Packed x: rectangle after rectangle; in it panel depth after depth; in it micro-tile after
 * micro-tile, each [depth][its tokens]. The micro-tiles of a rectangle differ by at most one token. */
typedef struct split {
    size_t count, small, larger; /* the first `larger` have small + 1 tokens */
} split;

static split split_rows(const ql_blocked *b, size_t rows)
{
    size_t count = pieces(rows, b->tokens);
    return (split){count, rows / count, rows % count};
}

ql_plan ql_blocked_plan(const ql_blocked *b, const ql_product *p)
{
    size_t inputs = ql_product_inputs(p), outputs = ql_product_outputs(p);
    size_t down = pieces(p->m, MOST_ROWS);
    ql_plan plan = {.rows = pieces(p->m, down ? down : 1), .cols = MOST_COLS};
    while (plan.cols > 2 * b->width && down * pieces(outputs, plan.cols) < 64)
        plan.cols -= b->width;
    plan.packs = pieces(p->m, plan.rows ? plan.rows : 1) * pieces(inputs, b->depth);
    plan.packed = p->m * inputs * sizeof(float);
    plan.scratch = b->width * b->depth * sizeof(float);
    return plan;
}

void ql_blocked_pack(const ql_blocked *b, const ql_product *p, size_t index, float *packed)
{
    size_t inputs = ql_product_inputs(p), panels = pieces(inputs, b->depth), each = ql_blocked_plan(b, p).rows;
    size_t row = index / panels * each, from = index % panels * b->depth;
    size_t rows = least(each, p->m - row), depth = least(b->depth, inputs - from);
    float *out = packed + row * inputs + rows * from;
    split s = split_rows(b, rows);
    for (size_t i = 0; i < s.count; i++) {
        size_t tokens = s.small + (i < s.larger);
        const float *x = p->x + row * p->ldx + from;
        for (size_t j = 0; j < depth; j++)
            for (size_t r = 0; r < tokens; r++)
                out[j * tokens + r] = x[r * p->ldx + j];
        out += tokens * depth;
        row += tokens;
    }
}

void ql_blocked_tile(const ql_blocked *b, const ql_product *p, ql_tile t, const float *packed, float *panel)
{
    size_t inputs = ql_product_inputs(p);
    split s = split_rows(b, t.rows);
    for (size_t from = 0; from < inputs; from += b->depth) {
        size_t depth = least(b->depth, inputs - from);
        for (size_t col = t.col; col < t.col + t.cols; col += b->width) {
            size_t cols = least(b->width, t.col + t.cols - col);
            const float *a = packed + t.row * inputs + t.rows * from;
            float *y = p->y + t.row * p->ldy + col;
            b->fill(p, col, cols, from, depth, panel);
            for (size_t i = 0; i < s.count; i++) {
                size_t tokens = s.small + (i < s.larger);
                b->multiply(tokens, depth, a, panel, y, p->ldy, cols, from || p->add);
                a += tokens * depth;
                y += tokens * p->ldy;
            }
        }
    }
}

void ql_blocked_fill(const ql_product *p, size_t width, size_t col, size_t cols, size_t from, size_t depth,
                     float *panel)
{
    if (p->transposed) {
        for (size_t i = 0; i < depth; i++)
            ql_decode_row(p->w, from + i, col, cols, panel + i * width);
        return;
    }
    float line[64];
    for (size_t c = 0; c < cols; c++)
        for (size_t at = 0; at < depth; at += 64) {
            size_t count = least(64, depth - at);
            ql_decode_row(p->w, col + c, from + at, count, line);
            for (size_t i = 0; i < count; i++)
                panel[(at + i) * width + c] = line[i];
        }
}
