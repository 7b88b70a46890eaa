#define _GNU_SOURCE
#include "matmul_case.h"

#include <check.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

guarded guarded_new(size_t bytes, bool low)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = (bytes + page - 1) / page * page;
    guarded g = {.bytes = inside + 2 * page};
    g.map = mmap(NULL, g.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(g.map != MAP_FAILED);
    ck_assert_int_eq(mprotect(g.map, page, PROT_NONE), 0);
    ck_assert_int_eq(mprotect(g.map + page + inside, page, PROT_NONE), 0);
    g.data = g.map + page + (low ? 0 : inside - bytes);
    return g;
}

void guarded_free(guarded *g)
{
    if (g->map)
        munmap(g->map, g->bytes);
    *g = (guarded){0};
}

static void *take(weight_case *c, size_t bytes, bool low)
{
    ck_assert_int_lt(c->used, CASE_ARRAYS);
    c->arrays[c->used] = guarded_new(bytes, low);
    return c->arrays[c->used++].data;
}

static float random_value(bool exact, ql_rng *rng)
{
    if (exact)
        return (float)ql_rng_below(rng, 17) - 8.0f;
    return ql_uniform(ql_rng_next(rng)) * 2 - 1;
}

/* A positive scale; with `exact` one of 1/4, 1/2, 1, 2. */
static float random_scale(bool exact, ql_rng *rng)
{
    return exact ? ldexpf(1, (int)ql_rng_below(rng, 4) - 2) : 0.01f + ql_uniform(ql_rng_next(rng));
}

/* Scales that a double-quantized code can take exactly: 0.25 + code / 4. */
static uint8_t exact_code(ql_rng *rng)
{
    return (uint8_t)((1u << ql_rng_below(rng, 4)) - 1);
}

static void make_dq(weight_case *c, uint8_t *codes, size_t count, double *scales, bool exact, bool low, ql_rng *rng)
{
    size_t blocks = (count + QL_DQ_GROUPS - 1) / QL_DQ_GROUPS;
    uint16_t *steps = take(c, blocks * 2, low), *offsets = take(c, blocks * 2, low);
    for (size_t b = 0; b < blocks; b++) {
        steps[b] = ql_f32_to_f16(exact ? 0.25f : 0.01f * random_scale(false, rng));
        offsets[b] = ql_f32_to_f16(exact ? 0.25f : random_scale(false, rng));
    }
    for (size_t g = 0; g < count; g++) {
        codes[g] = exact ? exact_code(rng) : (uint8_t)ql_rng_below(rng, 256);
        scales[g] = codes[g] * (double)ql_f16_to_f32(steps[g / 256]) + (double)ql_f16_to_f32(offsets[g / 256]);
    }
    c->view.steps = steps;
    c->view.offsets = offsets;
}

static void make_nested(weight_case *c, uint8_t *codes, size_t count, double *scales, bool exact, bool low,
                        ql_rng *rng)
{
    ql_wview *w = &c->view;
    w->nested_block = 256;
    w->nested_offset = exact ? 0.25f : 0.7f;
    float *absmax2 = take(c, (count + 255) / 256 * sizeof(float), low);
    for (size_t b = 0; b < (count + 255) / 256; b++)
        absmax2[b] = exact ? 1 : random_scale(false, rng);
    for (int i = 0; i < 256; i++)
        c->map[i] = exact ? (float)i / 4 : ((float)i - 127) / 512;
    for (size_t g = 0; g < count; g++) {
        codes[g] = exact ? exact_code(rng) : (uint8_t)ql_rng_below(rng, 256);
        scales[g] = (double)c->map[codes[g]] * (double)absmax2[g / 256] + (double)w->nested_offset;
    }
    w->absmax2 = absmax2;
    w->map = c->map;
}

/* The scales as stored, and their values; the caller frees those. */
static double *make_scales(weight_case *c, size_t count, bool exact, bool low, ql_rng *rng)
{
    double *scales = malloc(count * sizeof *scales);
    ql_scale kind = c->view.format.scale;
    size_t size = kind == QL_SCALE_F32 ? 4 : kind == QL_SCALE_F16 ? 2 : 1;
    void *stored = take(c, count * size, low);
    c->view.scales = stored;
    if (kind == QL_SCALE_DQ)
        make_dq(c, stored, count, scales, exact, low, rng);
    else if (kind == QL_SCALE_BNB_NESTED)
        make_nested(c, stored, count, scales, exact, low, rng);
    for (size_t g = 0; g < count && size > 1; g++) {
        float scale = random_scale(exact, rng);
        uint16_t half = ql_f32_to_f16(scale);
        if (kind == QL_SCALE_F16)
            ((uint16_t *)stored)[g] = half;
        else
            ((float *)stored)[g] = scale;
        scales[g] = (double)(kind == QL_SCALE_F16 ? ql_f16_to_f32(half) : scale);
    }
    return scales;
}

