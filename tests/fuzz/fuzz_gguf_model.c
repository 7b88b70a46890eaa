/* A GGUF file as a model: kept as stored, and quantized. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *path = fuzz_file("x.gguf", (fuzz_part){data, size});
    ql_format formats[2] = {{0}, ql_format_default()};
    ql_error err = {0};
    if (!fuzz_went_well(ql_model_default_format(&formats[0], path, &err), &err))
        return 0;
    for (size_t i = 0; i < 2; i++) {
        ql_model *model;
        if (fuzz_went_well(ql_model_open(&model, path, formats[i], fuzz_workers(), &err), &err))
            fuzz_use_model(model);
        ql_model_destroy(model);
    }
    return 0;
}
