/* AMX, 8 bits: x and decoded weights as signed bytes, with factors for every PART terms of a token and of an output,
 * sums of a part in integers, of all parts in fp32. Up to sixteen tokens go the way of vectors, dx = dy W that of bf16. As
 * in matmul_amx.c a panel of W is decoded into the second-level cache, once for all the tokens of a rectangle, and
 * 32 tokens of x x PART terms stay in the first-level cache while the panel streams by. */
#include <immintrin.h>

#include "base/cpu.h"
#include "kern/blocks_amx.h"
#include "kern/bytes_avx512.h"
#include "kern/decode.h"
#include "kern/kernels.h"

#ifndef QL_AMX_EMULATED
#define OTHER ql_matmul_amx
#else
#define OTHER ql_matmul_amx_emulated
#endif
enum { OTHER_TOKENS = 0 };
#include "kern/ways_int8.h"

#ifndef QL_AMX_EMULATED
enum { TERMS = 4096, WIDTH = 128 /* of a panel */, MOST_ROWS = 4096, MOST_COLS = 1024 };
#else /* small, so that small products have several of everything */
enum { TERMS = 512, WIDTH = 64, MOST_ROWS = 4096, MOST_COLS = 128 };
#endif
enum { PART = QL_AMX_INT8_PART, FEW = 16 /* tokens */ };

static size_t steps_of(size_t terms)
{
    return ql_pieces(terms, QL_BLOCK);
}

/* ---- x: [block of 32 tokens][part]{[step][2 tiles of 16 tokens][16 words][16 tokens][4 bytes], [32] factors} ---- */

static size_t part_bytes(size_t terms)
{
    return steps_of(terms) * 2 * TILE_BYTES + BLOCK * sizeof(float);
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
    size_t steps = steps_of(ql_least(p->w->k, TERMS));
    ql_plan plan = {.packs = ql_pieces(p->m, BLOCK), .packed = packed_bytes(p)};
    cut(&plan, p, (ql_tile){.rows = MOST_ROWS, .cols = MOST_COLS}, WIDTH, threads);
    plan.scratch = WIDTH * (steps * QL_BLOCK + (TERMS / PART + BLOCK) * sizeof(float)) + SUMS * sizeof(int32_t);
    return plan;
}

/* Sixteen tokens (`rows` are there) of a part of x: tiles two apart, and what a unit of their bytes means. */
static void pack_part(const ql_product *p, size_t row, size_t rows, size_t from, size_t depth, char *tile,
                      float *factors)
{
    float by[LANES] = {0};
    for (size_t r = 0; r < LANES; r++) {
        float largest = r < rows ? largest_magnitude(p->x + (row + r) * p->ldx + from, depth) : 0;
        factors[r] = largest / 127;
        by[r] = largest > 0 ? 127 / largest : 0;
    }
    for (size_t at = 0; at < depth; at += QL_BLOCK, tile += 2 * TILE_BYTES) {
        __m512i line[LANES];
        for (size_t r = 0; r < LANES; r++)
            line[r] = r < rows ? bytes64(p->x + (row + r) * p->ldx + from + at, depth - at, by[r])
                               : _mm512_setzero_si512();
        turn16(line);
        for (size_t r = 0; r < LANES; r++)
            _mm512_storeu_si512(tile + r * TILE_LINE, line[r]);
    }
}

static void pack_tiles(const ql_product *p, ql_plan plan, size_t index)
{
    size_t row = index * BLOCK, k = p->w->k;
    char *out = (char *)p->packed + index * block_bytes(p);
    (void)plan;
    for (size_t from = 0, depth; from < k; from += depth, out += part_bytes(depth)) {
        depth = ql_least(PART, k - from);
        float *factors = (float *)(void *)(out + steps_of(depth) * 2 * TILE_BYTES);
        for (size_t half = 0; half < 2; half++) {
            size_t first = row + half * LANES;
            pack_part(p, first, first < p->m ? ql_least(LANES, p->m - first) : 0, from, depth, out + half * TILE_BYTES,
                      factors + half * LANES);
        }
    }
}

/* ---- W: [block of 32 outputs][step of the panel][2 tiles of 16 outputs][16 outputs][64 bytes] ---- */

/* 64 columns of 4-bit codes. low, high: what the first and the last 32 are multiplied by. */
static __m512i look_up(const char *codes, __m512 table, float low, float high)
{
    const __m256i nibble = _mm256_set1_epi8(15), packed = _mm256_loadu_si256((const __m256i *)(const void *)codes);
    __m128i first = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(table, _mm512_set1_ps(low))));
    __m128i last = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(table, _mm512_set1_ps(high))));
    __m256i lows = _mm256_and_si256(packed, nibble), highs = _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(first), lows)),
                              _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(last), highs), 1);
}

/* 64 columns of bytes. */
static __m512i scale_bytes(const char *codes, float low, float high)
{
    float wide[QL_BLOCK];
    for (size_t i = 0; i < QL_BLOCK; i += LANES) {
        __m512i word = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(codes + i)));
        __m512 by = _mm512_set1_ps(i < QL_BLOCK / 2 ? low : high);
        _mm512_storeu_ps(wide + i, _mm512_mul_ps(_mm512_cvtepi32_ps(word), by));
    }
    return bytes64(wide, QL_BLOCK, 1);
}

