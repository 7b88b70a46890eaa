/* A checkpoint, with which a run is to go on: its header and its data, or "P" and changes of the run's own. */
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

static ql_status resume(const char *path, ql_error *err)
{
    ql_step_report report;
    ql_status status = ql_trainer_resume(trainer(), path, err);
    if (fuzz_went_well(status, err) && ql_trainer_done(trainer()) < ql_trainer_steps(trainer()))
        fuzz_went_well(ql_trainer_step(trainer(), &report, err), err);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static fuzz_own own;
    fuzz_part parts[2];
    ql_error err = {0};
    if (!size || data[0] != 'P') {
        fuzz_divide(parts, 2, data, size);
        resume(fuzz_safetensors("run.ckpt", parts[0], parts[1]), &err);
        return 0;
    }
    const char *path = fuzz_file("own.ckpt", (fuzz_part){data, 0});
    if (!own.size) {
        FUZZ_CHECK(!ql_trainer_save(trainer(), path, NULL));
        fuzz_own_read(&own, path);
    }
    fuzz_own_change(&own, path, data + 1, size - 1);
    if (resume(path, &err) && fuzz_own_heal(&own, path, err.message))
        resume(path, &err);
    return 0;
}
