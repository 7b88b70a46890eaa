/* A PEFT adapter: adapter_config.json, and the header and the data of adapter_model.safetensors. It is put onto a model
 * and written in every form. */
#include <stdio.h>

#include "fuzz.h"
#include "qlora/convert.h"
#include "qlora/train.h"

static const char config_json[] =
    "{\"model_type\": \"llama\", \"vocab_size\": 5, \"hidden_size\": 8, \"intermediate_size\": 6, "
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 4, "
    "\"max_position_embeddings\": 16}";

static ql_model *base(const char *folder)
{
    static ql_model *model;
    ql_model_config config;
    ql_error err = {0};
    if (!model) {
        FUZZ_CHECK(fuzz_went_well(ql_model_config_read(&config, folder, &err), &err));
        FUZZ_CHECK(fuzz_went_well(ql_model_random(&model, &config, ql_format_default(), 1, fuzz_workers(), &err), &err));
    }
    return model;
}

static void export(const char *folder)
{
    static const char *const names[] = {[QL_EXPORT_PEFT] = "peft", [QL_EXPORT_GGUF] = "out.gguf", [QL_EXPORT_MLX] = "mlx"};
    char output[128];
    ql_error err = {0};
    for (ql_export target = QL_EXPORT_PEFT; target <= QL_EXPORT_MLX; target++) {
        snprintf(output, sizeof output, "%s/%s", folder, names[target]);
        fuzz_went_well(ql_adapter_export(target, folder, folder, output, &err), &err);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"adapter_config.json"};
    const char *folder = fuzz_folder();
    fuzz_part parts[3];
    ql_error err = {0};
    fuzz_divide(parts, 3, data, size);
    fuzz_files(names, parts, 1);
    fuzz_safetensors("adapter_model.safetensors", parts[1], parts[2]);
    fuzz_file("config.json", (fuzz_part){(const uint8_t *)config_json, sizeof config_json - 1});
    ql_model *model = base(folder);
    if (fuzz_went_well(ql_adapter_load(model, folder, size % 2, &err), &err)) {
        fuzz_use_model(model);
        export(folder);
    }
    return 0;
}
