/* Adapters exported and merged: what is read back adds what the adapter added, computed here in double. */
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/half.h"
#include "base/rng.h"
#include "io/gguf.h"
#include "io/json.h"
#include "qlora/adapter.h"
#include "qlora/convert.h"
#include "qlora/io.h"
#include "qlora/model.h"
#include "qlora/train.h"

enum { LAYERS = 2, HIDDEN = 32, INTER = 48, HEADS = 4, KV = 2, DIM = 8, VOCAB = 64, MODULES = LAYERS * QL_MODULES };

static const char *const hf_names[QL_MODULES] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                                 "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                                 "mlp.down_proj"};
static const char *const gguf_names[QL_MODULES] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                   "ffn_gate", "ffn_up", "ffn_down"};
static const size_t inputs[QL_MODULES] = {32, 32, 32, 32, 32, 32, 48}, outputs[QL_MODULES] = {32, 16, 16, 32, 48, 48, 32};

typedef char path_text[512];

static const char *in(path_text path, const char *folder, const char *name)
{
    int length = snprintf(path, sizeof(path_text), "%s/%s", folder, name);
    ck_assert(length > 0 && (size_t)length < sizeof(path_text));
    return path;
}

/* ---- a model of that shape ---- */

static void write_config(const char *folder, const char *arch)
{
    char text[1024];
    int length = snprintf(text, sizeof text,
                          "{\"model_type\": \"%s\", \"hidden_size\": %d, \"intermediate_size\": %d, "
                          "\"num_hidden_layers\": %d, \"num_attention_heads\": %d, \"num_key_value_heads\": %d, "
                          "\"head_dim\": %d, \"vocab_size\": %d, \"max_position_embeddings\": 64, "
                          "\"rms_norm_eps\": 1e-05, \"tie_word_embeddings\": true, \"torch_dtype\": \"float32\"}",
                          arch, HIDDEN, INTER, LAYERS, HEADS, KV, DIM, VOCAB);
    test_file(folder, "config.json", text, (size_t)length);
}

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

/* ---- adapters for it ---- */

typedef struct adapter_case {
    const char *arch;
    bool rslora, patterns;
    double alpha;
} adapter_case;

static const adapter_case cases[] = {
    {"llama", false, false, 16}, {"llama", true, false, 16}, {"llama", false, true, 12}, {"llama", true, true, 12},
    {"llama", false, true, 0},   {"qwen2", false, false, 8}, {"qwen3", true, true, 8},
};
enum { CASES = sizeof cases / sizeof *cases, RANK = 4 };

static size_t rank_of(const adapter_case *c, size_t i)
{
    return c->patterns && i % 3 == 1 ? 6 : RANK;
}

static double scaling_of(const adapter_case *c, size_t i)
{
    double alpha = c->patterns && i % 4 == 1 ? 5 : c->alpha, r = (double)rank_of(c, i);
    return alpha / (c->rslora ? sqrt(r) : r);
}

/* Values that FP16 holds exactly, so that fp16 and fp32 copies are the same adapter. B is 0 with `zero`. */
static ql_adapters *write_adapter(const char *dir, const adapter_case *c, bool zero)
{
    static char names[MODULES][64];
    const char *list[MODULES], *targets[QL_MODULES];
    ql_adapter_shape shapes[MODULES];
    ql_adapters *set;
    ql_error err = {0};
    for (size_t i = 0; i < MODULES; i++) {
        size_t m = i % QL_MODULES;
        snprintf(names[i], sizeof names[i], "model.layers.%zu.%s", i / QL_MODULES, hf_names[m]);
        list[i] = names[i];
        targets[m] = strchr(hf_names[m], '.') + 1;
        shapes[i] = (ql_adapter_shape){inputs[m], outputs[m], rank_of(c, i), scaling_of(c, i), false};
    }
    ck_assert_ok(ql_adapters_create(&set, shapes, MODULES, true, &err), &err);
    ql_rng rng = {.seed = 9};
    for (size_t i = 0; i < set->count; i++) {
        float x = floorf(ql_uniform(ql_rng_next(&rng)) * 65 - 32) / 256;
        ql_adapters_set(set, i, 1, &x);
    }
    for (size_t i = 0; i < MODULES && zero; i++)
        for (size_t j = 0; j < set->layer[i].n * set->layer[i].r; j++)
            ql_adapters_set(set, set->layer[i].offset + set->layer[i].r * set->layer[i].k + j, 1, &(float){0});
    const ql_adapter_config config = {.rank = RANK, .alpha = c->alpha, .use_rslora = c->rslora, .base_model = "base",
                                      .target_modules = targets, .targets = QL_MODULES};
    ck_assert_ok(ql_adapter_file_write(dir, &config, set, list, &err), &err);
    return set;
}

/* Element (row, col) of s B A, and the sum of its terms' magnitudes. */
static double delta(const ql_adapter *a, double scaling, size_t row, size_t col, double *magnitude)
{
    double sum = 0;
    *magnitude = 0;
    for (size_t i = 0; i < a->r; i++) {
        double term = scaling * a->master_b[row * a->r + i] * a->master_a[i * a->k + col];
        sum += term;
        *magnitude += fabs(term);
    }
    return sum;
}

typedef struct fixture {
    char *folder;
    path_text model, adapter, output;
    ql_adapters *set;
    ql_error err;
} fixture;

static void setup(fixture *f, const adapter_case *c, bool zero)
{
    *f = (fixture){.folder = test_folder()};
    in(f->model, f->folder, ".");
    in(f->adapter, f->folder, "adapter");
    in(f->output, f->folder, "output");
    write_config(f->folder, c->arch);
    f->set = write_adapter(f->adapter, c, zero);
}

static void teardown(fixture *f)
{
    ql_adapters_destroy(f->set);
    test_folder_remove(f->folder);
}

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

/* ---- export ---- */

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

/* ---- merge ---- */

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
    ck_assert_fails(ql_adapter_export(QL_EXPORT_GGUF, f.adapter, f.model, "/nowhere/a.gguf", &f.err), QL_ERR_IO, &f.err,
                    "/nowhere/a.gguf");
    const char *quantized = "{\"model_type\": \"llama\", \"quantization_config\": {\"quant_method\": \"gptq\"}}";
    test_file(f.folder, "config.json", quantized, strlen(quantized));
    ck_assert_fails(ql_merge(&report, f.model, f.adapter, f.output, &options, NULL, &f.err), QL_ERR_UNSUPPORTED, &f.err,
                    "GPTQ");
    teardown(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("convert");
    TCase *tc = tcase_create("convert");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, gguf_adds_the_same, 0, CASES);
    tcase_add_loop_test(tc, mlx_adds_the_same, 0, CASES);
    tcase_add_test(tc, magnitudes_go_along);
    tcase_add_loop_test(tc, peft_stays_as_it_is, 0, CASES);
    tcase_add_test(tc, rows_lie_as_in_files_of_other_programs);
    tcase_add_loop_test(tc, an_adapter_of_zeros_changes_no_bit, 0, 3);
    tcase_add_loop_test(tc, merges_what_the_adapter_adds, 0, 6);
    tcase_add_test(tc, merged_models_say_the_same);
    tcase_add_test(tc, refuses);
    suite_add_tcase(suite, tc);
    return test_run(suite);
}
