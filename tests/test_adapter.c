/* PEFT adapter folders read: those of the reference data, what settings mean, and everything that must be refused. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "adapter_case.h"
#include "base/half.h"
#include "qlora/io.h"

/* ---- folders written here ---- */

static void write_config(const char *dir, const char *extra)
{
    FILE *f = fopen(join(dir, "adapter_config.json"), "w");
    ck_assert_ptr_nonnull(f);
    fprintf(f, "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 6%s}", extra);
    fclose(f);
}

/* Tensors of `small`, rank 2 and (v) rank_v; names and shapes as PEFT has them. */
static void write_weights(const char *dir, size_t rank_v, const float *values, size_t tensors)
{
    static const char prefix[] = "base_model.model.model.layers.0.self_attn.";
    static const char *const last[5] = {"q_proj.lora_A.weight", "q_proj.lora_B.weight", "v_proj.lora_A.weight",
                                        "v_proj.lora_B.weight", "x_proj.lora_A.weight"};
    const size_t shape[5][2] = {{2, 6}, {4, 2}, {rank_v, 6}, {3, rank_v}, {1, 1}};
    char names[5][128];
    ql_tensor t[5];
    for (size_t i = 0; i < tensors; i++) {
        snprintf(names[i], sizeof names[i], "%s%s", prefix, last[i]);
        t[i] = (ql_tensor){.name = names[i], .dtype = QL_F32, .ndim = 2, .shape = {shape[i][0], shape[i][1]},
                           .data = values, .bytes = shape[i][0] * shape[i][1] * sizeof(float)};
    }
    ql_error err = {0};
    ck_assert_ok(ql_safetensors_write(join(dir, "adapter_model.safetensors"), t, tensors, NULL, 0, &err), &err);
}

static const float counting[64] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20};

/* ---- the reference adapters ---- */

START_TEST(reads_reference_adapters)
{
    const reference_case *c = &references[_i];
    const char *dir = test_data(c->folder);
    if (!dir)
        return;
    ql_error err = {0};
    ql_adapter_file *file;
    ql_adapter_shape shapes[MODULES];
    ck_assert_ok(ql_adapter_file_open(&file, dir, &err), &err);
    ql_adapter_config config = ql_adapter_file_config(file);
    ck_assert_uint_eq(config.rank, c->rank);
    ck_assert_double_eq(config.alpha, c->alpha);
    ck_assert_str_eq(config.base_model, "stories260K-hf");
    ck_assert_ok(ql_adapter_file_plan(file, stories(), MODULES, shapes, &err), &err);
    for (size_t i = 0; i < MODULES; i++) {
        ck_assert_uint_eq(shapes[i].rank, c->parts >> i % PARTS & 1 ? c->rank : 0);
        if (shapes[i].rank)
            ck_assert_double_eq(shapes[i].scaling, 2);
    }
    ql_adapter_file_close(file);

    ql_adapters *set = load(dir, stories(), MODULES, true);
    ql_tensors *tensors;
    ck_assert_ok(ql_tensors_open(&tensors, join(dir, "adapter_model.safetensors"), &err), &err);
    size_t layer = 0;
    for (size_t i = 0; i < MODULES; i++) {
        if (!shapes[i].rank)
            continue;
        const ql_adapter *a = &set->layer[layer++];
        char name[128];
        snprintf(name, sizeof name, "base_model.model.%s.lora_B.weight", stories()[i].name);
        const ql_tensor *t = ql_tensors_find(tensors, name);
        ck_assert_ptr_nonnull(t);
        ck_assert_uint_eq(t->bytes, a->n * a->r * sizeof(float));
        ck_assert_mem_eq(a->master_b, t->data, t->bytes);
        ck_assert_uint_eq(a->b[0], ql_f32_to_f16(a->master_b[0]));
    }
    ck_assert_uint_eq(layer, set->layers);
    ql_tensors_close(tensors);
    ql_adapters_destroy(set);
}
END_TEST

START_TEST(refuses_gpt2)
{
    const char *dir = test_data("peft/gpt2-lora-r8");
    ql_error err = {0};
    ql_adapter_file *file;
    if (dir)
        ck_assert_fails(ql_adapter_file_open(&file, dir, &err), QL_ERR_UNSUPPORTED, &err, "fan_in_fan_out");
}
END_TEST

/* ---- target_modules, patterns ---- */

typedef struct match_case {
    const char *config;
    size_t rank_v; /* of the tensors in the file */
    double scaling_q, scaling_v;
} match_case;

