/* AMX, 8 bits: x and decoded weights as signed bytes, with factors for every PART terms of a token and of an output,
 * sums of a part in integers, of all parts in fp32. Up to sixteen tokens go the way of vectors, dx = dy W that of bf16. As
 * in matmul_amx.c a panel of W is decoded into the second-level cache, once for all the tokens of a rectangle, and
 * 32 tokens of x x PART terms stay in the first-level cache while the panel streams by. */
#include <immintrin.h>

#include "base/cpu.h"
#include "kern/blocks_amx.h"
#include "kern/bytes_avx512.h"
#include "kern/fill_amx_int8.h"
#include "kern/kernels.h"

#ifndef QL_AMX_EMULATED
#define OTHER ql_matmul_amx
#else
#define OTHER ql_matmul_amx_emulated
#endif
#include "kern/ways_int8.h"

#ifndef QL_AMX_EMULATED
enum { TERMS = QL_AMX_INT8_TERMS, WIDTH = 256, PANEL = 1 << 20 /* bytes: half of a second-level cache of 2 MB */ };
enum { MOST_ROWS = 4096, MOST_COLS = 1024, FAR_X = 1 << 18 /* bytes */ };
#else /* small, so that small products have several of everything */
enum { TERMS = 1024, WIDTH = 192, PANEL = 192 * 1024, MOST_ROWS = 4096, MOST_COLS = 256, FAR_X = 1 << 10 };
#endif
enum { PART = QL_AMX_INT8_PART, FEW = 16 /* tokens */, TILE_SUMS = SUMS / 4 /* of a tile */, STEP_BYTES = 2 * TILE_BYTES };

static size_t steps_of(size_t terms)
{
    return ql_pieces(terms, QL_BLOCK);
}

/* Terms of a panel: sums are cut into panels of about the same depth, whole parts. */
static size_t panel_terms(const ql_product *p)
{
    size_t panels = ql_pieces(p->w->k, TERMS);
    return ql_pieces(ql_pieces(p->w->k, panels ? panels : 1), PART) * PART;
}

/* Outputs of a panel. */
static size_t panel_width(const ql_product *p)
{
    return ql_least(WIDTH, PANEL / panel_terms(p) / QL_BLOCK * QL_BLOCK);
}

/* ---- x: [block of 32 tokens][part]{[step][2 tiles of 16 tokens][16 words][16 tokens][4 bytes], [32] factors} ---- */

static size_t part_bytes(size_t terms)
{
    return steps_of(terms) * STEP_BYTES + BLOCK * sizeof(float);
}

static size_t block_bytes(const ql_product *p)
{
    size_t k = p->w->k, whole = k / PART;
    return whole * part_bytes(PART) + (k % PART ? part_bytes(k % PART) : 0);
}

static size_t packed_bytes(const ql_product *p)
{
    return p->transposed ? 0 : ql_pieces(p->m, BLOCK) * block_bytes(p);
}

static ql_plan plan_tiles(const ql_product *p, size_t threads)
{
    size_t width = panel_width(p), parts = panel_terms(p) / PART;
    ql_plan plan = {.packs = ql_pieces(p->m, BLOCK), .packed = packed_bytes(p)};
    cut(&plan, p, (ql_tile){.rows = MOST_ROWS, .cols = MOST_COLS}, width, threads);
    plan.scratch = width * (panel_terms(p) + parts * sizeof(float)) + (width * BLOCK + SUMS) * sizeof(float);
    return plan;
}

/* What a unit of the bytes of each of sixteen tokens means, `depth` terms from `x` on; of rows that are not there: 0. */
static __m512 factors_of(const float *x, size_t ldx, size_t rows, size_t depth)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i most[LANES];
    for (size_t r = 0; r < LANES; r++) {
        const float *row = x + r * ldx;
        most[r] = _mm512_setzero_si512();
        for (size_t i = 0; r < rows && i < depth; i += LANES) {
            __m512i v = _mm512_maskz_loadu_epi32(first_lanes(depth - i), row + i);
            most[r] = _mm512_max_epu32(most[r], _mm512_and_si512(v, magnitude));
        }
    }
    turn16(most);
    for (size_t r = 1; r < LANES; r++)
        most[0] = _mm512_max_epu32(most[0], most[r]);
    return _mm512_mul_ps(_mm512_castsi512_ps(most[0]), _mm512_set1_ps(1.0f / 127));
}

