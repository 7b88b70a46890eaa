/* A config.json, and what is planned from it without any weights. */
#include "fuzz.h"
#include "qlora/train.h"

static void plan(const ql_model_config *config)
{
    ql_train_options options = ql_train_options_defaults();
    ql_lora_options lora = ql_lora_options_defaults();
    ql_trainer_bytes bytes;
    ql_model *model;
    ql_error err = {0};
    const ql_train_shape shape = {.samples = 100, .longest = 512};
    ql_model_config_parameters(config);
    if (!fuzz_went_well(ql_model_plan(&model, config, ql_format_default(), &err), &err))
        return;
    ql_model_memory(model);
    if (fuzz_went_well(ql_model_attach(model, &lora, &err), &err)) {
        fuzz_went_well(ql_train_plan(&bytes, model, shape, &options, 2, &err), &err);
        fuzz_went_well(ql_train_fit(&options, model, shape, 2, 1 << 20, (size_t)1 << 33, &err), &err);
    }
    ql_model_destroy(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"config.json"};
    ql_model_config config;
    ql_error err = {0};
    fuzz_files(names, &(fuzz_part){data, size}, 1);
    if (fuzz_went_well(ql_model_config_read(&config, fuzz_folder(), &err), &err))
        plan(&config);
    return 0;
}