static const match_case match_cases[] = {
    {", \"target_modules\": [\"q_proj\", \"v_proj\"]", 2, 3, 3},
    {", \"target_modules\": [\"self_attn.q_proj\", \"model.layers.0.self_attn.v_proj\"]", 2, 3, 3},
    {", \"target_modules\": \"all-linear\"", 2, 3, 3},
    {", \"target_modules\": \".*\\\\.(q|v)_proj\"", 2, 3, 3},
    {", \"target_modules\": \"model\\\\.layers\\\\.\\\\d+\\\\.self_attn\\\\.(?!k)._proj\"", 2, 3, 3},
    {", \"target_modules\": [\"q_proj\", \"v_proj\"], \"use_rslora\": true", 2, 4.242640687119285, 4.242640687119285},
    {", \"target_modules\": [\"q_proj\", \"v_proj\"], \"rank_pattern\": {\"v_proj\": 3}", 3, 3, 2},
    {", \"target_modules\": [\"q_proj\", \"v_proj\"], \"alpha_pattern\": {\"layers.0.*q_proj\": 1}", 2, 0.5, 3},
    {", \"target_modules\": [\"q_proj\", \"v_proj\"], \"rank_pattern\": {\"proj\": 9, \"layers.0.self_attn.v_proj\": 1}",
     1, 3, 6},
    {", \"target_modules\": [\"q_proj\", \"v_proj\"], \"bias\": \"none\", \"modules_to_save\": null, "
     "\"layers_to_transform\": null, \"use_dora\": false, \"loftq_config\": {}, \"init_lora_weights\": \"gaussian\"",
     2, 3, 3},
};

START_TEST(matches_modules_as_peft_does)
{
    const match_case *c = &match_cases[_i];
    char *dir = test_folder();
    ql_error err = {0};
    ql_adapter_shape shapes[2];
    write_config(dir, c->config);
    write_weights(dir, c->rank_v, counting, 4);
    ck_assert_ok(plan_small(dir, shapes, &err), &err);
    ck_assert_uint_eq(shapes[0].rank, 2);
    ck_assert_uint_eq(shapes[1].rank, c->rank_v);
    ck_assert_double_eq_tol(shapes[0].scaling, c->scaling_q, 1e-14);
    ck_assert_double_eq_tol(shapes[1].scaling, c->scaling_v, 1e-14);
    test_folder_remove(dir);
}
END_TEST

START_TEST(excludes_modules)
{
    char *dir = test_folder();
    ql_error err = {0};
    ql_adapter_shape shapes[2];
    write_config(dir, ", \"target_modules\": \"all-linear\", \"exclude_modules\": [\"v_proj\"]");
    write_weights(dir, 2, counting, 2);
    ck_assert_ok(plan_small(dir, shapes, &err), &err);
    ck_assert_uint_eq(shapes[0].rank, 2);
    ck_assert_uint_eq(shapes[1].rank, 0);
    test_folder_remove(dir);
}
END_TEST

/* ---- refusals ---- */

typedef struct refusal {
    const char *config;
    size_t rank_v, tensors;
    ql_status status;
    const char *words;
} refusal;

#define QV ", \"target_modules\": [\"q_proj\", \"v_proj\"]"

static const refusal refusals[] = {
    {QV ", \"use_dora\": true", 2, 4, QL_ERR_FORMAT, "q_proj.lora_magnitude_vector"},
    {QV ", \"fan_in_fan_out\": true", 2, 4, QL_ERR_UNSUPPORTED, "fan_in_fan_out"},
    {QV ", \"bias\": \"all\"", 2, 4, QL_ERR_UNSUPPORTED, "bias is \"all\""},
    {QV ", \"modules_to_save\": [\"lm_head\"]", 2, 4, QL_ERR_UNSUPPORTED, "modules_to_save"},
    {QV ", \"layers_to_transform\": 0", 2, 4, QL_ERR_UNSUPPORTED, "layers_to_transform"},
    {QV ", \"trainable_token_indices\": [1]", 2, 4, QL_ERR_UNSUPPORTED, "trainable_token_indices"},
    {QV ", \"init_lora_weights\": \"pissa_niter_16\"", 2, 4, QL_ERR_UNSUPPORTED, "pissa_niter_16"},
    {QV ", \"r\": 2", 2, 4, QL_ERR_FORMAT, "adapter_config.json"},
    {"", 2, 4, QL_ERR_FORMAT, "target_modules"},
    {", \"target_modules\": []", 2, 4, QL_ERR_FORMAT, "target_modules"},
    {", \"target_modules\": [1]", 2, 4, QL_ERR_FORMAT, "target_modules"},
    {", \"target_modules\": \"*(\"", 2, 4, QL_ERR_FORMAT, "regular expression"},
    {", \"target_modules\": \"(.+)+[XYZ]\"", 2, 4, QL_ERR_FORMAT, "too costly"},
    {", \"target_modules\": \"nothing\"", 2, 4, QL_ERR_UNSUPPORTED, "matches no linear layer"},
    {", \"target_modules\": [\"q_proj\", \"v_proj\", \"c_attn\"]", 2, 4, QL_ERR_UNSUPPORTED, "\"c_attn\""},
    {", \"target_modules\": [\"proj\"]", 2, 4, QL_ERR_UNSUPPORTED, "\"proj\""},
    {", \"target_modules\": [\"q_proj\"]", 2, 4, QL_ERR_UNSUPPORTED, "v_proj.lora_A.weight"},
    {QV, 2, 5, QL_ERR_UNSUPPORTED, "x_proj.lora_A.weight"},
    {QV, 2, 3, QL_ERR_FORMAT, "v_proj.lora_B.weight"},
    {QV, 3, 4, QL_ERR_SHAPE, "v_proj.lora_A.weight"},
    {QV ", \"rank_pattern\": {\"v_proj\": 1.5}", 2, 4, QL_ERR_FORMAT, "rank of 1.5"},
    {QV ", \"rank_pattern\": {\"v_proj\": \"x\"}", 2, 4, QL_ERR_FORMAT, "rank_pattern"},
    {QV ", \"alpha_pattern\": {\"(\": 1}", 2, 4, QL_ERR_FORMAT, "alpha_pattern"},
    {QV ", \"lora_dropout\": 2", 2, 4, QL_ERR_FORMAT, "lora_dropout"},
    {QV ", \"lora_dropout\": 1", 2, 4, QL_ERR_FORMAT, "lora_dropout"},
};