/* 64 terms, of which `count` exist, times `by` as bytes: quarter q has four each from 4q, 16 + 4q, 32 + 4q, 48 + 4q on. */
static inline __m512i bytes_in_quarters(const float *x, size_t count, float by)
{
    __m512i v[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        __mmask16 lanes = count > i * LANES ? first_lanes(count - i * LANES) : 0;
        v[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i * LANES), _mm512_set1_ps(by)));
    }
    return _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
}

/* A tile: sixteen tokens, of which `rows` are there. */
static inline __attribute__((always_inline)) void pack_tile(const float *x, size_t ldx, size_t rows, size_t count,
                                                            const float *by, char *tile)
{
    __m512i line[LANES];
#pragma GCC unroll 16
    for (size_t r = 0; r < LANES; r++)
        line[r] = r < rows ? bytes_in_quarters(x + r * ldx, count, by[r]) : _mm512_setzero_si512();
    turn16(line);
#pragma GCC unroll 16
    for (size_t r = 0; r < LANES; r++)
        _mm512_storeu_si512(tile + (r % 4 * 4 + r / 4) * TILE_LINE, line[r]);
}

/* Sixteen tokens (`rows` are there) of a part of x: tiles two apart, and what a unit of their bytes means. */
static void pack_part(const float *x, size_t ldx, size_t rows, size_t depth, char *tile, float *factors)
{
    float by[LANES];
    __m512 factor = factors_of(x, ldx, rows, depth);
    __mmask16 some = _mm512_cmp_ps_mask(factor, _mm512_setzero_ps(), _CMP_GT_OQ);
    _mm512_storeu_ps(factors, factor);
    _mm512_storeu_ps(by, _mm512_maskz_div_ps(some, _mm512_set1_ps(1), factor));
    for (size_t at = 0; at < depth; at += QL_BLOCK, tile += STEP_BYTES)
        if (rows == LANES && depth - at >= QL_BLOCK)
            pack_tile(x + at, ldx, LANES, QL_BLOCK, by, tile);
        else
            pack_tile(x + at, ldx, rows, depth - at, by, tile);
}

static void pack_tiles(const ql_product *p, ql_plan plan, size_t index)
{
    size_t row = index * BLOCK, k = p->w->k;
    char *out = (char *)p->packed + index * block_bytes(p);
    (void)plan;
    for (size_t from = 0, depth; from < k; from += depth, out += part_bytes(depth)) {
        depth = ql_least(PART, k - from);
        float *factors = (float *)(void *)(out + steps_of(depth) * STEP_BYTES);
        for (size_t half = 0; half < 2; half++) {
            size_t first = row + half * LANES, rows = first < p->m ? ql_least(LANES, p->m - first) : 0;
            pack_part(p->x + (rows ? first * p->ldx + from : 0), p->ldx, rows, depth, out + half * TILE_BYTES,
                      factors + half * LANES);
        }
    }
}

/* ---- products ---- */

/* What becomes of the sums of a block and a part, 2 x 2 tiles of [16 outputs][16 tokens]. */
typedef struct finish {
    const int32_t *part; /* NULL: there is no block yet */
    const float *of_w, *of_x;
    float *sums;
    bool add;         /* to sums, those of earlier parts */
    const ql_product *to; /* with the last part they go to its y; NULL: it is not the last */
    ql_tile at;
} finish;

