/* Formats, sizes and what is refused; the same bits whatever the threads and the alignment. */
#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant_case.h"

static ql_error err;

START_TEST(names_round_trip)
{
    static const char *const wanted[] = {
        "nf4 g64 dq", "nf4 g64",        "fp4 g64 dq",  "fp4 g64",        "int4 g64 dq", "int4 g64", "int8 g64 dq",
        "int8 g64",   "bnb-nf4 g64 dq", "bnb-nf4 g64", "bnb-fp4 g64 dq", "bnb-fp4 g64", "bf16",     "f16",
        "f32"};
    char text[48];
    for (int i = 0; i < FORMATS; i++)
        ck_assert_str_eq(ql_format_describe(format_of(i, 64), text), wanted[i]);
    ck_assert_str_eq(ql_format_describe(ql_format_default(), text), "nf4 g64 dq");
    ql_format format;
    ck_assert_ok(ql_format_parse(&format, "none", 0, true, &err), &err);
    ck_assert_int_eq(format.code, QL_CODE_F32);
    ck_assert_fails(ql_format_parse(&format, "nf5", 64, true, &err), QL_ERR_ARG, &err, "'nf5'");
    ck_assert_fails(ql_format_parse(&format, "nf5", 64, true, &err), QL_ERR_ARG, &err, "int4");
    ck_assert_fails(ql_format_parse(&format, "nf4", 48, true, &err), QL_ERR_ARG, &err, "48");
    ck_assert_fails(ql_format_parse(&format, "nf4", 512, true, &err), QL_ERR_ARG, &err, "512");
    ck_assert_ok(ql_format_parse(&format, "bnb-nf4", 4096, true, &err), &err);
}
END_TEST

