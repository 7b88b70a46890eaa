/* A Hugging Face folder: a letter for the format to quantize to, config.json, and the header and the data of
 * model.safetensors. */
#include "fuzz.h"

static ql_format format_of(const fuzz_part *choice)
{
    static const char *const names[] = {"none", "nf4", "fp4", "int4", "int8", "nf4"};
    size_t i = choice->size ? choice->data[0] % 6 : 0;
    ql_format format;
    FUZZ_CHECK(ql_format_parse(&format, names[i], i == 5 ? 32 : 64, i != 5, NULL) == QL_OK);
    return format;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"config.json"};
    fuzz_part parts[4];
    ql_error err = {0};
    ql_model *model;
    fuzz_divide(parts, 4, data, size);
    fuzz_files(names, parts + 1, 1);
    fuzz_safetensors("model.safetensors", parts[2], parts[3]);
    if (fuzz_went_well(ql_model_open(&model, fuzz_folder(), format_of(&parts[0]), fuzz_workers(), &err), &err))
        fuzz_use_model(model);
    ql_model_destroy(model);
    return 0;
}
