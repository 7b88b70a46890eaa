/* Any bytes as a GGUF file: tensors and metadata. */
#include "fuzz.h"
#include "io/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ql_error err = {0};
    ql_tensors *tensors;
    const char *path = fuzz_file("x.gguf", (fuzz_part){data, size});
    if (fuzz_went_well(ql_tensors_open(&tensors, path, &err), &err))
        fuzz_use_tensors(tensors);
    ql_tensors_close(tensors);
    ql_path_is_gguf(path);
    return 0;
}
