/* A model that a given adapter is merged into. An input with dividers is a folder: config.json, and the header and the
 * data of model.safetensors. Others are GGUF files. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "qlora/convert.h"

static const char adapter_config[] = "{\"peft_type\": \"LORA\", \"r\": 1, \"target_modules\": "
                                     "\".*\\\\.0\\\\.(self_attn\\\\.q|mlp\\\\.down)_proj\"}";
static const char adapter_header[] =
    "{\"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight\": {\"dtype\": \"F32\", \"shape\": [1, 8], "
    "\"data_offsets\": [0, 32]}, \"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight\": {\"dtype\": \"F32\", "
    "\"shape\": [8, 1], \"data_offsets\": [32, 64]}, \"base_model.model.model.layers.0.mlp.down_proj.lora_A.weight\": "
    "{\"dtype\": \"F32\", \"shape\": [1, 32], \"data_offsets\": [64, 192]}, "
    "\"base_model.model.model.layers.0.mlp.down_proj.lora_B.weight\": {\"dtype\": \"F32\", \"shape\": [8, 1], "
    "\"data_offsets\": [192, 224]}}";

static void merge(const char *model, const char *output, const ql_merge_options *options)
{
    ql_merge_report report;
    ql_error err = {0};
    fuzz_went_well(ql_merge(&report, model, fuzz_folder(), output, options, fuzz_workers(), &err), &err);
}

/* As stored, as one of the other types, and what quantization leaves. */
static void merge_all(const char *model, bool gguf, size_t choice)
{
    static const ql_code types[] = {QL_CODE_F32, QL_CODE_F16, QL_CODE_BF16, QL_CODE_Q8_0, QL_CODE_Q4_0};
    char output[128];
    ql_merge_options options = ql_merge_options_defaults();
    snprintf(output, sizeof output, "%s/%s", fuzz_folder(), gguf || choice & 1 ? "out.gguf" : "out");
    merge(model, output, &options);
    options.as_stored = false;
    options.type = types[choice / 2 % 5];
    options.quantized = choice & 32;
    merge(model, output, &options);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"config.json"};
    static const uint8_t zeros[224];
    const fuzz_part config = {(const uint8_t *)adapter_config, sizeof adapter_config - 1};
    const fuzz_part header = {(const uint8_t *)adapter_header, sizeof adapter_header - 1};
    fuzz_part parts[3];
    fuzz_file("adapter_config.json", config);
    fuzz_safetensors("adapter_model.safetensors", header, (fuzz_part){zeros, sizeof zeros});
    fuzz_divide(parts, 3, data, size);
    bool gguf = size >= 4 && memcmp(data, "GGUF", 4) == 0;
    if (gguf) {
        merge_all(fuzz_file("x.gguf", (fuzz_part){data, size}), true, size);
    } else {
        fuzz_files(names, parts, 1);
        fuzz_safetensors("model.safetensors", parts[1], parts[2]);
        merge_all(fuzz_folder(), false, size);
    }
    return 0;
}
