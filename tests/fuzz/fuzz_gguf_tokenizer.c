/* The tokenizer in a GGUF file's metadata. The text is what the file ends in. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { TEXT = 48 };
    ql_tokenizer *tokenizer;
    ql_error err = {0};
    const char *path = fuzz_file("x.gguf", (fuzz_part){data, size});
    if (fuzz_went_well(ql_tokenizer_open(&tokenizer, path, &err), &err)) {
        size_t length = size < TEXT ? size : TEXT;
        fuzz_use_tokenizer(tokenizer, (fuzz_part){data + size - length, length});
    }
    ql_tokenizer_close(tokenizer);
    return 0;
}
