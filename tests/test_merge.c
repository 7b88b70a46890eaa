/* Adapters merged: the weights that are read back are base and adapter together, computed here in double. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/half.h"
#include "base/rng.h"
#include "convert_case.h"
#include "qlora/convert.h"
#include "qlora/io.h"
#include "qlora/train.h"

static void encode(void *to, ql_dtype type, size_t i, float x)
{
    if (type == QL_F32)
        ((float *)to)[i] = x;
    else
        ((uint16_t *)to)[i] = type == QL_F16 ? ql_f32_to_f16(x) : ql_f32_to_bf16(x);
}

/* Random weights with a few zeros of either sign among them; `scale` multiplies the linear layers. */
static void write_model(const char *folder, ql_dtype type, float scale)
{
    static char names[3 + LAYERS * 9][96];
    ql_tensor tensors[3 + LAYERS * 9];
    size_t count = 0;
    ql_rng rng = {.seed = 5};
    for (size_t l = 0; l < LAYERS; l++) {
        for (size_t m = 0; m < QL_MODULES; m++, count++) {
            snprintf(names[count], sizeof names[0], "model.layers.%zu.%s.weight", l, hf_names[m]);
            tensors[count] = (ql_tensor){.ndim = 2, .shape = {outputs[m], inputs[m]}};
        }
        for (size_t m = 0; m < 2; m++, count++) {
            snprintf(names[count], sizeof names[0], "model.layers.%zu.%s_layernorm.weight", l,
                     m ? "post_attention" : "input");
            tensors[count] = (ql_tensor){.ndim = 1, .shape = {HIDDEN}};
        }
    }
    snprintf(names[count], sizeof names[0], "model.embed_tokens.weight");
    tensors[count++] = (ql_tensor){.ndim = 2, .shape = {VOCAB, HIDDEN}};
    snprintf(names[count], sizeof names[0], "model.norm.weight");
    tensors[count++] = (ql_tensor){.ndim = 1, .shape = {HIDDEN}};
    for (size_t t = 0; t < count; t++) {
        size_t elements = ql_tensor_elements(&tensors[t]);
        void *data = calloc(elements, 4);
        for (size_t i = 0; i < elements; i++) {
            float x = (ql_uniform(ql_rng_next(&rng)) - 0.5f) * (tensors[t].ndim == 2 ? scale : 1) + (tensors[t].ndim == 1);
            encode(data, type, i, i % 17 == 3 ? -0.0f : i % 17 == 5 ? 0 : x);
        }
        tensors[t].name = names[t];
        tensors[t].dtype = type;
        tensors[t].data = data;
    }
    path_text path;
    ql_error err = {0};
    ck_assert_ok(ql_safetensors_write(in(path, folder, "model.safetensors"), tensors, count, NULL, 0, &err), &err);
    for (size_t t = 0; t < count; t++)
        free(ql_tensor_elements(&tensors[t]) ? (void *)(uintptr_t)tensors[t].data : NULL);
}

static const ql_dtype dtypes[] = {QL_F32, QL_F16, QL_BF16};
static const ql_code codes[] = {QL_CODE_F32, QL_CODE_F16, QL_CODE_BF16};

START_TEST(an_adapter_of_zeros_changes_no_bit)
{
    fixture f;
    path_text path;
    setup(&f, &cases[0], true);
    write_model(f.folder, dtypes[_i], 1);
    ql_merge_options options = ql_merge_options_defaults();
    for (int chosen = 0; chosen < 2; chosen++) {
        ql_merge_report report;
        options.as_stored = !chosen;
        options.type = codes[_i];
        ck_assert_ok(ql_merge(&report, f.model, f.adapter, f.output, &options, NULL, &f.err), &f.err);
        ck_assert_uint_eq(report.merged, MODULES);
        ck_assert_double_eq(report.max_error, 0);
        ql_tensors *a, *b;
        ck_assert_ok(ql_tensors_open(&a, in(path, f.model, "model.safetensors"), &f.err), &f.err);
        ck_assert_ok(ql_tensors_open(&b, f.output, &f.err), &f.err);
        ck_assert_uint_eq(report.tensors, ql_tensors_count(a));
        for (size_t i = 0; i < ql_tensors_count(a); i++) {
            const ql_tensor *t = ql_tensors_at(a, i), *u = ql_tensors_find(b, t->name);
            ck_assert_ptr_nonnull(u);
            ck_assert_int_eq(t->dtype, u->dtype);
            ck_assert_mem_eq(t->data, u->data, t->bytes);
        }
        ql_tensors_close(a);
        ql_tensors_close(b);
    }
    teardown(&f);
}
END_TEST

