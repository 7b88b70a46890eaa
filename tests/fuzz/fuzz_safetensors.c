/* Any bytes as a safetensors file. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ql_error err = {0};
    ql_tensors *tensors;
    if (fuzz_went_well(ql_tensors_open(&tensors, fuzz_file("x.safetensors", (fuzz_part){data, size}), &err), &err))
        fuzz_use_tensors(tensors);
    ql_tensors_close(tensors);
    return 0;
}
