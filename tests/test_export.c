/* Adapters exported: what is read back adds what the adapter added, computed here in double. */
#include <math.h>
#include <stdio.h>

#include "convert_case.h"
#include "io/gguf.h"
#include "io/json.h"
#include "qlora/convert.h"
#include "qlora/io.h"

static const char *const gguf_names[QL_MODULES] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                   "ffn_gate", "ffn_up", "ffn_down"};

static const float *floats(const ql_tensors *tensors, const char *name, size_t rows, size_t cols)
{
    ql_error err = {0};
    const ql_tensor *t;
    ck_assert_ok(ql_tensors_need(&t, tensors, name, 2, (const size_t[]){rows, cols}, &err), &err);
    ck_assert_int_eq(t->dtype, QL_F32);
    ck_assert_uint_eq((uintptr_t)t->data % 4, 0);
    return t->data;
}

/* The scaling, the factor and B as folded are each rounded to fp32 once. */
#define FOLD_BOUND 0x1p-22

START_TEST(gguf_adds_the_same)
{
    const adapter_case *c = &cases[_i];
    fixture f;
    setup(&f, c, false);
    ck_assert_ok(ql_adapter_export(QL_EXPORT_GGUF, f.adapter, f.model, f.output, &f.err), &f.err);
    ql_tensors *file;
    ck_assert_ok(ql_tensors_open(&file, f.output, &f.err), &f.err);
    const char *const words[3][2] = {{"general.type", "adapter"}, {"general.architecture", c->arch},
                                     {"adapter.type", "lora"}};
    for (size_t i = 0; i < 3; i++) {
        const char *text;
        size_t length;
        ck_assert_ok(ql_gguf_get_string(ql_tensors_gguf(file), words[i][0], &text, &length, &f.err), &f.err);
        ck_assert(length == strlen(words[i][1]) && memcmp(text, words[i][1], length) == 0);
    }
    double alpha;
    ck_assert_ok(ql_gguf_get_double(ql_tensors_gguf(file), "adapter.lora.alpha", 1e-6, 1e6, &alpha, &f.err), &f.err);
    ck_assert_uint_eq(ql_tensors_count(file), 2 * MODULES);
    for (size_t i = 0; i < MODULES; i++) {
        const ql_adapter *a = &f.set->layer[i];
        size_t m = i % QL_MODULES;
        char name[96];
        snprintf(name, sizeof name, "blk.%zu.%s.weight.lora_a", i / QL_MODULES, gguf_names[m]);
        const float *lora_a = floats(file, name, a->r, a->k);
        snprintf(name, sizeof name, "blk.%zu.%s.weight.lora_b", i / QL_MODULES, gguf_names[m]);
        const float *lora_b = floats(file, name, a->n, a->r);
        bool permuted = m < 2 && strcmp(c->arch, "llama") == 0;
        for (size_t row = 0; row < a->n; row++) {
            /* reshape(heads, 2, d/2).swapaxes(1, 2): element [h][p][j] goes to [h][j][p]. */
            size_t h = row / DIM, p = row % DIM / (DIM / 2), j = row % (DIM / 2);
            const float *b = lora_b + (permuted ? h * DIM + 2 * j + p : row) * a->r;
            for (size_t col = 0; col < a->k; col++) {
                double magnitude, want = delta(a, scaling_of(c, i), row, col, &magnitude), got = 0;
                for (size_t k = 0; k < a->r; k++)
                    got += alpha / (double)a->r * b[k] * lora_a[k * a->k + col];
                ck_assert_double_le(fabs(got - want), FOLD_BOUND * magnitude);
            }
            if (!c->patterns)
                ck_assert_mem_eq(b, a->master_b + row * a->r, a->r * sizeof(float));
        }
    }
    ql_tensors_close(file);
    teardown(&f);
}
END_TEST

/* What mlx-lm reads: the kind, the last num_layers blocks, and in them the layers that `keys` names; returns the scale. */
static double check_mlx_config(const char *path, const char *kind, size_t rank)
{
    json_t *config;
    ql_error err = {0};
    ck_assert_ok(ql_json_read(&config, path, &err), &err);
    ck_assert_str_eq(json_string_value(json_object_get(config, "fine_tune_type")), kind);
    ck_assert_int_eq(json_integer_value(json_object_get(config, "num_layers")), LAYERS);
    const json_t *lora = json_object_get(config, "lora_parameters"), *keys = json_object_get(lora, "keys");
    ck_assert_int_eq(json_integer_value(json_object_get(lora, "rank")), (json_int_t)rank);
    ck_assert_double_eq(json_number_value(json_object_get(lora, "dropout")), 0);
    ck_assert_uint_eq(json_array_size(keys), QL_MODULES);
    for (size_t i = 0; i < QL_MODULES; i++)
        ck_assert_str_eq(json_string_value(json_array_get(keys, i)), hf_names[i]);
    ck_assert(json_is_number(json_object_get(lora, "scale")));
    double scale = json_number_value(json_object_get(lora, "scale"));
    json_decref(config);
    return scale;
}

