/* A checkpoint, with which a run is to go on: its header and its data, or "P" and changes of the run's own. */
#include <stdio.h>
#include <string.h>

#include "fuzz.h"
#include "qlora/train.h"

static ql_trainer *trainer(void)
{
    static ql_trainer *trainer;
    static const int32_t ids[8] = {1, 2, 3, 4, 0, 1, 2, 3};
    static const uint8_t learn[8] = {0, 1, 1, 1, 1, 1, 1, 1};
    static const ql_sample sample = {ids, learn, 8};
    const ql_model_config config = {.vocab_size = 5, .hidden_size = 8, .intermediate_size = 6, .layers = 1, .heads = 2,
                                    .kv_heads = 1, .head_dim = 4, .max_positions = 16, .rms_norm_eps = 1e-6,
                                    .rope_theta = 1e4, .tied = true};
    ql_lora_options lora = ql_lora_options_defaults();
    ql_train_options options = ql_train_options_defaults();
    ql_format format;
    ql_model *model;
    ql_dataset *data;
    if (trainer)
        return trainer;
    lora.rank = 1;
    options.batch_size = 1;
    options.steps = 6;
    FUZZ_CHECK(!ql_format_parse(&format, "none", 0, false, NULL));
    FUZZ_CHECK(!ql_model_random(&model, &config, format, 1, fuzz_workers(), NULL));
    FUZZ_CHECK(!ql_model_attach(model, &lora, NULL));
    FUZZ_CHECK(!ql_dataset_from_samples(&data, &sample, 1, NULL));
    FUZZ_CHECK(!ql_trainer_create(&trainer, model, data, &options, fuzz_workers(), NULL));
    return trainer;
}

/* The run's own checkpoint with some bytes changed: two of place and one of value for each. */
static const char *patched(const uint8_t *data, size_t size)
{
    static uint8_t own[8192], copy[sizeof own];
    static size_t length;
    if (!length) {
        const char *path = fuzz_file("run.ckpt", (fuzz_part){own, 0});
        FUZZ_CHECK(!ql_trainer_save(trainer(), path, NULL));
        FILE *file = fopen(path, "rb");
        FUZZ_CHECK(file && (length = fread(own, 1, sizeof own, file)) > 0 && length < sizeof own);
        fclose(file);
    }
    memcpy(copy, own, length);
    for (size_t i = 0; i + 2 < size; i += 3)
        copy[(data[i] << 8 | data[i + 1]) % length] = data[i + 2];
    return fuzz_file("run.ckpt", (fuzz_part){copy, length});
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_part parts[2];
    ql_error err = {0};
    ql_step_report report;
    const char *path;
    fuzz_divide(parts, 2, data, size);
    if (size && data[0] == 'P')
        path = patched(data + 1, size - 1);
    else
        path = fuzz_safetensors("run.ckpt", parts[0], parts[1]);
    if (fuzz_went_well(ql_trainer_resume(trainer(), path, &err), &err) &&
        ql_trainer_done(trainer()) < ql_trainer_steps(trainer()))
        fuzz_went_well(ql_trainer_step(trainer(), &report, &err), &err);
    return 0;
}
