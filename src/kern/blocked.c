#include "kern/blocked.h"

#include "base/sizes.h"
#include "kern/decode.h"

/* Tokens of a rectangle: with 256 terms their packed x stays in a second-level cache of 1 MB beside
 * the rectangle of the result. */
enum { MOST_ROWS = 560, MOST_COLS = 512 };
enum { PACKED_AT_ONCE = 4 /* micro-tiles: x is packed in many pieces, so that no thread waits long for the last */ };

/* Rows of a panel, and of x beside it, for so many terms. */
static size_t lines(const ql_blocked *b, size_t terms)
{
    return b->pairs ? ql_pieces(terms, 2) : terms;
}

/* Packed x: rectangle after rectangle; in it panel depth after depth; in it micro-tile after
 * micro-tile, each [depth][its tokens]. The micro-tiles of a rectangle differ by at most one token. */
typedef struct split {
    size_t count, small, larger; /* the first `larger` have small + 1 tokens */
} split;

static split split_rows(const ql_blocked *b, size_t rows)
{
    size_t count = ql_pieces(rows, b->tokens);
    return (split){count, rows / count, rows % count};
}

/* Pieces of a panel of a rectangle's packed x. */
static size_t packs_down(const ql_blocked *b, size_t rows)
{
    return ql_pieces(ql_pieces(rows, b->tokens), PACKED_AT_ONCE);
}

ql_plan ql_blocked_plan(const ql_blocked *b, const ql_product *p, size_t threads)
{
    size_t inputs = ql_product_inputs(p), outputs = ql_product_outputs(p);
    size_t down = ql_pieces(p->m, MOST_ROWS);
    ql_plan plan = {.rows = ql_pieces(p->m, down ? down : 1), .cols = MOST_COLS};
    while (plan.cols > 2 * b->width && down * ql_pieces(outputs, plan.cols) < 4 * threads)
        plan.cols -= b->width;
    /* Narrow weights give many threads too few rectangles: tokens are shared out as well, a few micro-tiles each. */
    while (down * ql_pieces(outputs, plan.cols) < 2 * threads && plan.rows > 4 * b->tokens)
        plan.rows = ql_pieces(p->m, down *= 2);
    plan.packed = p->m * lines(b, inputs) * sizeof(float);
    plan.scratch = b->width * lines(b, b->depth) * sizeof(float);
    return ql_blocked_rows(b, p, plan, plan.rows);
}

ql_plan ql_blocked_rows(const ql_blocked *b, const ql_product *p, ql_plan plan, size_t rows)
{
    plan.rows = rows;
    plan.packs = ql_pieces(p->m, rows ? rows : 1) * ql_pieces(ql_product_inputs(p), b->depth) * packs_down(b, rows);
    return plan;
}

typedef float v4 __attribute__((vector_size(16)));

static inline v4 load4(const float *p)
{
    v4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* out[j][r] = x[r][j] for four rows r; the rows of out are `tokens` long. */
static void pack_four(const float *x, size_t ldx, size_t depth, size_t tokens, float *out)
{
    size_t j = 0;
    for (; j + 4 <= depth; j += 4) {
        v4 a = load4(x + j), b = load4(x + ldx + j), c = load4(x + 2 * ldx + j), d = load4(x + 3 * ldx + j);
        v4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
        v4 AB = __builtin_shufflevector(a, b, 2, 6, 3, 7), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        v4 turned[4] = {__builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
                        __builtin_shufflevector(AB, CD, 0, 1, 4, 5), __builtin_shufflevector(AB, CD, 2, 3, 6, 7)};
        for (size_t i = 0; i < 4; i++)
            memcpy(out + (j + i) * tokens, &turned[i], sizeof(v4));
    }
    for (; j < depth; j++)
        for (size_t r = 0; r < 4; r++)
            out[j * tokens + r] = x[r * ldx + j];
}

/* out[depth][tokens] = x[tokens][depth] turned. */
static void pack_micro(const float *x, size_t ldx, size_t depth, size_t tokens, float *out)
{
    for (size_t r = 0; r < tokens && tokens >= 4; r += 4) {
        size_t first = ql_least(r, tokens - 4); /* the last four may overlap those before */
        pack_four(x + first * ldx, ldx, depth, tokens, out + first);
    }
    for (size_t r = 0; r < tokens && tokens < 4; r++)
        for (size_t j = 0; j < depth; j++)
            out[j * tokens + r] = x[r * ldx + j];
}

void ql_blocked_pack(const ql_blocked *b, const ql_product *p, ql_plan plan, size_t index)
{
    size_t inputs = ql_product_inputs(p), panels = ql_pieces(inputs, b->depth), down = packs_down(b, plan.rows);
    size_t first = index % down * PACKED_AT_ONCE, from = index / down % panels * b->depth;
    size_t row = index / down / panels * plan.rows, rows = ql_least(plan.rows, p->m - row);
    size_t depth = ql_least(b->depth, inputs - from);
    float *out = (float *)p->packed + row * lines(b, inputs) + rows * lines(b, from);
    split s = split_rows(b, rows);
    if (first >= s.count) /* the last rectangle has fewer rows */
        return;
    size_t before = first * s.small + ql_least(first, s.larger);
    const float *x = p->x + (row + before) * p->ldx + from;
    out += before * lines(b, depth);
    for (size_t i = first; i < ql_least(first + PACKED_AT_ONCE, s.count); i++) {
        size_t tokens = s.small + (i < s.larger);
        (b->pack ? b->pack : pack_micro)(x, p->ldx, depth, tokens, out);
        out += tokens * lines(b, depth);
        x += tokens * p->ldx;
    }
}

void ql_blocked_tile(const ql_blocked *b, const ql_product *p, ql_tile t, float *panel)
{
    size_t inputs = ql_product_inputs(p);
    split s = split_rows(b, t.rows);
    for (size_t from = 0; from < inputs; from += b->depth) {
        size_t depth = ql_least(b->depth, inputs - from);
        for (size_t col = t.col; col < t.col + t.cols; col += b->width) {
            size_t cols = ql_least(b->width, t.col + t.cols - col);
            const float *a = (const float *)p->packed + t.row * lines(b, inputs) + t.rows * lines(b, from);
            float *y = p->y + t.row * p->ldy + col;
            b->fill(p, col, cols, from, depth, panel);
            for (size_t i = 0; i < s.count; i++) {
                size_t tokens = s.small + (i < s.larger);
                b->multiply(tokens, lines(b, depth), a, panel, y, p->ldy, cols, from || p->add);
                a += tokens * lines(b, depth);
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
            size_t count = ql_least(64, depth - at);
            ql_decode_row(p->w, col + c, from + at, count, line);
            for (size_t i = 0; i < count; i++)
                panel[(at + i) * width + c] = line[i];
        }
}
