/* Whatever qlora inspect looks into: a letter for the kind, a line's end, and the bytes of the file; of folders the
 * config, and the header and the data of the tensors. */
#include <string.h>

#include "fuzz.h"
#include "qlora/inspect.h"

static const char *const names[] = {"x.gguf", "x.safetensors", "x.json", "tokenizer.json", "config.json",
                                    "model.safetensors", "adapter_config.json", "adapter_model.safetensors"};
enum { NAMES = sizeof names / sizeof *names };

static const char *write_folder(const char *config, const char *weights, fuzz_part bytes)
{
    fuzz_part parts[3];
    fuzz_divide(parts, 3, bytes.data, bytes.size);
    fuzz_file(config, parts[0]);
    fuzz_safetensors(weights, parts[1], parts[2]);
    return fuzz_folder();
}

static const char *write_input(uint8_t kind, fuzz_part bytes)
{
    static const fuzz_part nothing[NAMES];
    fuzz_files(names, nothing, NAMES);
    switch (kind) {
    case 'g':
        return fuzz_file("x.gguf", bytes);
    case 's':
        return fuzz_file("x.safetensors", bytes);
    case 'j':
        return fuzz_file("x.json", bytes);
    case 't':
        return fuzz_file("tokenizer.json", bytes);
    case 'm':
        return write_folder("config.json", "model.safetensors", bytes);
    default:
        return write_folder("adapter_config.json", "adapter_model.safetensors", bytes);
    }
}

static size_t length_of(const ql_facts *facts)
{
    size_t length = 0;
    for (size_t i = 0; i < facts->count; i++)
        length += strlen(facts->at[i].name) + (facts->at[i].text ? strlen(facts->at[i].text) : 0);
    return length;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const ql_inspect_options options = {.values = true, .threads = 1};
    volatile size_t sum = 0;
    ql_inspection *in;
    ql_error err = {0};
    if (size < 2)
        return 0;
    const char *path = write_input(data[0], (fuzz_part){data + 2, size - 2});
    if (!fuzz_went_well(ql_inspect(&in, path, &options, &err), &err))
        return 0;
    const ql_findings *findings = ql_inspection_findings(in);
    sum += strlen(ql_inspection_kind(in)) + length_of(ql_inspection_facts(in)) + length_of(ql_inspection_metadata(in));
    for (size_t i = 0; i < findings->count; i++)
        sum += strlen(findings->at[i].text);
    if (ql_inspection_tensors(in))
        fuzz_use_tensors(ql_inspection_tensors(in));
    ql_inspection_close(in);
    (void)sum;
    return 0;
}