/* Checks every linear layer of a merge against W + s B A in double; base_of gives W. */
static void check_merge(const fixture *f, const adapter_case *c, ql_dtype type, const ql_format *format, double *most)
{
    ql_error err = {0};
    ql_tensors *a, *b;
    path_text path;
    const double unit = type == QL_F32 ? 0x1p-24 : type == QL_F16 ? 0x1p-11 : 0x1p-8;
    ck_assert_ok(ql_tensors_open(&a, in(path, f->model, "model.safetensors"), &err), &err);
    ck_assert_ok(ql_tensors_open(&b, f->output, &err), &err);
    for (size_t i = 0; i < MODULES; i++) {
        const ql_adapter *adapter = &f->set->layer[i];
        char name[96];
        float x[INTER], y[INTER];
        ql_weight *weight = NULL;
        snprintf(name, sizeof name, "model.layers.%zu.%s.weight", i / QL_MODULES, hf_names[i % QL_MODULES]);
        const ql_tensor *w = ql_tensors_find(a, name), *merged = ql_tensors_find(b, name);
        ck_assert_int_eq(merged->dtype, type);
        if (format)
            ck_assert_ok(ql_weight_quantize(&weight, *format, name, w->data, w->dtype, adapter->k, adapter->n, adapter->k,
                                            NULL, &err), &err);
        for (size_t row = 0; row < adapter->n; row++) {
            ck_assert_ok(ql_tensor_read_f32(merged, row * adapter->k, adapter->k, y, &err), &err);
            if (weight)
                ql_weight_dequantize(weight, row, 1, x, adapter->k);
            else
                ck_assert_ok(ql_tensor_read_f32(w, row * adapter->k, adapter->k, x, &err), &err);
            for (size_t col = 0; col < adapter->k; col++) {
                double magnitude, want = x[col] + delta(adapter, scaling_of(c, i), row, col, &magnitude);
                double sums = (magnitude + fabs((double)x[col])) * (2 * (double)adapter->r + 2) * 0x1p-24;
                ck_assert_double_le(fabs(y[col] - want), sums + unit * (fabs(want) + sums) + 0x1p-25);
                *most = fmax(*most, fabs(y[col] - want));
            }
        }
        ql_weight_destroy(weight);
    }
    ql_tensors_close(a);
    ql_tensors_close(b);
}

START_TEST(merges_what_the_adapter_adds)
{
    const adapter_case *c = &cases[3];
    ql_dtype type = dtypes[_i % 3];
    ql_format format = ql_format_default();
    fixture f;
    setup(&f, c, false);
    write_model(f.folder, QL_BF16, 1);
    ql_merge_options options = {.type = codes[_i % 3], .quantized = _i >= 3, .format = format};
    ql_merge_report report, alone;
    ql_workers *workers;
    double most = 0;
    ck_assert_ok(ql_workers_create(&workers, 3, &f.err), &f.err);
    ck_assert_ok(ql_merge(&report, f.model, f.adapter, f.output, &options, workers, &f.err), &f.err);
    check_merge(&f, c, type, options.quantized ? &format : NULL, &most);
    if (type == QL_F32)
        ck_assert_double_eq(report.max_error, 0);
    else
        ck_assert_double_le(fabs(report.max_error - most), 0x1p-16); /* norms are rounded too, these are not larger */
    ck_assert_ok(ql_merge(&alone, f.model, f.adapter, f.output, &options, NULL, &f.err), &f.err);
    ck_assert_double_eq(alone.max_error, report.max_error);
    ql_workers_destroy(workers);
    teardown(&f);
}
END_TEST

