/* bitsandbytes' 4-bit layouts: bit for bit with vectors that bitsandbytes wrote. */
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "qlora/io.h"
#include "qlora/quant.h"
#include "quant/scales.h"
#include "support.h"

enum { ELEMENTS = 17667 };

static ql_tensors *vectors;
static ql_error err;

static void open_vectors(void)
{
    const char *path = test_data("quant-oracles/bitsandbytes_4bit_vectors.safetensors");
    if (path)
        ck_assert_ok(ql_tensors_open(&vectors, path, &err), &err);
}

static void close_vectors(void)
{
    ql_tensors_close(vectors);
}

/* A copy of the bytes of tensor "PREFIX.NAME", which has `count` elements; aligned, to be freed. */
static void *copy_of(const char *prefix, const char *name, size_t count)
{
    char full[64];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const ql_tensor *tensor = ql_tensors_find(vectors, full);
    ck_assert_msg(tensor != NULL && ql_tensor_elements(tensor) == count, "%s", full);
    void *copy = malloc(tensor->bytes);
    memcpy(copy, tensor->data, tensor->bytes);
    return copy;
}

typedef struct layout {
    const char *prefix, *format;
    uint32_t block;
} layout;

static const layout layouts[] = {
    {"nf4.bs64.", "bnb-nf4", 64},
    {"nf4.bs128.", "bnb-nf4", 128},
    {"fp4.bs64.", "bnb-fp4", 64},
    {"fp4.bs128.", "bnb-fp4", 128},
};

