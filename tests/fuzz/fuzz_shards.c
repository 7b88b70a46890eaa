/* A folder of an index and two safetensors files: index, and the header and the data of each. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const index[] = {"model.safetensors.index.json"};
    fuzz_part parts[5];
    ql_error err = {0};
    ql_tensors *tensors;
    fuzz_divide(parts, 5, data, size);
    fuzz_files(index, parts, 1);
    fuzz_safetensors("a.safetensors", parts[1], parts[2]);
    fuzz_safetensors("b.safetensors", parts[3], parts[4]);
    if (fuzz_went_well(ql_tensors_open(&tensors, fuzz_folder(), &err), &err))
        fuzz_use_tensors(tensors);
    ql_tensors_close(tensors);
    return 0;
}