static size_t lines(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* The bytes of every array, each rounded up to a cache line. */
START_TEST(sizes_are_what_is_held)
{
    for (int s = 0; s < SHAPES; s++)
        for (int g = 0; g < GROUPS; g++) {
            size_t n = shapes[s][0], k = shapes[s][1], padded = (k + 63) / 64 * 64;
            ql_format f = format_of(_i, groups[g]);
            bool dense = f.code <= QL_CODE_BF16;
            size_t scales = dense ? 0 : f.flat ? (n * k + f.group - 1) / f.group : n * ((k + f.group - 1) / f.group);
            size_t codes = f.code == QL_CODE_F32    ? n * k * 4
                           : dense                  ? n * k * 2
                           : f.code == QL_CODE_INT8 ? n * padded
                                                    : n * padded / 2;
            size_t scale_bytes = 0, blocks = (scales + 255) / 256;
            if (f.scale == QL_SCALE_F16)
                scale_bytes = lines(scales * 2);
            else if (f.scale == QL_SCALE_DQ)
                scale_bytes = lines(scales) + 2 * lines(blocks * 2);
            else if (f.scale == QL_SCALE_F32)
                scale_bytes = lines(scales * 4);
            else if (f.scale == QL_SCALE_BNB_NESTED)
                scale_bytes = lines(scales) + lines(blocks * 4) + 1024;
            ql_weight_size size;
            ck_assert_ok(ql_format_size(&size, f, n, k, &err), &err);
            ck_assert_uint_eq(size.codes, lines(codes));
            ck_assert_uint_eq(size.scales, scale_bytes);
            matrix a = matrix_make(n, k, QL_F32, 1);
            ql_weight *w = quantize(f, a, NULL);
            ck_assert_uint_eq(ql_weight_bytes(w), size.codes + size.scales);
            ck_assert_uint_ge(malloc_usable_size(w->memory), size.codes + size.scales);
            ck_assert_int_eq(ql_weight_format(w).flat, f.flat && k % f.group != 0);
            ck_assert_uint_eq(ql_weight_rows(w), n);
            ck_assert_uint_eq(ql_weight_cols(w), k);
            ql_weight_destroy(w);
            matrix_free(a);
        }
}
END_TEST

START_TEST(sizes_of_a_layer)
{
    ql_weight_size size;
    ck_assert_ok(ql_format_size(&size, format_of(4, 64), 4096, 4096, &err), &err); /* int4 g64 dq */
    ck_assert_uint_eq(size.codes, 8388608);
    ck_assert_uint_eq(size.scales, 262144 + 2 * 1024 * 2);
}
END_TEST

START_TEST(shapes_and_formats_are_checked)
{
    ql_weight_size size;
    ql_format nf4 = ql_format_default();
    ck_assert_fails(ql_format_size(&size, nf4, 0, 64, &err), QL_ERR_SHAPE, &err, "0 x 64");
    ck_assert_fails(ql_format_size(&size, nf4, 64, 0, &err), QL_ERR_SHAPE, &err, "64 x 0");
    ck_assert_fails(ql_format_size(&size, nf4, SIZE_MAX / 64, 65, &err), QL_ERR_SHAPE, &err, "too large");
    ck_assert_fails(ql_format_size(&size, nf4, 1, SIZE_MAX, &err), QL_ERR_SHAPE, &err, "too large");
    ql_format odd = {QL_CODE_INT8, QL_SCALE_F32, 64, false};
    ck_assert_fails(ql_format_size(&size, odd, 1, 64, &err), QL_ERR_ARG, &err, "does not go with");
    odd = (ql_format){QL_CODE_NF4, QL_SCALE_F16, 64, true};
    ck_assert_fails(ql_format_size(&size, odd, 1, 64, &err), QL_ERR_ARG, &err, "row ends");
    odd = (ql_format){QL_CODE_NF4, QL_SCALE_F16, 0, false};
    ck_assert_fails(ql_format_size(&size, odd, 1, 64, &err), QL_ERR_ARG, &err, "group size 0");
    float x[64] = {0};
    ql_weight *w;
    ck_assert_fails(ql_weight_quantize(&w, nf4, "blk.0", x, QL_I8, 64, 1, 64, NULL, &err), QL_ERR_UNSUPPORTED, &err,
                    "blk.0");
    ck_assert_ptr_null(w);
    ck_assert_fails(ql_weight_quantize(&w, nf4, "blk.0", x, QL_F32, 16, 2, 32, NULL, &err), QL_ERR_SHAPE, &err, "16");
}
END_TEST

START_TEST(padding_decodes_to_zero)
{
    matrix a = matrix_make(5, 70, QL_F32, 3);
    ql_weight *w = quantize(format_of(_i, 64), a, NULL);
    const ql_wview *v = ql_weight_view(w);
    for (size_t row = 0; row < a.n; row++)
        for (size_t col = a.k; col < 128; col++) {
            const uint8_t *line = (const uint8_t *)v->codes + row * v->row_bytes;
            unsigned byte = v->table ? line[32 + col % 32] : line[col];
            if (v->table)
                ck_assert(v->table[col % 64 < 32 ? byte & 15 : byte >> 4] == 0);
            else
                ck_assert_uint_eq(byte, 0);
        }
    ql_weight_destroy(w);
    matrix_free(a);
}
END_TEST

START_TEST(scales_too_large_are_refused)
{
    float x[3 * 256];
    for (int i = 0; i < 3 * 256; i++)
        x[i] = 1;
    x[256 + 130] = -1e6f;
    x[2 * 256 + 5] = 1e7f;
    ql_format nf4 = format_of(1, 64);
    ql_weight *w;
    ck_assert_fails(ql_weight_quantize(&w, nf4, "blk.3.up", x, QL_F32, 256, 3, 256, NULL, &err), QL_ERR_VALUE, &err,
                    "blk.3.up: row 1, group 2");
    ck_assert_ptr_null(w);
    /* Double quantization reaches further, fp32 scales to the end. */
    ck_assert_ok(ql_weight_quantize(&w, format_of(0, 64), "w", x, QL_F32, 256, 3, 256, NULL, &err), &err);
    ck_assert_double_eq_tol(ql_wview_at(&w->view, 2, 5), 1e7, 1e4);
    ql_weight_destroy(w);
    x[2 * 256 + 5] = 1e9f;
    ck_assert_fails(ql_weight_quantize(&w, format_of(0, 64), "w", x, QL_F32, 256, 3, 256, NULL, &err), QL_ERR_VALUE,
                    &err, "row 2, group 0");
    ck_assert_ok(ql_weight_quantize(&w, format_of(9, 64), "w", x, QL_F32, 256, 3, 256, NULL, &err), &err);
    ck_assert(ql_wview_at(&w->view, 2, 5) == 1e9f);
    ql_weight_destroy(w);
    ck_assert_fails(ql_weight_quantize(&w, format_of(13, 64), "w", x, QL_F32, 256, 3, 256, NULL, &err), QL_ERR_VALUE,
                    &err, "row 1, column 130: -1e+06 is too large for F16");
    float edge[2] = {65519.996f, 3.4e38f};
    ck_assert_ok(ql_weight_quantize(&w, format_of(13, 64), "w", edge, QL_F32, 1, 1, 1, NULL, &err), &err);
    ql_weight_destroy(w);
    ck_assert_fails(ql_weight_quantize(&w, format_of(12, 64), "w", edge, QL_F32, 2, 1, 2, NULL, &err), QL_ERR_VALUE,
                    &err, "column 1");
}
END_TEST

/* A caller's threads, which happen to do the last task first. */
static void run_backwards(void *self, size_t count, ql_task *task, void *ctx)
{
    (void)self;
    for (size_t i = count; i-- > 0;)
        task(ctx, i, i % 2);
}

/* The first bad element is named, whichever thread finds one first. */
START_TEST(bad_values_are_named)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const char *const words[] = {"not a number", "an infinity", "an infinity"};
    enum { N = 400, K = 172 };
    for (int t = 0; t < TYPES; t++) {
        void *src = calloc(N * K, ql_dtype_size(types[t]));
        for (int b = 0; b < 3; b++)
            for (int backwards = 0; backwards < 2; backwards++) {
                ql_workers *workers;
                ck_assert_ok(backwards ? ql_workers_adopt(&workers, 2, run_backwards, NULL, &err)
                                       : ql_workers_create(&workers, 3, &err),
                             &err);
                for (size_t row = 211; row < N; row += 3)
                    to_type(src, types[t], row * K + 170, bad[(b + row) % 3]);
                to_type(src, types[t], 211 * K + 170, bad[b]);
                ql_weight *w;
                ck_assert_fails(
                    ql_weight_quantize(&w, format_of(_i, 64), "model.q_proj", src, types[t], K, N, K, workers, &err),
                    QL_ERR_VALUE, &err, "model.q_proj: row 211, column 170: ");
                ck_assert_ptr_nonnull(strstr(err.message, words[b]));
                ck_assert_ptr_null(w);
                ql_workers_destroy(workers);
            }
        free(src);
    }
}
END_TEST