static void make_dense(weight_case *c, bool exact, bool low, ql_rng *rng)
{
    ql_wview *w = &c->view;
    size_t size = w->format.code == QL_CODE_F32 ? 4 : 2;
    w->row_bytes = w->k * size;
    void *codes = take(c, w->n * w->row_bytes, low);
    w->codes = codes;
    for (size_t i = 0; i < w->n * w->k; i++) {
        float value = random_value(exact, rng);
        uint16_t half = w->format.code == QL_CODE_F16 ? ql_f32_to_f16(value) : ql_f32_to_bf16(value);
        if (size == 4)
            ((float *)codes)[i] = value;
        else
            ((uint16_t *)codes)[i] = half;
        c->values[i] = (double)(size == 4                         ? value
                                : w->format.code == QL_CODE_F16 ? ql_f16_to_f32(half)
                                                                : ql_bf16_to_f32(half));
    }
}

static void make_coded(weight_case *c, bool exact, bool low, ql_rng *rng)
{
    ql_wview *w = &c->view;
    bool bytes = w->format.code == QL_CODE_INT8;
    size_t padded = (w->k + QL_BLOCK - 1) / QL_BLOCK * QL_BLOCK, row_groups = (w->k + w->format.group - 1) / w->format.group;
    size_t count = w->format.flat ? (w->n * w->k + w->format.group - 1) / w->format.group : w->n * row_groups;
    w->groups = w->format.flat ? count : row_groups;
    w->row_bytes = bytes ? padded : padded / 2;
    uint8_t *codes = take(c, w->n * w->row_bytes, low);
    w->codes = codes;
    double *scales = make_scales(c, count, exact, low, rng);
    for (int i = 0; i < 16; i++)
        c->table[i] = exact ? (float)i - 8 : random_value(false, rng);
    w->table = bytes ? NULL : c->table;
    for (size_t row = 0; row < w->n; row++)
        for (size_t col = 0; col < padded; col++) {
            uint8_t *line = codes + row * w->row_bytes;
            uint8_t code = (uint8_t)ql_rng_below(rng, bytes ? 255 : 16);
            if (bytes)
                line[col] = (uint8_t)(code - 127);
            else
                line[col / 64 * 32 + col % 32] |= (uint8_t)(code << (col % 64 < 32 ? 0 : 4));
            size_t g = w->format.flat ? (row * w->k + col) / w->format.group : row * row_groups + col / w->format.group;
            if (col < w->k)
                c->values[row * w->k + col] = (bytes ? (double)code - 127 : (double)c->table[code]) * scales[g];
        }
    free(scales);
}

static void put_half(uint8_t *at, float value)
{
    uint16_t half = ql_f32_to_f16(value);
    memcpy(at, &half, sizeof half);
}

/* A block of 32 with its own scale, and for Q4_1 an offset; fills in the 32 values. */
static void make_small_block(ql_code code, uint8_t *block, double *values, bool exact, ql_rng *rng)
{
    float d = random_scale(exact, rng), m = code == QL_CODE_Q4_1 ? -2 * random_scale(exact, rng) : 0;
    size_t head = code == QL_CODE_Q4_1 ? 4 : 2;
    put_half(block, d);
    if (head == 4)
        put_half(block + 2, m);
    for (size_t i = 0; i < 32; i++) {
        int q = (int)ql_rng_below(rng, code == QL_CODE_Q8_0 ? 256 : 16);
        if (code == QL_CODE_Q8_0)
            block[head + i] = (uint8_t)(q - 128);
        else
            block[head + i % 16] |= (uint8_t)(q << (i < 16 ? 0 : 4));
        q -= code == QL_CODE_Q8_0 ? 128 : code == QL_CODE_Q4_0 ? 8 : 0;
        values[i] = q * (double)ql_f16_to_f32(ql_f32_to_f16(d)) + (double)ql_f16_to_f32(ql_f32_to_f16(m));
    }
}

/* Q4_K and Q5_K: eight runs of 32 with 6-bit scales and minima. With `exact` they keep values to eight bits. */
static void make_k_block(bool five, uint8_t *block, double *values, bool exact, ql_rng *rng)
{
    float d = random_scale(exact, rng), least = exact ? d : random_scale(false, rng);
    uint8_t *high = block + 16, *low = five ? block + 48 : block + 16;
    put_half(block, d);
    put_half(block + 2, least);
    for (size_t run = 0; run < 8; run++) {
        unsigned scale = ql_rng_below(rng, 64), m = ql_rng_below(rng, 64), shift = scale % 2 * 3;
        if (exact)
            scale = scale / 8 << shift, m = m / 8 << shift;
        if (run < 4) {
            block[4 + run] |= (uint8_t)scale;
            block[8 + run] |= (uint8_t)m;
        } else {
            block[8 + run] |= (uint8_t)((scale & 15) | (m & 15) << 4);
            block[run] |= (uint8_t)(scale >> 4 << 6);
            block[4 + run] |= (uint8_t)(m >> 4 << 6);
        }
        for (size_t i = 0; i < 32; i++) {
            unsigned q = ql_rng_below(rng, five ? 32 : 16);
            low[run / 2 * 32 + i] |= (uint8_t)((q & 15) << (run % 2 * 4));
            if (five)
                high[i] |= (uint8_t)(q >> 4 << run);
            values[run * 32 + i] = (double)ql_f16_to_f32(ql_f32_to_f16(d)) * scale * q -
                                   (double)ql_f16_to_f32(ql_f32_to_f16(least)) * m;
        }
    }
}