START_TEST(refuses_by_name)
{
    const refusal *c = &refusals[_i];
    char *dir = test_folder();
    ql_error err = {0};
    ql_adapter_shape shapes[2];
    write_config(dir, c->config);
    write_weights(dir, c->rank_v, counting, c->tensors);
    ck_assert_fails(plan_small(dir, shapes, &err), c->status, &err, c->words);
    test_folder_remove(dir);
}
END_TEST

START_TEST(refuses_damaged_folders)
{
    char *dir = test_folder();
    ql_error err = {0};
    ql_adapter_file *file;
    ck_assert_fails(ql_adapter_file_open(&file, dir, &err), QL_ERR_IO, &err, "adapter_config.json");
    FILE *f = fopen(join(dir, "adapter_config.json"), "w");
    fputs("{\"peft_type\": \"IA3\", \"target_modules\": [\"q_proj\"]}", f);
    fclose(f);
    ck_assert_fails(ql_adapter_file_open(&file, dir, &err), QL_ERR_UNSUPPORTED, &err, "IA3");
    f = fopen(join(dir, "adapter_config.json"), "w");
    fputs("[]", f);
    fclose(f);
    ck_assert_fails(ql_adapter_file_open(&file, dir, &err), QL_ERR_FORMAT, &err, "object");
    write_config(dir, QV);
    ck_assert_fails(ql_adapter_file_open(&file, dir, &err), QL_ERR_IO, &err, "adapter_model.safetensors");
    f = fopen(join(dir, "adapter_model.safetensors"), "w");
    fputs("not tensors", f);
    fclose(f);
    ck_assert_fails(ql_adapter_file_open(&file, dir, &err), QL_ERR_FORMAT, &err, "adapter_model.safetensors");
    test_folder_remove(dir);
}
END_TEST

START_TEST(refuses_numbers_beyond_fp16)
{
    static const float bad[] = {NAN, INFINITY, 70000};
    float values[64];
    memcpy(values, counting, sizeof values);
    values[7] = bad[_i];
    char *dir = test_folder();
    ql_error err = {0};
    ql_adapter_file *file;
    ql_adapter_shape shapes[2];
    ql_adapters *set;
    write_config(dir, QV);
    write_weights(dir, 2, values, 4);
    ck_assert_ok(plan_small(dir, shapes, &err), &err);
    ck_assert_ok(ql_adapters_create(&set, shapes, 2, false, &err), &err);
    ck_assert_ok(ql_adapter_file_open(&file, dir, &err), &err);
    ck_assert_fails(ql_adapter_file_read(file, small, 2, set, &err), QL_ERR_VALUE, &err,
                    "q_proj.lora_A.weight, row 1, column 1");
    ql_adapter_file_close(file);
    ql_adapters_destroy(set);
    test_folder_remove(dir);
}
END_TEST

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

int main(void)
{
    Suite *suite = suite_create("adapter");
    TCase *tc = tcase_create("adapter");
    suite_add_tcase(suite, tc);
    tcase_add_loop_test(tc, reads_reference_adapters, 0, REFERENCES);
    tcase_add_test(tc, refuses_gpt2);
    tcase_add_loop_test(tc, matches_modules_as_peft_does, 0, COUNT(match_cases));
    tcase_add_test(tc, excludes_modules);
    tcase_add_loop_test(tc, refuses_by_name, 0, COUNT(refusals));
    tcase_add_test(tc, refuses_damaged_folders);
    tcase_add_loop_test(tc, refuses_numbers_beyond_fp16, 0, 3);
    return test_run(suite);
}