START_TEST(threads_do_not_change_bits)
{
    matrix a = matrix_make(300, 1000, QL_BF16, 11);
    ql_workers *workers;
    ck_assert_ok(ql_workers_create(&workers, 3, &err), &err);
    ql_weight *one = quantize(format_of(_i, 32), a, NULL), *three = quantize(format_of(_i, 32), a, workers);
    ck_assert_uint_eq(one->bytes, three->bytes);
    ck_assert_mem_eq(one->memory, three->memory, one->bytes);
    ck_assert(one->view.nested_offset == three->view.nested_offset);
    ql_weight_destroy(one);
    ql_weight_destroy(three);
    ql_workers_destroy(workers);
    matrix_free(a);
}
END_TEST

START_TEST(sources_need_no_alignment)
{
    matrix a = matrix_make(5, 300, types[_i], 3);
    size_t bytes = a.n * a.ld * ql_dtype_size(a.type);
    char *shifted = malloc(bytes + 1);
    memcpy(shifted + 1, a.src, bytes);
    ql_weight *w, *other = quantize(ql_format_default(), a, NULL);
    ck_assert_ok(ql_weight_quantize(&w, ql_format_default(), "w", shifted + 1, a.type, a.ld, a.n, a.k, NULL, &err),
                 &err);
    ck_assert_mem_eq(w->memory, other->memory, w->bytes);
    ql_weight_destroy(w);
    ql_weight_destroy(other);
    free(shifted);
    matrix_free(a);
}
END_TEST

START_TEST(borrowed_weights_own_nothing)
{
    float x[6] = {1, 2, 3, 4, 5, NAN}, row[3];
    ql_weight *w;
    ck_assert_ok(ql_weight_borrow(&w, x, QL_F32, 2, 3, &err), &err);
    ck_assert_uint_eq(ql_weight_bytes(w), 0);
    ck_assert_ptr_eq(w->view.codes, x);
    ql_weight_dequantize(w, 1, 1, row, 3);
    ck_assert(row[0] == 4 && row[1] == 5 && isnan(row[2]));
    ck_assert_str_ne(ql_weight_kernel(w), "");
    ql_weight_destroy(w);
    ck_assert_fails(ql_weight_borrow(&w, (char *)x + 1, QL_BF16, 2, 2, &err), QL_ERR_ARG, &err, "aligned");
    ck_assert_fails(ql_weight_borrow(&w, x, QL_I32, 2, 2, &err), QL_ERR_UNSUPPORTED, &err, "I32");
    ck_assert_fails(ql_weight_borrow(&w, x, QL_F32, 2, 0, &err), QL_ERR_SHAPE, &err, "2 x 0");
    ql_weight_destroy(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quant");
    TCase *tests = tcase_create("quant");
    tcase_set_timeout(tests, 300);
    tcase_add_test(tests, names_round_trip);
    tcase_add_loop_test(tests, sizes_are_what_is_held, 0, FORMATS);
    tcase_add_test(tests, sizes_of_a_layer);
    tcase_add_test(tests, shapes_and_formats_are_checked);
    tcase_add_loop_test(tests, padding_decodes_to_zero, 0, QUANTIZED);
    tcase_add_test(tests, scales_too_large_are_refused);
    tcase_add_loop_test(tests, bad_values_are_named, 0, FORMATS);
    tcase_add_loop_test(tests, threads_do_not_change_bits, 0, FORMATS);
    tcase_add_loop_test(tests, sources_need_no_alignment, 0, TYPES);
    tcase_add_test(tests, borrowed_weights_own_nothing);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
