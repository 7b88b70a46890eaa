/* Changes of the file of packed weights that a model has written: a letter for its format, and where and how. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

enum { FORMATS = 5 };

static const char config_json[] =
    "{\"model_type\": \"llama\", \"vocab_size\": 3, \"hidden_size\": 8, \"intermediate_size\": 6, "
    "\"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 4, "
    "\"max_position_embeddings\": 16, \"tie_word_embeddings\": true}";

/* FOLDER/model. */
static const char *model_folder(void)
{
    static char folder[128], path[160];
    static const struct {
        const char *name;
        size_t n, k;
    } shapes[] = {{"embed_tokens", 3, 8},
                  {"norm", 8, 0},
                  {"layers.0.input_layernorm", 8, 0},
                  {"layers.0.post_attention_layernorm", 8, 0},
                  {"layers.0.self_attn.q_proj", 8, 8},
                  {"layers.0.self_attn.k_proj", 4, 8},
                  {"layers.0.self_attn.v_proj", 4, 8},
                  {"layers.0.self_attn.o_proj", 8, 8},
                  {"layers.0.mlp.gate_proj", 6, 8},
                  {"layers.0.mlp.up_proj", 6, 8},
                  {"layers.0.mlp.down_proj", 8, 6}};
    enum { COUNT = sizeof shapes / sizeof *shapes };
    static float values[64];
    static char names[COUNT][80];
    ql_tensor tensors[COUNT] = {{0}};
    if (folder[0])
        return folder;
    for (size_t i = 0; i < 64; i++)
        values[i] = (float)(i * 37 % 64) / 64 - 0.5f;
    for (size_t i = 0; i < COUNT; i++) {
        snprintf(names[i], sizeof names[i], "model.%s.weight", shapes[i].name);
        tensors[i] = (ql_tensor){.name = names[i], .dtype = QL_F32, .ndim = shapes[i].k ? 2 : 1,
                                 .shape = {shapes[i].n, shapes[i].k}, .data = values};
    }
    snprintf(folder, sizeof folder, "%s/model", fuzz_folder());
    FUZZ_CHECK(mkdir(folder, 0700) == 0);
    fuzz_file("model/config.json", (fuzz_part){(const uint8_t *)config_json, sizeof config_json - 1});
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    FUZZ_CHECK(!ql_safetensors_write(path, tensors, COUNT, NULL, 0, NULL));
    return folder;
}

static void open_cached(ql_model_cache *cache, size_t format_index)
{
    static const char *const names[FORMATS] = {"nf4", "fp4", "int4", "int8", "bnb-nf4"};
    ql_format format;
    ql_model *model;
    ql_error err = {0};
    FUZZ_CHECK(!ql_format_parse(&format, names[format_index], 64, true, NULL));
    *cache = (ql_model_cache){.dir = fuzz_folder()};
    if (fuzz_went_well(ql_model_open_cached(&model, model_folder(), format, cache, fuzz_workers(), &err), &err) &&
        cache->used)
        fuzz_use_model(model);
    ql_model_destroy(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static fuzz_own files[FORMATS];
    static char paths[FORMATS][4096];
    size_t format = size ? data[0] % FORMATS : 0;
    ql_model_cache cache;
    char *path = paths[format];
    if (!files[format].size) {
        open_cached(&cache, format);
        FUZZ_CHECK(cache.written);
        strcpy(path, cache.path);
        fuzz_own_read(&files[format], path);
    }
    fuzz_own_change(&files[format], path, size ? data + 1 : data, size ? size - 1 : 0);
    open_cached(&cache, format);
    FUZZ_CHECK(cache.used || cache.reason[0]);
    if (!cache.used && fuzz_own_heal(&files[format], path, cache.reason))
        open_cached(&cache, format);
    return 0;
}