/* One of the four tiles. sums (+)= integers times the factors of 16 outputs and 16 tokens. */
static inline __attribute__((always_inline)) void finish_tile(const finish *f, size_t tile)
{
    if (!f->part)
        return;
    const size_t token = tile % 2 * LANES, output = tile / 2 * LANES;
    const int32_t *part = f->part + tile * TILE_SUMS;
    const float *of_w = f->of_w + output;
    float *sums = f->sums + tile * TILE_SUMS;
    __m512 x = _mm512_loadu_ps(f->of_x + token);
    if (f->add) {
#pragma GCC unroll 16
        for (size_t r = 0; r < LANES; r++) {
            __m512 factor = _mm512_mul_ps(x, _mm512_set1_ps(of_w[r])), before = _mm512_load_ps(sums + r * LANES);
            __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(part + r * LANES));
            _mm512_store_ps(sums + r * LANES, _mm512_fmadd_ps(value, factor, before));
        }
    } else {
#pragma GCC unroll 16
        for (size_t r = 0; r < LANES; r++) {
            __m512 factor = _mm512_mul_ps(x, _mm512_set1_ps(of_w[r]));
            __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(part + r * LANES));
            _mm512_store_ps(sums + r * LANES, _mm512_mul_ps(value, factor));
        }
    }
    if (f->to && token < f->at.rows && output < f->at.cols)
        write_rows(f->to, (ql_tile){f->at.row + token, ql_least(LANES, f->at.rows - token), f->at.col + output,
                                    ql_least(LANES, f->at.cols - output)}, sums);
}

/* part = 32 tokens x 32 outputs of a part. The tiles still hold the sums of the block before, which go there first, each
 * while the first step waits for its tiles; vectors finish them while the later steps are multiplied. */
static inline __attribute__((always_inline)) void multiply_part(const char *x, const char *w, size_t steps,
                                                                int32_t *part, const finish *before, soon lines)
{
#define CHANGE_SUMS(t)                                                                                                 \
    do {                                                                                                               \
        if (before->part)                                                                                              \
            tile_store(t, part + t * TILE_SUMS);                                                                       \
        tile_zero(t);                                                                                                  \
    } while (0)
    tile_stream(4, w);
    tile_load(6, x);
    CHANGE_SUMS(0);
    tile_dot_int8(0, 4, 6);
    tile_load(7, x + TILE_BYTES);
    CHANGE_SUMS(1);
    tile_dot_int8(1, 4, 7);
    tile_stream(5, w + TILE_BYTES);
    CHANGE_SUMS(2);
    tile_dot_int8(2, 5, 6);
    CHANGE_SUMS(3);
    tile_dot_int8(3, 5, 7);
#undef CHANGE_SUMS
    fetch(lines, 0);
    size_t finished = 0;
    for (size_t s = 1; s < steps; s++) {
        x += STEP_BYTES, w += STEP_BYTES;
        fetch(lines, s);
        tile_load(6, x);
        tile_stream(4, w);
        tile_dot_int8(0, 4, 6);
        tile_load(7, x + TILE_BYTES);
        tile_dot_int8(1, 4, 7);
        tile_stream(5, w + TILE_BYTES);
        tile_dot_int8(2, 5, 6);
        tile_dot_int8(3, 5, 7);
        if (s % 2 && finished < 4)
            finish_tile(before, finished++);
    }
    for (; finished < 4; finished++)
        finish_tile(before, finished);
}

/* A panel of W, decoded: [blocks of 32 outputs][steps], and factors[part][width]. */
typedef struct panel {
    size_t from, depth, steps, width;
    const char *w;
    const float *factors;
    int32_t *part;
    float *sums; /* [blocks of 32 outputs] */
} panel;

