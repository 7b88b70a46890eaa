/* The description of LoRA layers beside real ones, and the set of adapters. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "qlora/lora.h"
#include "lora_support.h"
#include "support.h"

/* ---- the descriptor ---- */

START_TEST(descriptor_of_4096)
{
    ql_lora_desc d = ql_lora_desc_int4(4096, 4096, 16, 32);
    ck_assert_int_eq(ql_lora_desc_check(&d, NULL), QL_OK);
    ck_assert_uint_eq(d.quant_bits, 4);
    ck_assert_uint_eq(d.group_size, 64);
    ck_assert(d.double_quant);
    ck_assert_double_eq(ql_lora_scaling(&d), 2);
    /* codes, one byte a group, two fp16 for 256 groups */
    ck_assert_uint_eq(ql_lora_quantized_base_bytes(&d), 8388608 + 262144 + 1024 * 4);
    ck_assert_uint_eq(ql_lora_adapter_bytes(&d), 2 * 16 * (4096 + 4096));
    ck_assert_double_eq_tol(ql_lora_vram_savings_ratio(&d), 1 - 8916992.0 / 33554432.0, 1e-15);
    d.double_quant = false;
    ck_assert_uint_eq(ql_lora_quantized_base_bytes(&d), 8388608 + 2 * 262144);
    ck_assert_double_gt(ql_lora_vram_savings_ratio(&d), 0.5);
    d = ql_lora_desc_int8(4096, 4096, 16, 32);
    ck_assert_uint_eq(d.quant_bits, 8);
    ck_assert_uint_eq(ql_lora_quantized_base_bytes(&d), 16777216 + 262144 + 1024 * 4);
    d = ql_lora_desc_nf4(4096, 4096, 16, 32);
    d.use_rslora = true;
    ck_assert_double_eq(ql_lora_scaling(&d), 8);
}
END_TEST

static void expect_bad(ql_lora_desc d, ql_status status, const char *word)
{
    ql_error err = {0};
    ck_assert_int_eq(ql_lora_desc_check(&d, &err), status);
    ck_assert_msg(strstr(err.message, word) != NULL, "\"%s\" lacks \"%s\"", err.message, word);
    ck_assert_uint_eq(ql_lora_quantized_base_bytes(&d), 0);
    ck_assert_uint_eq(ql_lora_adapter_bytes(&d), 0);
    ck_assert_double_eq(ql_lora_vram_savings_ratio(&d), 0);
}

START_TEST(descriptor_refuses)
{
    const ql_lora_desc good = ql_lora_desc_int4(64, 32, 4, 8);
    ql_lora_desc d = good;
    expect_bad((d = good, d.in_features = 0, d), QL_ERR_SHAPE, "in_features 0");
    expect_bad((d = good, d.rank = 0, d), QL_ERR_SHAPE, "rank 0");
    expect_bad((d = good, d.in_features = SIZE_MAX / 2, d), QL_ERR_SHAPE, "larger than memory");
    expect_bad((d = good, d.rank = SIZE_MAX / 64, d), QL_ERR_SHAPE, "larger than memory");
    expect_bad((d = good, d.alpha = 0, d), QL_ERR_ARG, "alpha is 0");
    expect_bad((d = good, d.alpha = NAN, d), QL_ERR_ARG, "alpha");
    expect_bad((d = good, d.dropout = 1, d), QL_ERR_ARG, "dropout is 1");
    expect_bad((d = good, d.quant_bits = 8, d), QL_ERR_ARG, "quant_bits is 8");
    expect_bad((d = good, d.format = QL_CODE_BF16, d), QL_ERR_ARG, "INT4, NF4, FP4 or INT8");
    expect_bad((d = good, d.group_size = 48, d), QL_ERR_ARG, "group_size is 48");
}
END_TEST

START_TEST(accounting_equals_real_layers)
{
    static const ql_code codes[] = {QL_CODE_INT4, QL_CODE_NF4, QL_CODE_FP4, QL_CODE_INT8};
    static const size_t shapes[][3] = {{64, 32, 4}, {172, 64, 8}, {1, 1, 1}, {65, 300, 3}, {1000, 129, 16}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t c = 0; c < 4; c++)
            for (unsigned variant = 0; variant < 8; variant++) {
                ql_lora_desc d = ql_lora_desc_int4(shapes[s][0], shapes[s][1], shapes[s][2], 8);
                d.format = codes[c];
                d.quant_bits = codes[c] == QL_CODE_INT8 ? 8 : 4;
                d.group_size = 32u << variant / 2;
                d.double_quant = variant % 2;
                ql_weight *w = quantized(ql_lora_format(&d), d.out_features, d.in_features);
                ql_adapters *set;
                ql_adapter_shape shape = {d.in_features, d.out_features, d.rank, ql_lora_scaling(&d), false};
                ck_assert_int_eq(ql_adapters_create(&set, &shape, 1, false, NULL), QL_OK);
                ck_assert_uint_eq(ql_lora_quantized_base_bytes(&d), ql_weight_bytes(w));
                ck_assert_uint_eq(ql_lora_adapter_bytes(&d), ql_adapters_bytes(set));
                ql_adapters_destroy(set);
                ql_weight_destroy(w);
            }
}
END_TEST