/* Q6_K: sixteen runs of 16 with signed 8-bit scales. Each half block has its values in four quarters: low nibbles
 * of 64 bytes, then the high ones, and two bits of each quarter in 32 bytes. */
static void make_q6_block(uint8_t *block, double *values, bool exact, ql_rng *rng)
{
    float d = random_scale(exact, rng);
    put_half(block + 208, d);
    for (size_t i = 0; i < 256; i++) {
        if (i % 16 == 0) {
            int scale = (int)ql_rng_below(rng, 256) - 128;
            block[192 + i / 16] = (uint8_t)(exact ? scale / 32 * (scale % 2 ? 32 : 1) : scale);
        }
        unsigned q = ql_rng_below(rng, 64);
        size_t half = i / 128, quarter = i % 128 / 32, at = i % 32;
        block[64 * half + quarter % 2 * 32 + at] |= (uint8_t)((q & 15) << quarter / 2 * 4);
        block[128 + 32 * half + at] |= (uint8_t)(q >> 4 << 2 * quarter);
        values[i] = (double)ql_f16_to_f32(ql_f32_to_f16(d)) * (int8_t)block[192 + i / 16] * ((int)q - 32);
    }
}

/* ggml's blocks; k has been rounded up to whole ones. */
static void make_blocks(weight_case *c, bool exact, bool low, ql_rng *rng)
{
    ql_wview *w = &c->view;
    ql_ggml_block type = ql_ggml_block_of(w->format.code);
    w->row_bytes = w->k / type.elements * type.bytes;
    uint8_t *block = take(c, w->n * w->row_bytes, low);
    w->codes = block;
    for (size_t i = 0; i < w->n * w->k; i += type.elements, block += type.bytes) {
        if (type.elements == 32)
            make_small_block(w->format.code, block, c->values + i, exact, rng);
        else if (w->format.code == QL_CODE_Q6_K)
            make_q6_block(block, c->values + i, exact, rng);
        else
            make_k_block(w->format.code == QL_CODE_Q5_K, block, c->values + i, exact, rng);
    }
}

void weight_case_make(weight_case *c, ql_format format, size_t n, size_t k, bool exact, bool low, ql_rng *rng)
{
    size_t block = ql_ggml_block_of(format.code).elements;
    if (block)
        k = (k + block - 1) / block * block;
    *c = (weight_case){.view = {.format = format, .n = n, .k = k}};
    c->values = malloc(n * k * sizeof *c->values);
    if (block)
        make_blocks(c, exact, low, rng);
    else if (format.scale == QL_SCALE_NONE)
        make_dense(c, exact, low, rng);
    else
        make_coded(c, exact, low, rng);
}

void weight_case_free(weight_case *c)
{
    for (int i = 0; i < c->used; i++)
        guarded_free(&c->arrays[i]);
    free(c->values);
    *c = (weight_case){0};
}

bool case_format(size_t index, ql_format *format)
{
    static const ql_format formats[] = {
        {QL_CODE_F32, QL_SCALE_NONE, 0, false},        {QL_CODE_F16, QL_SCALE_NONE, 0, false},
        {QL_CODE_BF16, QL_SCALE_NONE, 0, false},       {QL_CODE_INT8, QL_SCALE_F16, 64, false},
        {QL_CODE_INT8, QL_SCALE_DQ, 32, false},        {QL_CODE_INT8, QL_SCALE_F16, 128, false},
        {QL_CODE_NF4, QL_SCALE_DQ, 64, false},         {QL_CODE_NF4, QL_SCALE_F16, 32, false},
        {QL_CODE_INT4, QL_SCALE_DQ, 32, false},        {QL_CODE_INT4, QL_SCALE_F16, 128, false},
        {QL_CODE_FP4, QL_SCALE_DQ, 256, false},        {QL_CODE_NF4, QL_SCALE_F32, 64, true},
        {QL_CODE_NF4, QL_SCALE_BNB_NESTED, 64, true},  {QL_CODE_FP4, QL_SCALE_F32, 4096, true},
        {QL_CODE_NF4, QL_SCALE_BNB_NESTED, 64, false}, {QL_CODE_NF4, QL_SCALE_F32, 128, false},
        {.code = QL_CODE_Q8_0},                        {.code = QL_CODE_Q4_0},
        {.code = QL_CODE_Q4_1},                        {.code = QL_CODE_Q4_K},
        {.code = QL_CODE_Q5_K},                        {.code = QL_CODE_Q6_K},
    };
    if (index >= sizeof formats / sizeof *formats)
        return false;
    *format = formats[index];
    return true;
}