/* A row's terms [from, from + depth) of a part, whose first step's line is `line`; what a unit of its bytes means. */
static float fill_part(const ql_wview *w, size_t row, size_t from, size_t depth, float largest_code, char *line)
{
    float scales[PART / 32];
    size_t group = w->format.group, first = from / group, last = (from + depth - 1) / group;
    const char *codes = (const char *)w->codes + row * w->row_bytes;
    ql_decode_scales(w, row * ql_row_groups(w) + first, last - first + 1, scales);
    float largest = largest_magnitude(scales, last - first + 1) * largest_code, by = largest > 0 ? 127 / largest : 0;
    __m512 table = w->table ? _mm512_loadu_ps(w->table) : _mm512_setzero_ps();
    for (size_t at = from; at < from + depth; at += QL_BLOCK, line += 2 * TILE_BYTES) {
        float low = scales[at / group - first] * by, high = scales[ql_least((at + 32) / group, last) - first] * by;
        _mm512_storeu_si512(line, w->table ? look_up(codes + at / 2, table, low, high)
                                           : scale_bytes(codes + at, low, high));
    }
    return largest / 127;
}

/* What the largest of scale times code is to the scale. */
static float largest_code(const ql_wview *w)
{
    return w->table ? largest_magnitude(w->table, 16) : 127;
}

/* factors: [part][WIDTH]. */
static void fill_panel(const ql_wview *w, size_t col, size_t cols, size_t from, size_t depth, char *panel,
                       float *factors)
{
    size_t steps = steps_of(depth);
    float code = largest_code(w);
    for (size_t o = 0; o < cols; o++) {
        char *row = panel + o / BLOCK * steps * 2 * TILE_BYTES + o % BLOCK / LANES * TILE_BYTES + o % LANES * TILE_LINE;
        for (size_t at = 0; at < depth; at += PART)
            factors[at / PART * WIDTH + o] = fill_part(w, col + o, from + at, ql_least(PART, depth - at), code,
                                                       row + at / QL_BLOCK * 2 * TILE_BYTES);
    }
}

/* ---- products ---- */

/* sums: 2 x 2 tiles, [16 outputs][16 tokens]. */
static void multiply_part(const char *x, const char *w, size_t steps, int32_t *sums)
{
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    for (size_t s = 0; s < steps; s++, x += 2 * TILE_BYTES, w += 2 * TILE_BYTES) {
        tile_load(6, x);
        tile_stream(4, w);
        tile_dot_int8(0, 4, 6);
        tile_load(7, x + TILE_BYTES);
        tile_dot_int8(1, 4, 7);
        tile_stream(5, w + TILE_BYTES);
        tile_dot_int8(2, 5, 6);
        tile_dot_int8(3, 5, 7);
    }
    store_sums(sums);
}

/* sums (+)= such integers times the factors of 32 outputs and 32 tokens. */
static void add_part(const int32_t *part, const float *of_w, const float *of_x, bool add, float *sums)
{
    for (size_t tile = 0; tile < 4; tile++) {
        const __m512 x = _mm512_loadu_ps(of_x + tile % 2 * LANES);
        for (size_t r = 0; r < LANES; r++, part += LANES, sums += LANES) {
            __m512 factor = _mm512_mul_ps(x, _mm512_set1_ps(of_w[tile / 2 * LANES + r]));
            __m512 before = add ? _mm512_load_ps(sums) : _mm512_setzero_ps();
            _mm512_store_ps(sums, _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(part)), factor, before));
        }
    }
}

typedef struct panel {
    size_t from, depth, steps;
    const char *w;
    const float *factors;
    int32_t *part;
    float *sums; /* [blocks of 32 outputs] */
} panel;

/* Tokens [row, row + 32) with a panel. */
static void multiply_tokens(const ql_product *p, const panel *w, size_t row, size_t cols)
{
    const char *x = (const char *)p->packed + row / BLOCK * block_bytes(p) + w->from / PART * part_bytes(PART);
    for (size_t at = 0, depth; at < w->depth; at += depth, x += part_bytes(depth)) {
        depth = ql_least(PART, w->depth - at);
        size_t steps = steps_of(depth);
        const float *of_x = (const float *)(const void *)(x + steps * 2 * TILE_BYTES);
        for (size_t o = 0; o < ql_pieces(cols, BLOCK); o++) {
            multiply_part(x, w->w + (o * w->steps + at / QL_BLOCK) * 2 * TILE_BYTES, steps, w->part);
            add_part(w->part, w->factors + at / PART * WIDTH + o * BLOCK, of_x, at > 0, w->sums + o * SUMS);
        }
    }
}

static void tile_of(const ql_product *p, ql_tile t, void *scratch)
{
    size_t most = steps_of(ql_least(p->w->k, TERMS)) * QL_BLOCK;
    float *sums = scratch, *factors = sums + BLOCK * WIDTH;
    int32_t *part = (int32_t *)(void *)(factors + TERMS / PART * WIDTH);
    char *w = (char *)(part + SUMS);
    tiles_begin();
    for (size_t c = 0; c < t.cols; c += WIDTH)
        for (size_t from = 0; from < p->w->k; from += most) {
            size_t cols = ql_least(WIDTH, t.cols - c), depth = ql_least(most, p->w->k - from);
            ql_product into = *p; /* later panels add to y */
            into.add = p->add || from > 0;
            fill_panel(p->w, t.col + c, cols, from, depth, w, factors);
            for (size_t r = 0; r < t.rows; r += BLOCK) {
                panel now = {from, depth, steps_of(depth), w, factors, part, sums};
                multiply_tokens(p, &now, t.row + r, cols);
                write_rows(&into, (ql_tile){t.row + r, ql_least(BLOCK, t.rows - r), t.col + c, cols}, sums);
            }
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
    return !forward(p) && OTHER.reads_narrow(p);
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
