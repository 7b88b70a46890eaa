/* ggml's blocks: bit for bit with vectors that ggml's own C code wrote. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kern/ggml.h"
#include "qlora/io.h"
#include "quant/weight.h"
#include "support.h"

static const ql_code codes[] = {QL_CODE_Q8_0, QL_CODE_Q4_0, QL_CODE_Q4_1, QL_CODE_Q4_K, QL_CODE_Q5_K, QL_CODE_Q6_K};
enum { CODES = sizeof codes / sizeof *codes, ENCODED = 3, VALUES = 16384, ROW = 1024 };

static ql_tensors *vectors;
static ql_error err;

static void open_vectors(void)
{
    const char *path = test_data("quant-oracles/ggml_quant_vectors.safetensors");
    if (path)
        ck_assert_ok(ql_tensors_open(&vectors, path, &err), &err);
}

static void close_vectors(void)
{
    ql_tensors_close(vectors);
}

static const ql_tensor *vector(ql_code code, const char *what)
{
    char name[80], text[48];
    snprintf(name, sizeof name, "%s.%s", ql_format_describe((ql_format){.code = code}, text), what);
    const ql_tensor *tensor = ql_tensors_find(vectors, name);
    ck_assert_msg(tensor != NULL, "%s", name);
    return tensor;
}

static void check_bits(const float *got, const float *wanted, size_t count, ql_code code, const char *how)
{
    for (size_t i = 0; i < count; i++)
        ck_assert_msg(memcmp(&got[i], &wanted[i], 4) == 0, "code %d, %s: value %zu is %a, ggml has %a", (int)code, how,
                      i, (double)got[i], (double)wanted[i]);
}

/* Whole rows, rows from the middle, single elements, and pieces that start and end inside of blocks. */
START_TEST(values_are_those_of_ggml)
{
    ql_code code = codes[_i];
    if (!vectors)
        return;
    const ql_tensor *blocks = vector(code, "blocks"), *wanted = vector(code, "dequant");
    const size_t rows = VALUES / ROW;
    float *values = malloc(VALUES * sizeof *values), *got = malloc(VALUES * sizeof *got);
    ck_assert_ok(ql_tensor_read_f32(wanted, 0, VALUES, values, &err), &err);
    for (int copy = 0; copy < 2; copy++) {
        ql_weight *w;
        ck_assert_ok(ql_weight_from_blocks(&w, code, "w", blocks->data, blocks->bytes, rows, ROW, copy, &err), &err);
        ck_assert_uint_eq(ql_weight_bytes(w) != 0, copy);
        ql_weight_dequantize(w, 0, rows, got, ROW);
        check_bits(got, values, VALUES, code, "rows");
        ql_weight_dequantize(w, 3, 1, got, ROW);
        check_bits(got, values + 3 * ROW, ROW, code, "a row");
        for (size_t i = 0; i < VALUES; i++)
            got[i] = ql_wview_at(&w->view, i / ROW, i % ROW);
        check_bits(got, values, VALUES, code, "elements");
        for (size_t from = 0; from < 300; from += 7) {
            ql_ggml_values(code, (const char *)w->view.codes + w->view.row_bytes, from, ROW - 2 * from, got);
            check_bits(got, values + ROW + from, ROW - 2 * from, code, "a piece");
        }
        ql_weight_destroy(w);
    }
    free(values);
    free(got);
}
END_TEST

START_TEST(codes_are_those_of_ggml)
{
    ql_code code = codes[_i];
    if (!vectors)
        return;
    const ql_tensor *wanted = vector(code, "blocks"), *input = ql_tensors_find(vectors, "input");
    float *x = malloc(VALUES * sizeof *x);
    uint8_t *got = malloc(wanted->bytes);
    ck_assert_ok(ql_tensor_read_f32(input, 0, VALUES, x, &err), &err);
    ck_assert_ok(ql_blocks_encode(code, "w", x, VALUES, got, &err), &err);
    size_t block = ql_ggml_block_of(code).bytes;
    for (size_t i = 0; i < wanted->bytes; i++)
        ck_assert_msg(got[i] == ((const uint8_t *)wanted->data)[i], "code %d: byte %zu of block %zu", (int)code,
                      i % block, i / block);
    x[77] = NAN;
    ck_assert_fails(ql_blocks_encode(code, "w", x, VALUES, got, &err), QL_ERR_VALUE, &err, "77");
    free(x);
    free(got);
}
END_TEST

START_TEST(what_is_refused)
{
    static const uint8_t bytes[1024];
    float x[64] = {0};
    ql_weight *w;
    ql_format format = {.code = QL_CODE_Q4_K};
    ck_assert_fails(ql_weight_from_blocks(&w, QL_CODE_Q4_0, "w", bytes, 18, 1, 33, false, &err), QL_ERR_SHAPE, &err,
                    "33");
    ck_assert_fails(ql_weight_from_blocks(&w, QL_CODE_Q6_K, "w", bytes, 210, 1, 128, false, &err), QL_ERR_SHAPE, &err,
                    "q6_K");
    ck_assert_fails(ql_weight_from_blocks(&w, QL_CODE_Q8_0, "w", bytes, 35, 1, 32, false, &err), QL_ERR_SHAPE, &err,
                    "34");
    ck_assert_fails(ql_weight_from_blocks(&w, QL_CODE_Q8_0, "w", bytes, 0, 0, 32, false, &err), QL_ERR_SHAPE, &err,
                    "empty");
    ck_assert_fails(ql_weight_from_blocks(&w, QL_CODE_NF4, "w", bytes, 32, 1, 64, false, &err), QL_ERR_ARG, &err, "w");
    ck_assert_fails(ql_weight_quantize(&w, format, "w", x, QL_F32, 64, 1, 64, NULL, &err), QL_ERR_UNSUPPORTED, &err,
                    "q4_K");
    ck_assert_fails(ql_blocks_encode(QL_CODE_Q4_K, "w", x, 64, x, &err), QL_ERR_UNSUPPORTED, &err, "q4_K");
    ck_assert_fails(ql_blocks_encode(QL_CODE_Q4_0, "w", x, 40, x, &err), QL_ERR_SHAPE, &err, "40");
    ql_code code;
    ck_assert(ql_code_of_blocks(&code, "Q5_K") && code == QL_CODE_Q5_K && !ql_code_of_blocks(&code, "Q5_0"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quant_ggml");
    TCase *tcase = tcase_create("ggml");
    tcase_add_checked_fixture(tcase, open_vectors, close_vectors);
    tcase_add_loop_test(tcase, values_are_those_of_ggml, 0, CODES);
    tcase_add_loop_test(tcase, codes_are_those_of_ggml, 0, ENCODED);
    tcase_add_test(tcase, what_is_refused);
    suite_add_tcase(suite, tcase);
    return test_run(suite);
}