/* The shapes that the 17667 = 3 * 3 * 13 * 151 values can take; blocks cross the ends of most rows. */
static const size_t shapes[][2] = {{1, ELEMENTS}, {39, 453}, {117, 151}, {1359, 13}, {ELEMENTS, 1}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void check_values(const ql_weight *w, size_t n, size_t k, const float *wanted)
{
    float *got = malloc(n * k * sizeof *got);
    ql_weight_dequantize(w, 0, n, got, k);
    for (size_t i = 0; i < n * k; i++)
        if (got[i] != wanted[i])
            ck_abort_msg("element %zu: %.9g, wanted %.9g", i, got[i], wanted[i]);
    free(got);
}

START_TEST(quantizes_as_bitsandbytes)
{
    if (!vectors)
        return;
    const layout *l = &layouts[_i / SHAPES];
    size_t n = shapes[_i % SHAPES][0], k = shapes[_i % SHAPES][1], blocks = (ELEMENTS + l->block - 1) / l->block;
    float *input = copy_of("", "input", ELEMENTS), *values = copy_of(l->prefix, "dequant", ELEMENTS);
    float *absmax = copy_of(l->prefix, "absmax", blocks);
    uint8_t *packed = copy_of(l->prefix, "packed", (ELEMENTS + 1) / 2), mine[(ELEMENTS + 1) / 2];
    ql_format format;
    ql_weight *w, *imported;
    ql_bnb_source out;
    ck_assert_ok(ql_format_parse(&format, l->format, l->block, false, &err), &err);
    ck_assert_ok(ql_weight_quantize(&w, format, "w", input, QL_F32, k, n, k, NULL, &err), &err);
    ck_assert_ok(ql_weight_to_bnb(w, &out, mine, &err), &err);
    ck_assert_uint_eq(out.block, l->block);
    ck_assert_uint_eq(out.nested_block, 0);
    ck_assert_mem_eq(mine, packed, sizeof mine);
    ck_assert_mem_eq(out.absmax, absmax, blocks * sizeof *absmax);
    check_values(w, n, k, values);

    out.packed = packed, out.absmax = absmax;
    ck_assert_ok(ql_weight_from_bnb(&imported, "w", &out, n, k, &err), &err);
    check_values(imported, n, k, values);
    ck_assert_uint_eq(ql_weight_bytes(imported), ql_weight_bytes(w));
    ql_weight_destroy(w);
    ql_weight_destroy(imported);
    free(input), free(values), free(absmax), free(packed);
}
END_TEST

START_TEST(quantizes_scales_as_bitsandbytes)
{
    if (!vectors)
        return;
    const layout *l = &layouts[_i / SHAPES];
    size_t n = shapes[_i % SHAPES][0], k = shapes[_i % SHAPES][1], blocks = (ELEMENTS + l->block - 1) / l->block;
    float *input = copy_of("", "input", ELEMENTS), *values = copy_of(l->prefix, "dq.dequant", ELEMENTS);
    float *absmax2 = copy_of(l->prefix, "dq.absmax2", (blocks + 255) / 256);
    float *map = copy_of("", "dynamic_map_signed_8bit", 256), *offset = copy_of(l->prefix, "dq.offset", 1);
    uint8_t *packed = copy_of(l->prefix, "packed", (ELEMENTS + 1) / 2), mine[(ELEMENTS + 1) / 2];
    uint8_t *absmax_codes = copy_of(l->prefix, "dq.absmax_u8", blocks);
    ql_format format;
    ql_weight *w, *imported;
    ql_bnb_source out;
    ck_assert_ok(ql_format_parse(&format, l->format, l->block, true, &err), &err);
    ck_assert_ok(ql_weight_quantize(&w, format, "w", input, QL_F32, k, n, k, NULL, &err), &err);
    ck_assert_ok(ql_weight_to_bnb(w, &out, mine, &err), &err);
    ck_assert_uint_eq(out.nested_block, 256);
    ck_assert_mem_eq(mine, packed, sizeof mine);
    ck_assert_mem_eq(out.absmax_codes, absmax_codes, blocks);
    ck_assert_mem_eq(out.absmax2, absmax2, (blocks + 255) / 256 * sizeof *absmax2);
    ck_assert_mem_eq(out.map, map, 256 * sizeof *map);
    ck_assert_mem_eq(&out.offset, offset, sizeof *offset);
    check_values(w, n, k, values);

    out = (ql_bnb_source){QL_CODE_NF4, l->block, 256, packed, NULL, absmax_codes, absmax2, map, *offset};
    ck_assert_ok(ql_weight_from_bnb(&imported, "w", &out, n, k, &err), &err);
    check_values(imported, n, k, values);
    ck_assert_uint_eq(ql_weight_bytes(imported), ql_weight_bytes(w));
    ql_weight_destroy(w);
    ql_weight_destroy(imported);
    free(input), free(values), free(absmax2), free(map), free(offset), free(packed), free(absmax_codes);
}
END_TEST

START_TEST(tables_are_bitsandbytes)
{
    if (!vectors)
        return;
    float *nf4 = copy_of("", "nf4_code", 16), *fp4 = copy_of("", "fp4_code", 16);
    ck_assert_mem_eq(ql_codebook_of(QL_CODE_NF4)->table, nf4, 16 * sizeof *nf4);
    ck_assert_mem_eq(ql_codebook_of(QL_CODE_FP4)->table, fp4, 16 * sizeof *fp4);
    free(nf4), free(fp4);
}
END_TEST

/* What holds without the vectors. */
START_TEST(dynamic_map_is_complete)
{
    float map[256];
    ql_bnb_dynamic_map(map);
    ck_assert(map[127] == 0 && map[255] == 1);
    for (int i = 1; i < 256; i++)
        ck_assert(map[i] > map[i - 1]);
    for (int i = 1; i < 128; i++)
        ck_assert(map[127 + i] == -map[127 - i]);
    for (int i = 0, at = 128; i < 7; i++)
        for (int j = 0; j < 1 << i; j++, at++) {
            double wanted = pow(10, i - 6) * (0.1 + 0.9 * (j + 0.5) / (1 << i));
            ck_assert_double_le(fabs(map[at] - wanted), 4e-7 * wanted);
        }
}
END_TEST

START_TEST(imports_refuse_what_they_cannot_mean)
{
    uint8_t packed[32] = {0}, codes[1] = {200};
    float absmax[1] = {1}, map[256] = {0};
    ql_weight *w;
    ql_bnb_source src = {.code = QL_CODE_NF4, .block = 64, .packed = packed, .absmax = absmax};
    ck_assert_ok(ql_weight_from_bnb(&w, "w", &src, 1, 64, &err), &err);
    ql_weight_destroy(w);
    absmax[0] = NAN;
    ck_assert_fails(ql_weight_from_bnb(&w, "layer.q", &src, 1, 64, &err), QL_ERR_VALUE, &err, "layer.q");
    ck_assert_ptr_null(w);
    src.absmax = NULL;
    ck_assert_fails(ql_weight_from_bnb(&w, "w", &src, 1, 64, &err), QL_ERR_ARG, &err, "missing");
    src = (ql_bnb_source){QL_CODE_FP4, 64, 256, packed, NULL, codes, absmax, map, 0};
    ck_assert_fails(ql_weight_from_bnb(&w, "w", &src, 1, 64, &err), QL_ERR_VALUE, &err, "block 0");
    src.code = QL_CODE_INT4;
    ck_assert_fails(ql_weight_from_bnb(&w, "w", &src, 1, 64, &err), QL_ERR_ARG, &err, "nf4 or fp4");
    src.code = QL_CODE_NF4, src.block = 48;
    ck_assert_fails(ql_weight_from_bnb(&w, "w", &src, 1, 64, &err), QL_ERR_ARG, &err, "48");
    src.block = 64;
    ck_assert_fails(ql_weight_from_bnb(&w, "w", &src, 0, 64, &err), QL_ERR_SHAPE, &err, "0 x 64");
    ck_assert_fails(ql_weight_from_bnb(&w, "w", &src, SIZE_MAX / 2, 64, &err), QL_ERR_SHAPE, &err, "too large");
}
END_TEST

START_TEST(exports_refuse_other_formats)
{
    float x[64] = {1};
    uint8_t packed[64];
    ql_weight *w;
    ql_bnb_source out;
    ck_assert_ok(ql_weight_quantize(&w, ql_format_default(), "w", x, QL_F32, 64, 1, 64, NULL, &err), &err);
    ck_assert_fails(ql_weight_to_bnb(w, &out, packed, &err), QL_ERR_UNSUPPORTED, &err, "nf4 g64 dq");
    ql_weight_destroy(w);
    ql_format rows = {QL_CODE_NF4, QL_SCALE_F32, 64, false};
    ck_assert_ok(ql_weight_quantize(&w, rows, "w", x, QL_F32, 32, 2, 32, NULL, &err), &err);
    ck_assert_fails(ql_weight_to_bnb(w, &out, packed, &err), QL_ERR_UNSUPPORTED, &err, "rows of 32");
    ql_weight_destroy(w);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quant_bnb");
    TCase *oracle = tcase_create("vectors");
    tcase_add_unchecked_fixture(oracle, open_vectors, close_vectors);
    tcase_set_timeout(oracle, 60);
    tcase_add_loop_test(oracle, quantizes_as_bitsandbytes, 0, 4 * SHAPES);
    tcase_add_loop_test(oracle, quantizes_scales_as_bitsandbytes, 0, 2 * SHAPES); /* the NF4 ones */
    tcase_add_test(oracle, tables_are_bitsandbytes);
    suite_add_tcase(suite, oracle);
    TCase *rules = tcase_create("rules");
    tcase_add_test(rules, dynamic_map_is_complete);
    tcase_add_test(rules, imports_refuse_what_they_cannot_mean);
    tcase_add_test(rules, exports_refuse_other_formats);
    suite_add_tcase(suite, rules);
    return test_run(suite);
}