/* Rectangle t, at most 32 tokens, with the panel. */
static void multiply_tokens(const ql_product *p, const panel *w, ql_tile t, soon lines)
{
    const char *x = (const char *)p->packed + t.row / BLOCK * block_bytes(p) + w->from / PART * part_bytes(PART);
    const char *y = lines.y;
    size_t blocks = ql_pieces(t.cols, BLOCK);
    finish last = {0};
    lines.y_lines = ql_pieces(2 * BLOCK, w->steps);
    lines.x_lines = lines.far_x ? ql_pieces(2 * TILE_ROWS, blocks) : 0;
    for (size_t at = 0, depth; at < w->depth; at += depth, x += part_bytes(depth)) {
        depth = ql_least(PART, w->depth - at);
        size_t steps = steps_of(depth);
        bool to_y = at + depth == w->depth;
        for (size_t o = 0; o < blocks; o++) {
            lines.y = y ? y + o * 2 * TILE_LINE : NULL;
            lines.x = x + part_bytes(depth) + o * steps * lines.x_lines * TILE_LINE;
            const char *tiles = w->w + (o * w->steps + at / QL_BLOCK) * STEP_BYTES;
            multiply_part(x, tiles, steps, w->part, &last, lines);
            last = (finish){.part = w->part,
                            .of_w = w->factors + at / PART * w->width + o * BLOCK,
                            .of_x = (const float *)(const void *)(x + steps * STEP_BYTES),
                            .sums = w->sums + o * SUMS,
                            .add = at > 0,
                            .to = to_y ? p : NULL,
                            .at = {t.row, t.rows, t.col + o * BLOCK, t.cols - o * BLOCK}};
        }
        lines.y_line += steps * lines.y_lines;
    }
    store_sums(w->part);
    for (size_t tile = 0; tile < 4; tile++)
        finish_tile(&last, tile);
}

/* Rectangle t, no wider than a panel, with the panel. */
static void multiply_panel(const ql_product *p, const panel *w, ql_tile t)
{
    for (size_t r = 0; r < t.rows; r += BLOCK) {
        ql_tile now = {t.row + r, ql_least(BLOCK, t.rows - r), t.col, t.cols};
        soon on_its_way = {.y = (const char *)(p->y + now.row * p->ldy + now.col),
                           .stride = p->ldy * sizeof(float),
                           .y_two = 1,
                           .far_x = t.rows * w->depth > FAR_X};
        multiply_tokens(p, w, now, on_its_way);
    }
}

static void tile_of(const ql_product *p, ql_tile t, void *scratch)
{
    size_t terms = panel_terms(p), width = panel_width(p);
    float *sums = scratch, *factors = sums + width * BLOCK + SUMS;
    char *w = (char *)(factors + terms / PART * width);
    tiles_begin();
    for (size_t c = 0; c < t.cols; c += width)
        for (size_t from = 0; from < p->w->k; from += terms) {
            ql_tile wide = {t.row, t.rows, t.col + c, ql_least(width, t.cols - c)};
            size_t depth = ql_least(terms, p->w->k - from);
            ql_product into = *p; /* later panels add to y */
            into.add = p->add || from > 0;
            ql_fill_amx_int8(p->w, wide.col, wide.cols, from, depth, w, factors, width);
            int32_t *part = (int32_t *)(void *)(sums + width * BLOCK);
            panel now = {from, depth, steps_of(depth), width, w, factors, part, sums};
            multiply_panel(&into, &now, wide);
        }
    tiles_end();
}

static bool few_fits(const ql_product *p)
{
    return !p->transposed && p->m <= FEW;
}

static const ql_way ways[] = {
    ONE_OR_TWO_WAY,
    VNNI_WAY(few_fits),
    {.fits = forward, .packed = packed_bytes, .plan = plan_tiles, .pack = pack_tiles, .tile = tile_of,
     .packs_alike = true, .pack_tokens = BLOCK, .rounds = QL_ROUND_INT8},
    OTHER_WAY(.chains = true, .packs_alike = true, .pack_tokens = BLOCK, .rounds = QL_ROUND_BF16),
};
enum { WAYS = sizeof ways / sizeof *ways };

static bool reads_narrow(const ql_product *p)
{
    return p->transposed && OTHER.reads_narrow(p);
}

#ifndef QL_AMX_EMULATED
const ql_matmul_kernel ql_matmul_amx_int8 = {
    .name = "amx-int8",
    .cpu = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_VNNI | QL_CPU_AVX512_VBMI | QL_CPU_AVX512_BF16 | QL_CPU_AMX_BF16 |
           QL_CPU_AMX_INT8,
#else
const ql_matmul_kernel ql_matmul_amx_int8_emulated = {
    .name = "amx-int8, emulated",
    .cpu = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_VNNI | QL_CPU_AVX512_VBMI | QL_CPU_AVX512_BF16,
#endif
    .accepts = accepts,
    .ways = ways,
    .way_count = WAYS,
    .reads_narrow = reads_narrow,
    .int8_inputs = true};
