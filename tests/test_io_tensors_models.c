/* Real safetensors files: what Python reads from them. */
#include "support.h"

#include <math.h>
#include <stdlib.h>

#include "qlora/io.h"

/* Names, shapes and sums as the safetensors package for Python and torch give them. */
START_TEST(reads_models_as_python_does)
{
    static const struct {
        const char *folder, *type;
        size_t count, elements, rows, columns;
        double sum, embedding_sum;
    } models[] = {
        {"stories260K-hf", "F32", 47, 260032, 512, 64, -14.691442941950697, -752.3677446640068},
        {"stories260K-hf-f16", "F16", 47, 260032, 512, 64, -14.674733579158783, -752.3654275536537},
        {"tiny-random/tiny_llama3", "BF16", 21, 106816, 256, 64, 317.41380144190043, NAN},
        {"tiny-random/tiny_qwen3", "BF16", 25, 106880, 256, 64, 381.41380144190043, NAN},
    };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char name[128];
        snprintf(name, sizeof name, "models/%s", models[i].folder);
        const char *path = test_data(name);
        if (!path)
            continue;
        ql_error err = {0};
        ql_tensors *tensors;
        ck_assert_ok(ql_tensors_open(&tensors, path, &err), &err);
        ck_assert_uint_eq(ql_tensors_count(tensors), models[i].count);
        size_t elements = 0;
        double sum = 0, embedding_sum = NAN;
        const ql_tensor *embedding;
        ck_assert_ok(ql_tensors_need(&embedding, tensors, "model.embed_tokens.weight", 2,
                                     (size_t[]){models[i].rows, models[i].columns}, &err),
                     &err);
        for (size_t j = 0; j < models[i].count; j++) {
            const ql_tensor *tensor = ql_tensors_at(tensors, j);
            size_t n = ql_tensor_elements(tensor);
            float *values = malloc(n * sizeof *values);
            double part = 0;
            ck_assert_str_eq(tensor->dtype_name, models[i].type);
            ck_assert_str_eq(ql_dtype_name(tensor->dtype), models[i].type);
            ck_assert_ok(ql_tensor_read_f32(tensor, 0, n / 2, values, &err), &err);
            ck_assert_ok(ql_tensor_read_f32(tensor, n / 2, n - n / 2, values + n / 2, &err), &err);
            for (size_t k = 0; k < n; k++)
                part += values[k];
            free(values);
            sum += part;
            elements += n;
            if (tensor == embedding)
                embedding_sum = part;
        }
        ck_assert_uint_eq(elements, models[i].elements);
        ck_assert_double_eq_tol(sum, models[i].sum, 1e-9);
        ck_assert(isnan(models[i].embedding_sum) || fabs(embedding_sum - models[i].embedding_sum) < 1e-9);
        ql_tensors_close(tensors);
    }
}
END_TEST

START_TEST(reads_data_that_is_not_aligned)
{
    const char *path = test_data("models/tiny-random/tiny_llama3_tied_mlx4bit");
    if (!path)
        return;
    ql_error err = {0};
    ql_tensors *tensors;
    const ql_tensor *tensor;
    float values[512];
    double sum = 0;
    ck_assert_ok(ql_tensors_open(&tensors, path, &err), &err);
    ck_assert_uint_eq(ql_tensors_count(tensors), 50);
    ck_assert_ok(ql_tensors_need(&tensor, tensors, "model.embed_tokens.biases", 2, (size_t[]){256, 2}, &err), &err);
    ck_assert_uint_ne((uintptr_t)tensor->data % 4, 0);
    ck_assert_ok(ql_tensor_read_f32(tensor, 0, 512, values, &err), &err);
    for (size_t i = 0; i < 512; i++)
        sum += values[i];
    ck_assert(values[0] == -0.03857421875f && values[511] == -0.0439453125f);
    ck_assert_double_eq_tol(sum, 0.9774169921875, 1e-9);
    ck_assert_ok(ql_tensors_need(&tensor, tensors, "model.layers.0.self_attn.v_proj.weight", 0, NULL, &err), &err);
    ck_assert_int_eq(tensor->dtype, QL_U32);
    ck_assert_fails(ql_tensor_read_f32(tensor, 0, 1, values, &err), QL_ERR_UNSUPPORTED, &err, "U32");
    ql_tensors_close(tensors);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("io_tensors_models");
    TCase *tests = tcase_create("tensors");
    tcase_set_timeout(tests, 300);
    tcase_add_test(tests, reads_models_as_python_does);
    tcase_add_test(tests, reads_data_that_is_not_aligned);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