START_TEST(mlx_adds_the_same)
{
    const adapter_case *c = &cases[_i];
    fixture f;
    path_text path;
    setup(&f, c, false);
    ck_assert_ok(ql_adapter_export(QL_EXPORT_MLX, f.adapter, f.model, f.output, &f.err), &f.err);
    size_t rank = c->patterns ? 6 : RANK;
    double scale = check_mlx_config(in(path, f.output, "adapter_config.json"), "lora", rank);
    ql_tensors *file;
    ck_assert_ok(ql_tensors_open(&file, in(path, f.output, "adapters.safetensors"), &f.err), &f.err);
    ck_assert_uint_eq(ql_tensors_count(file), 2 * MODULES);
    for (size_t i = 0; i < MODULES; i++) {
        const ql_adapter *a = &f.set->layer[i];
        char name[96];
        snprintf(name, sizeof name, "model.layers.%zu.%s.lora_a", i / QL_MODULES, hf_names[i % QL_MODULES]);
        const float *lora_a = floats(file, name, a->k, rank);
        snprintf(name, sizeof name, "model.layers.%zu.%s.lora_b", i / QL_MODULES, hf_names[i % QL_MODULES]);
        const float *lora_b = floats(file, name, rank, a->n);
        for (size_t row = 0; row < a->n; row++) {
            for (size_t col = 0; col < a->k; col++) {
                double magnitude, want = delta(a, scaling_of(c, i), row, col, &magnitude), got = 0;
                for (size_t k = 0; k < rank; k++)
                    got += scale * lora_a[col * rank + k] * lora_b[k * a->n + row];
                ck_assert_double_le(fabs(got - want), FOLD_BOUND * magnitude);
            }
        }
    }
    ql_tensors_close(file);
    teardown(&f);
}
END_TEST

/* DoRA has one more tensor a layer in either format, and no place in GGUF adapters. */
START_TEST(magnitudes_go_along)
{
    fixture f;
    path_text path, dora;
    setup(&f, &cases[1], false);
    static char names[MODULES][64];
    const char *list[MODULES];
    ql_adapter_shape shapes[MODULES];
    ql_adapters *set;
    for (size_t i = 0; i < MODULES; i++) {
        snprintf(names[i], sizeof names[i], "model.layers.%zu.%s", i / QL_MODULES, hf_names[i % QL_MODULES]);
        list[i] = names[i];
        shapes[i] = (ql_adapter_shape){inputs[i % QL_MODULES], outputs[i % QL_MODULES], RANK, 16 / sqrt(RANK), true};
    }
    ck_assert_ok(ql_adapters_create(&set, shapes, MODULES, true, &f.err), &f.err);
    for (size_t i = 0; i < set->count; i++)
        ql_adapters_set(set, i, 1, &(float){1.0f + (float)i / 1024});
    const ql_adapter_config config = {.rank = RANK, .alpha = 16, .use_rslora = true, .use_dora = true,
                                      .target_modules = list, .targets = MODULES};
    ck_assert_ok(ql_adapter_file_write(in(dora, f.folder, "dora"), &config, set, list, &f.err), &f.err);
    ck_assert_fails(ql_adapter_export(QL_EXPORT_GGUF, dora, f.model, f.output, &f.err), QL_ERR_UNSUPPORTED, &f.err,
                    "use_dora");
    for (int mlx = 0; mlx < 2; mlx++) {
        ql_tensors *file;
        ck_assert_ok(ql_adapter_export(mlx ? QL_EXPORT_MLX : QL_EXPORT_PEFT, dora, f.model, f.output, &f.err), &f.err);
        if (mlx)
            check_mlx_config(in(path, f.output, "adapter_config.json"), "dora", RANK);
        in(path, f.output, mlx ? "adapters.safetensors" : "adapter_model.safetensors");
        ck_assert_ok(ql_tensors_open(&file, path, &f.err), &f.err);
        ck_assert_uint_eq(ql_tensors_count(file), 3 * MODULES);
        for (size_t i = 0; i < MODULES; i++) {
            const ql_adapter *a = &set->layer[i];
            const ql_tensor *t;
            char name[128];
            snprintf(name, sizeof name, mlx ? "%s.m" : "base_model.model.%s.lora_magnitude_vector", names[i]);
            ck_assert_ok(ql_tensors_need(&t, file, name, 1, &a->n, &f.err), &f.err);
            ck_assert_mem_eq(t->data, a->magnitude, a->n * sizeof(float));
        }
        ql_tensors_close(file);
    }
    ql_adapters_destroy(set);
    teardown(&f);
}
END_TEST

