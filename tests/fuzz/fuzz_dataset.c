/* A data set, after a line of one letter: which tokenizer, format and options it is read with. */
#include <stdio.h>
#include <string.h>

#include "fuzz.h"
#include "qlora/data.h"

static const char byte_level[] = "{\"added_tokens\": [{\"id\": 256, \"content\": \"<|im_start|>\", \"special\": true}, "
                                 "{\"id\": 257, \"content\": \"<|im_end|>\", \"special\": true}], "
                                 "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
                                 "\"use_regex\": true}, \"decoder\": {\"type\": \"ByteLevel\"}, "
                                 "\"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {";
static const char fallback[] = "{\"added_tokens\": [{\"id\": 256, \"content\": \"<s>\", \"special\": true}, "
                               "{\"id\": 257, \"content\": \"</s>\", \"special\": true}], "
                               "\"normalizer\": {\"type\": \"Prepend\", \"prepend\": \"_\"}, "
                               "\"decoder\": {\"type\": \"ByteFallback\"}, \"post_processor\": {\"type\": "
                               "\"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<s>\"}}, {\"Sequence\": "
                               "{\"id\": \"A\"}}], \"special_tokens\": {\"<s>\": {\"ids\": [256]}}}, "
                               "\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"merges\": [], \"vocab\": {";
static const char chatml[] = "{\"eos_token\": \"<|im_end|>\", \"chat_template\": "
                             "\"{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}\"}";
static const char llama2[] = "{\"bos_token\": \"<s>\", \"eos_token\": \"</s>\", \"chat_template\": "
                             "\"{% for m in messages %}<s>{% if m.role == 'assistant' %}{% generation %}{{ m.content ~ eos_token }}"
                             "{% endgeneration %}{% else %}[{{ m.content }}]{% endif %}{% endfor %}\"}";

/* The 256 bytes as tokens: GPT-2's characters for them, or "<0x..>". */
static void write_tokenizer(const char *start, bool named, const char *config)
{
    static char text[16384];
    size_t used = (size_t)snprintf(text, sizeof text, "%s", start);
    for (int byte = 0, next = 0x100; byte < 256; byte++) {
        bool plain = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
        used += (size_t)snprintf(text + used, sizeof text - used,
                                 named ? "%s\"<0x%02X>\": %d" : "%s\"\\u%04x\": %d", byte ? ", " : "",
                                 named || plain ? byte : next++, byte);
    }
    used += (size_t)snprintf(text + used, sizeof text - used, "}}}");
    fuzz_file("tokenizer.json", (fuzz_part){(const uint8_t *)text, used});
    fuzz_file("tokenizer_config.json", (fuzz_part){(const uint8_t *)config, strlen(config)});
}

static ql_tokenizer *tokenizer_of(bool llama)
{
    static ql_tokenizer *tokenizers[2];
    ql_error err = {0};
    if (!tokenizers[llama]) {
        write_tokenizer(llama ? fallback : byte_level, llama, llama ? llama2 : chatml);
        FUZZ_CHECK(fuzz_went_well(ql_tokenizer_open(&tokenizers[llama], fuzz_folder(), &err), &err));
    }
    return tokenizers[llama];
}

static void use(ql_dataset *data)
{
    volatile size_t sum = 0;
    uint64_t seed = 3;
    ql_dataset *held_out;
    ql_error err = {0};
    for (size_t i = 0; i < ql_dataset_count(data); i++) {
        ql_sample sample = ql_dataset_sample(data, i);
        FUZZ_CHECK(sample.length >= 2 && !sample.learn[0]);
        for (size_t j = 0; j < sample.length; j++)
            sum += (size_t)sample.ids[j] + sample.learn[j];
    }
    for (size_t i = 0; i < ql_dataset_warnings(data); i++)
        sum += strlen(ql_dataset_warning(data, i));
    if (fuzz_went_well(ql_dataset_split(data, 0.3, sum % 2 ? &seed : NULL, &held_out, &err), &err))
        FUZZ_CHECK(ql_dataset_count(held_out) && ql_dataset_count(data));
    ql_dataset_close(held_out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"x.txt", "x.jsonl"};
    static const char *const templates[] = {NULL, "chatml", "llama3", "zephyr"};
    unsigned choice = size ? data[0] : 0;
    size_t line = size > 1 && data[1] == '\n' ? 2 : 0; /* text editors make the rest a file */
    ql_data_options options = ql_data_options_defaults();
    ql_dataset *dataset;
    ql_error err = {0};
    options.sequence = choice & 1 ? 4 : 40;
    options.mask_prompt = choice & 2;
    options.bos = choice & 4 ? QL_BOS_ALWAYS : QL_BOS_AUTO;
    options.chat_template = templates[choice >> 3 & 3];
    const char *path = fuzz_file(names[!(choice & 32)], (fuzz_part){data + line, size - line});
    if (fuzz_went_well(ql_dataset_open(&dataset, path, tokenizer_of(choice & 64), &options, &err), &err))
        use(dataset);
    ql_dataset_close(dataset);
    return 0;
}
