/* A text, and the files of a tokenizer. */
#include "fuzz.h"
#include "text/gguf_put.h"

/* As metadata of a GGUF file. */
static void put(const ql_tokenizer *tokenizer)
{
    ql_gguf_meta meta = {0};
    ql_error err = {0};
    fuzz_went_well(ql_tokenizer_put_gguf(&meta, fuzz_folder(), ql_tokenizer_vocab(tokenizer) + 1, &err), &err);
    ql_gguf_meta_free(&meta);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"tokenizer.json",         "tokenizer_config.json", "special_tokens_map.json",
                                        "generation_config.json", "config.json",           "chat_template.jinja"};
    enum { FILES = sizeof names / sizeof *names };
    fuzz_part parts[1 + FILES];
    ql_tokenizer *tokenizer;
    ql_error err = {0};
    fuzz_divide(parts, 1 + FILES, data, size);
    fuzz_files(names, parts + 1, FILES);
    if (fuzz_went_well(ql_tokenizer_open(&tokenizer, fuzz_folder(), &err), &err)) {
        fuzz_use_tokenizer(tokenizer, parts[0]);
        put(tokenizer);
    }
    ql_tokenizer_close(tokenizer);
    return 0;
}
