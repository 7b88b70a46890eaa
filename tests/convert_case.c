#include "convert_case.h"

#include <math.h>
#include <stdio.h>

#include "base/rng.h"

const char *const hf_names[QL_MODULES] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                                 "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                                 "mlp.down_proj"};
const size_t inputs[QL_MODULES] = {32, 32, 32, 32, 32, 32, 48}, outputs[QL_MODULES] = {32, 16, 16, 32, 48, 48, 32};

const char *in(path_text path, const char *folder, const char *name)
{
    int length = snprintf(path, sizeof(path_text), "%s/%s", folder, name);
    ck_assert(length > 0 && (size_t)length < sizeof(path_text));
    return path;
}

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

const adapter_case cases[] = {
    {"llama", false, false, 16}, {"llama", true, false, 16}, {"llama", false, true, 12}, {"llama", true, true, 12},
    {"llama", false, true, 0},   {"qwen2", false, false, 8}, {"qwen3", true, true, 8},
};

static size_t rank_of(const adapter_case *c, size_t i)
{
    return c->patterns && i % 3 == 1 ? 6 : RANK;
}

double scaling_of(const adapter_case *c, size_t i)
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

double delta(const ql_adapter *a, double scaling, size_t row, size_t col, double *magnitude)
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

void setup(fixture *f, const adapter_case *c, bool zero)
{
    *f = (fixture){.folder = test_folder()};
    in(f->model, f->folder, ".");
    in(f->adapter, f->folder, "adapter");
    in(f->output, f->folder, "output");
    write_config(f->folder, c->arch);
    f->set = write_adapter(f->adapter, c, zero);
}

void teardown(fixture *f)
{
    ql_adapters_destroy(f->set);
    test_folder_remove(f->folder);
}