static void logits_of(const char *model, const char *adapter, float *out)
{
    static const int32_t ids[] = {1, 5, 9, 33, 60, 2, 2, 17};
    ql_error err = {0};
    ql_format stored;
    ql_workers *workers;
    ql_model *m;
    ql_generator *gen;
    const float *logits;
    ck_assert_ok(ql_format_parse(&stored, "none", 0, false, &err), &err);
    ck_assert_ok(ql_workers_create(&workers, 1, &err), &err);
    ck_assert_ok(ql_model_open(&m, model, stored, workers, &err), &err);
    if (adapter)
        ck_assert_ok(ql_adapter_load(m, adapter, false, &err), &err);
    ck_assert_ok(ql_generator_create(&gen, m, 16, workers, &err), &err);
    ck_assert_ok(ql_generator_feed(gen, ids, 8, &logits, &err), &err);
    memcpy(out, logits, VOCAB * sizeof *out);
    ql_generator_destroy(gen);
    ql_model_destroy(m);
    ql_workers_destroy(workers);
}

START_TEST(merged_models_say_the_same)
{
    fixture f;
    float base[VOCAB], adapted[VOCAB], merged[VOCAB], largest = 0, apart = 0;
    setup(&f, &cases[3], false);
    write_model(f.folder, QL_F32, 0.5f);
    ql_merge_options options = ql_merge_options_defaults();
    ql_merge_report report;
    ck_assert_ok(ql_merge(&report, f.model, f.adapter, f.output, &options, NULL, &f.err), &f.err);
    logits_of(f.model, NULL, base);
    logits_of(f.model, f.adapter, adapted);
    logits_of(f.output, NULL, merged);
    for (size_t i = 0; i < VOCAB; i++) {
        largest = fmaxf(largest, fabsf(adapted[i]));
        apart = fmaxf(apart, fabsf(adapted[i] - base[i]));
    }
    /* The products of each block differ by the rounding of sums of k + r terms; norms keep it from growing. */
    float bound = (float)(MODULES * (INTER + 6)) * 0x1p-24f * largest;
    ck_assert_float_gt(apart, 100 * bound);
    for (size_t i = 0; i < VOCAB; i++)
        ck_assert_float_le(fabsf(adapted[i] - merged[i]), bound);
    teardown(&f);
}
END_TEST

START_TEST(refuses)
{
    fixture f;
    path_text path;
    setup(&f, &cases[0], false);
    write_model(f.folder, QL_F32, 3e5f); /* beyond F16 */
    ql_merge_options options = {.type = QL_CODE_F16};
    ql_merge_report report;
    ck_assert_fails(ql_merge(&report, f.model, f.adapter, f.output, &options, NULL, &f.err), QL_ERR_VALUE, &f.err,
                    "no finite F16 number");
    ck_assert_ptr_null(fopen(in(path, f.output, "model.safetensors"), "r"));
    ck_assert_fails(ql_merge(&report, f.model, f.adapter, f.folder, &options, NULL, &f.err), QL_ERR_ARG, &f.err,
                    "this is the model itself");
    options.type = QL_CODE_Q8_0;
    ck_assert_fails(ql_merge(&report, f.model, f.adapter, f.output, &options, NULL, &f.err), QL_ERR_ARG, &f.err, "Hugging Face folder");
    options.type = QL_CODE_F32;
    ck_assert_fails(ql_merge(&report, f.model, in(path, f.folder, "none"), f.output, &options, NULL, &f.err), QL_ERR_IO,
                    &f.err, "none");
    const char *quantized = "{\"model_type\": \"llama\", \"quantization_config\": {\"quant_method\": \"gptq\"}}";
    test_file(f.folder, "config.json", quantized, strlen(quantized));
    ck_assert_fails(ql_merge(&report, f.model, f.adapter, f.output, &options, NULL, &f.err), QL_ERR_UNSUPPORTED, &f.err,
                    "GPTQ");
    teardown(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("merge");
    TCase *tc = tcase_create("merge");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, an_adapter_of_zeros_changes_no_bit, 0, 3);
    tcase_add_loop_test(tc, merges_what_the_adapter_adds, 0, 6);
    tcase_add_test(tc, merged_models_say_the_same);
    tcase_add_test(tc, refuses);
    suite_add_tcase(suite, tc);
    return test_run(suite);
}