START_TEST(peft_stays_as_it_is)
{
    const adapter_case *c = &cases[_i];
    fixture f;
    path_text before, after;
    setup(&f, c, false);
    ck_assert_ok(ql_adapter_export(QL_EXPORT_PEFT, f.adapter, f.model, f.output, &f.err), &f.err);
    ql_tensors *a, *b;
    ck_assert_ok(ql_tensors_open(&a, in(before, f.adapter, "adapter_model.safetensors"), &f.err), &f.err);
    ck_assert_ok(ql_tensors_open(&b, in(after, f.output, "adapter_model.safetensors"), &f.err), &f.err);
    ck_assert_uint_eq(ql_tensors_count(a), ql_tensors_count(b));
    for (size_t i = 0; i < ql_tensors_count(a); i++) {
        const ql_tensor *t = ql_tensors_at(a, i), *u = ql_tensors_find(b, t->name);
        ck_assert_ptr_nonnull(u);
        ck_assert_uint_eq(t->bytes, u->bytes);
        ck_assert_mem_eq(t->data, u->data, t->bytes);
    }
    ql_tensors_close(a);
    ql_tensors_close(b);
    teardown(&f);
}
END_TEST

/* Which row of the Hugging Face file lies at a row of the GGUF file, told by the weights themselves. */
START_TEST(rows_lie_as_in_files_of_other_programs)
{
    const char *hf = test_data("models/stories260K-hf"), *gguf = test_data("models/gguf/stories260K-q8_0.gguf"),
               *adapter = test_data("finetune-reference/qlora-nf4-all/adapter_final");
    if (!hf || !gguf || !adapter)
        return;
    enum { K = 64, R = 8 };
    char *folder = test_folder();
    path_text output, path;
    ql_error err = {0};
    ql_tensors *model, *blocks, *peft, *lora;
    ck_assert_ok(ql_adapter_export(QL_EXPORT_GGUF, adapter, hf, in(output, folder, "a.gguf"), &err), &err);
    ck_assert_ok(ql_tensors_open(&model, hf, &err), &err);
    ck_assert_ok(ql_tensors_open(&blocks, gguf, &err), &err);
    ck_assert_ok(ql_tensors_open(&peft, in(path, adapter, "adapter_model.safetensors"), &err), &err);
    ck_assert_ok(ql_tensors_open(&lora, output, &err), &err);
    for (size_t m = 0; m < 3; m++) {
        const size_t n = m ? 32 : 64;
        size_t moved = 0;
        char name[128];
        snprintf(name, sizeof name, "model.layers.3.%s.weight", hf_names[m]);
        const float *w = floats(model, name, n, K);
        snprintf(name, sizeof name, "base_model.model.model.layers.3.%s.lora_B.weight", hf_names[m]);
        const float *b = floats(peft, name, n, R);
        snprintf(name, sizeof name, "blk.3.%s.weight.lora_b", gguf_names[m]);
        const float *lora_b = floats(lora, name, n, R);
        snprintf(name, sizeof name, "blk.3.%s.weight", gguf_names[m]);
        const ql_tensor *stored = ql_tensors_find(blocks, name);
        ck_assert_ptr_nonnull(stored);
        ql_weight *weight;
        ck_assert_ok(ql_weight_from_blocks(&weight, QL_CODE_Q8_0, name, stored->data, stored->bytes, n, K, false, &err),
                     &err);
        for (size_t row = 0; row < n; row++) {
            float x[K];
            size_t nearest = 0;
            double least = INFINITY;
            ql_weight_dequantize(weight, row, 1, x, K);
            for (size_t other = 0; other < n; other++) {
                double distance = 0;
                for (size_t k = 0; k < K; k++)
                    distance += ((double)w[other * K + k] - x[k]) * ((double)w[other * K + k] - x[k]);
                nearest = distance < least ? other : nearest;
                least = distance < least ? distance : least;
            }
            moved += nearest != row;
            ck_assert_mem_eq(lora_b + row * R, b + nearest * R, R * sizeof(float));
        }
        ck_assert_msg(m == 2 ? moved == 0 : moved > n / 2, "%zu rows of %s moved", moved, name);
        ql_weight_destroy(weight);
    }
    ql_tensors_close(model);
    ql_tensors_close(blocks);
    ql_tensors_close(peft);
    ql_tensors_close(lora);
    test_folder_remove(folder);
}
END_TEST

START_TEST(says_what_cannot_be_written)
{
    fixture f;
    setup(&f, &cases[0], false);
    ck_assert_fails(ql_adapter_export(QL_EXPORT_GGUF, f.adapter, f.model, "/nowhere/a.gguf", &f.err), QL_ERR_IO, &f.err,
                    "/nowhere/a.gguf");
    teardown(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("export");
    TCase *tc = tcase_create("export");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, gguf_adds_the_same, 0, CASES);
    tcase_add_loop_test(tc, mlx_adds_the_same, 0, CASES);
    tcase_add_test(tc, magnitudes_go_along);
    tcase_add_loop_test(tc, peft_stays_as_it_is, 0, CASES);
    tcase_add_test(tc, rows_lie_as_in_files_of_other_programs);
    tcase_add_test(tc, says_what_cannot_be_written);
    suite_add_tcase(suite, tc);
    return test_run(suite);
}