/* ---- the set of adapters ---- */

START_TEST(set_is_flat)
{
    const ql_adapter_shape shapes[] = {{10, 6, 2, 0.5, false}, {7, 3, 1, 2, false}, {64, 64, 4, 1, false}};
    ql_adapters *set;
    ck_assert_int_eq(ql_adapters_create(&set, shapes, 3, true, NULL), QL_OK);
    ck_assert_uint_eq(set->count, 32 + 10 + 512);
    ck_assert_uint_eq(ql_adapters_bytes(set), set->count * 10);
    ck_assert_uint_eq(set->layer[1].offset, 32);
    ck_assert_ptr_eq(set->layer[1].b, set->value + 32 + 7);
    ck_assert_ptr_eq(set->layer[1].grad_b, set->grad + 32 + 7);
    ck_assert_ptr_eq(set->layer[2].master_a, set->master + 42);
    ck_assert_float_eq(set->layer[1].scaling, 2);
    const float values[2] = {0.1f, -3};
    ql_adapters_set(set, 32, 2, values);
    ck_assert_float_eq(set->layer[1].master_a[0], 0.1f);
    ck_assert_uint_eq(set->layer[1].a[0], ql_f32_to_f16(0.1f));
    set->grad[553] = 1;
    ql_adapters_zero_grad(set, NULL);
    ck_assert_float_eq(set->grad[553], 0);
    ql_adapters_destroy(set);
    ql_error err = {0};
    ck_assert_int_eq(ql_adapters_create(&set, &(ql_adapter_shape){4, 0, 2, 1, false}, 1, true, &err), QL_ERR_SHAPE);
    ck_assert_ptr_null(set);
    ck_assert_int_eq(ql_adapters_create(&set, &(ql_adapter_shape){SIZE_MAX / 4, 9, 8, 1, false}, 1, true, &err), QL_ERR_SHAPE);
    ck_assert_ptr_nonnull(strstr(err.message, "adapter 0"));
    ck_assert_int_eq(ql_adapters_create(&set, &(ql_adapter_shape){4, 4, 2, NAN, false}, 1, true, &err), QL_ERR_VALUE);
    ql_adapters_destroy(NULL);
}
END_TEST

START_TEST(init_is_pefts)
{
    const ql_adapter_shape shapes[] = {{900, 6, 16, 1, false}, {900, 6, 16, 1, false}};
    ql_adapters *set, *other;
    ck_assert_int_eq(ql_adapters_create(&set, shapes, 2, true, NULL), QL_OK);
    ck_assert_int_eq(ql_adapters_create(&other, shapes, 1, false, NULL), QL_OK);
    ql_adapters_init(set, 42);
    ql_adapters_init(other, 42);
    ck_assert_mem_eq(set->layer[0].a, other->layer[0].a, 900 * 16 * 2);
    ck_assert_mem_ne(set->layer[0].a, set->layer[1].a, 900 * 16 * 2);
    double mean = 0, square = 0, top = 0;
    for (size_t i = 0; i < 900 * 16; i++) {
        double a = set->layer[1].master_a[i] * 30.0; /* sqrt(900) */
        mean += a / (900 * 16), square += a * a / (900 * 16), top = fmax(top, fabs(a));
        ck_assert_uint_eq(set->layer[1].a[i], ql_f32_to_f16(set->layer[1].master_a[i]));
    }
    ck_assert_double_le(top, 1.000001);
    ck_assert_double_ge(top, 0.999);
    ck_assert_double_eq_tol(mean, 0, 0.02);
    ck_assert_double_eq_tol(square, 1 / 3.0, 0.01);
    for (size_t i = 0; i < 6 * 16; i++)
        ck_assert_float_eq(set->layer[1].master_b[i], 0);
    ql_adapters_init(other, 43);
    ck_assert_mem_ne(set->layer[0].a, other->layer[0].a, 900 * 16 * 2);
    ql_adapters_destroy(set);
    ql_adapters_destroy(other);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("lora_desc");
    TCase *tc = tcase_create("lora_desc");
    suite_add_tcase(suite, tc);
    tcase_add_test(tc, descriptor_of_4096);
    tcase_add_test(tc, descriptor_refuses);
    tcase_add_test(tc, accounting_equals_real_layers);
    tcase_add_test(tc, set_is_flat);
    tcase_add_test(tc, init_is_pefts);
    return test_run(suite);
}
