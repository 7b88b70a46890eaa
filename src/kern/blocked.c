#include "kern/blocked.h"

#include "base/sizes.h"
#include "kern/decode.h"

/* Of a rectangle: with 256 terms its packed x and its sums stay in a second-level cache of 2 MB. */
enum { MOST_ROWS = 560, MOST_COLS = 256 };
enum { LINE = 64 };
enum { PACKED_AT_ONCE = 4 /* micro-tiles: x is packed in many pieces, so that no thread waits long for the last */ };

/* Rows of a panel, and of x beside it, for so many terms. */
static size_t lines(const ql_blocked *b, size_t terms)
{
    return b->pairs ? ql_pieces(terms, 2) : terms;
}

/* Numbers that a panel takes, and the sums of the largest rectangle. */
static size_t panel_of(const ql_blocked *b)
{
    return b->width * lines(b, b->depth);
}

static size_t sums_of(const ql_product *p)
{
    size_t outputs = ql_pieces(ql_product_outputs(p), QL_BLOCK) * QL_BLOCK;
    return ql_least(p->m, MOST_ROWS) * ql_least(outputs, MOST_COLS);
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

/* Outputs that are decoded at once, panel after panel. */
static size_t step_of(const ql_blocked *b, bool transposed)
{
    return transposed && b->together ? b->together : b->width;
}

/* Outputs of a rectangle, `down` of which lie below each other: so many that all threads are busy until the end. */
static size_t cut_cols(const ql_blocked *b, const ql_product *p, size_t down, size_t threads)
{
    size_t outputs = ql_product_outputs(p), step = step_of(b, p->transposed);
    size_t least = ql_pieces(outputs, MOST_COLS), cols = MOST_COLS, shortest = SIZE_MAX;
    while (down * least < 4 * threads && least * 2 * b->width < outputs)
        least++;
    for (size_t across = least; across < 2 * least; across++) {
        size_t wide = ql_pieces(ql_pieces(outputs, across), step) * step;
        size_t longest = ql_pieces(down * ql_pieces(outputs, wide), threads) * wide;
        if (longest < shortest)
            shortest = longest, cols = wide;
    }
    return cols;
}

ql_plan ql_blocked_plan(const ql_blocked *b, const ql_product *p, size_t threads)
{
    size_t inputs = ql_product_inputs(p), down = ql_pieces(p->m, MOST_ROWS);
    ql_plan plan = {.rows = ql_pieces(p->m, down ? down : 1)};
    /* Narrow weights give many threads too few rectangles: tokens are shared out as well, a few micro-tiles each. */
    while (down * ql_pieces(ql_product_outputs(p), 2 * b->width) < 2 * threads && plan.rows > 4 * b->tokens)
        plan.rows = ql_pieces(p->m, down *= 2);
    plan.cols = cut_cols(b, p, down, threads);
    plan.packed = p->m * lines(b, inputs) * sizeof(float);
    plan.scratch = (panel_of(b) * (step_of(b, p->transposed) / b->width) + sums_of(p)) * sizeof(float);
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

/* What one fill decodes. */
typedef struct place {
    size_t col, cols, from, depth;
} place;

/* Codes that are wanted soon: `bytes` of each of some rows. */
typedef struct codes {
    const char *first;
    size_t rows, apart, bytes;
} codes;

static codes codes_of(const ql_product *p, place at)
{
    const ql_wview *w = p->w;
    size_t row = p->transposed ? at.from : at.col, rows = p->transposed ? at.depth : at.cols;
    size_t skip = p->transposed ? at.col : at.from, across = p->transposed ? at.cols : at.depth;
    const char *first = (const char *)w->codes + row * w->row_bytes + skip * w->row_bytes / w->k;
    return (codes){first, rows, w->row_bytes, across * w->row_bytes / w->k};
}

/* Some rows on their way into the cache, and off the list: they lie too far apart for the processor to guess which come
 * next, and few of them at a time leave room for what the products wait for. Always inlined: gcc takes a function that
 * does nothing else for one without effect, and leaves out the call. */
static inline __attribute__((always_inline)) void fetch(codes *wanted, size_t rows)
{
    for (; rows && wanted->rows; rows--, wanted->rows--, wanted->first += wanted->apart)
        for (size_t i = 0; i < wanted->bytes; i += LINE)
            __builtin_prefetch(wanted->first + i);
}

/* One panel with all tokens of a rectangle. Until the last terms their sums wait side by side, not in rows of y: those
 * may lie a multiple of 4 KB apart, where a cache has few places for them. `rows` of what is wanted are fetched for each
 * micro-tile. */
static void multiply_panel(const ql_blocked *b, const ql_product *p, ql_tile t, place at, const float *panel,
                           float *sums, codes *wanted, size_t rows)
{
    size_t inputs = ql_product_inputs(p), depth = lines(b, at.depth);
    bool last = at.from + at.depth == inputs;
    const float *a = (const float *)p->packed + t.row * lines(b, inputs) + t.rows * lines(b, at.from);
    float *y = p->y + t.row * p->ldy + at.col;
    split s = split_rows(b, t.rows);
    for (size_t i = 0; i < s.count; i++) {
        size_t tokens = s.small + (i < s.larger);
        const float *before = at.from ? sums : NULL;
        fetch(wanted, rows);
        b->multiply(tokens, depth, a, panel, last ? (ql_sums){y, p->ldy, at.cols, p->add, before}
                                                  : (ql_sums){sums, b->width, b->width, false, before});
        a += tokens * depth;
        y += tokens * p->ldy;
        sums += tokens * b->width;
    }
}

static place first_place(const ql_blocked *b, const ql_product *p, ql_tile t)
{
    return (place){t.col, ql_least(step_of(b, p->transposed), t.cols), 0, ql_least(b->depth, ql_product_inputs(p))};
}

/* No cols: there is none. */
static place next_place(const ql_blocked *b, const ql_product *p, ql_tile t, place at)
{
    size_t inputs = ql_product_inputs(p), end = t.col + t.cols;
    at.col += at.cols;
    if (at.col == end)
        at.col = t.col, at.from += at.depth;
    if (at.from == inputs)
        return (place){0};
    at.cols = ql_least(step_of(b, p->transposed), end - at.col);
    at.depth = ql_least(b->depth, inputs - at.from);
    return at;
}

void ql_blocked_tile(const ql_blocked *b, const ql_product *p, ql_tile t, float *panels)
{
    float *sums = panels + panel_of(b) * (step_of(b, p->transposed) / b->width);
    for (place at = first_place(b, p, t), next; at.cols; at = next) {
        next = next_place(b, p, t, at);
        codes wanted = codes_of(p, next);
        size_t micro_tiles = ql_pieces(at.cols, b->width) * split_rows(b, t.rows).count;
        size_t rows = ql_pieces(wanted.rows, micro_tiles);
        b->fill(p, at.col, at.cols, at.from, at.depth, panels);
        for (size_t i = 0; i * b->width < at.cols; i++) {
            place one = at;
            one.col += i * b->width;
            one.cols = ql_least(b->width, at.cols - i * b->width);
            multiply_panel(b, p, t, one, panels + i * panel_of(b), sums + (one.col - t.col) * t.rows, &wanted, rows);
        }
    }
}

static void fill_panel(const ql_product *p, size_t width, place at, float *panel)
{
    if (p->transposed) {
        for (size_t i = 0; i < at.depth; i++)
            ql_decode_row(p->w, at.from + i, at.col, at.cols, panel + i * width);
        return;
    }
    float line[64];
    for (size_t c = 0; c < at.cols; c++)
        for (size_t from = 0; from < at.depth; from += 64) {
            size_t count = ql_least(64, at.depth - from);
            ql_decode_row(p->w, at.col + c, at.from + from, count, line);
            for (size_t i = 0; i < count; i++)
                panel[(from + i) * width + c] = line[i];
        }
}

void ql_blocked_fill(const ql_product *p, size_t width, size_t col, size_t cols, size_t from, size_t depth,
                     float *panel, size_t apart)
{
    for (size_t part = 0; part < cols; part += width, panel += apart)
        fill_panel(p, width, (place){col + part, ql_least(width, cols - part), from, depth}, panel);
}
