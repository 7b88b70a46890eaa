/* What the tests of data sets share: a tokenizer of single letters, small files read with it, samples spelled out. */
#ifndef QL_TESTS_DATA_SUPPORT_H
#define QL_TESTS_DATA_SUPPORT_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/path.h"
#include "qlora/data.h"
#include "support.h"

static ql_error err;
static ql_tokenizer *tokenizer;
static char *folder;

/* A byte-level tokenizer whose tokens are single letters; 0 is BOS, 1 EOS, letters and blank follow. */
static inline void write_tokenizer(bool add_bos)
{
    char *path = ql_path_join(folder, "tokenizer.json");
    FILE *file = fopen(path, "w");
    fputs("{\"version\":\"1.0\",\"added_tokens\":[{\"id\":0,\"content\":\"<s>\",\"special\":true},"
          "{\"id\":1,\"content\":\"</s>\",\"special\":true},"
          "{\"id\":30,\"content\":\"<|im_start|>\",\"special\":true},"
          "{\"id\":31,\"content\":\"<|im_end|>\",\"special\":true}],\"normalizer\":null,"
          "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
          "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},"
          "\"model\":{\"type\":\"BPE\",\"vocab\":{\"<s>\":0,\"</s>\":1,\"\\u0120\":2",
          file);
    for (int i = 0; i < 26; i++)
        fprintf(file, ",\"%c\":%d", 'a' + i, 3 + i);
    fputs(",\"\\u010a\":29,\"<|im_start|>\":30,\"<|im_end|>\":31},\"merges\":[]}}", file);
    fclose(file);
    free(path);
    path = ql_path_join(folder, "tokenizer_config.json");
    file = fopen(path, "w");
    fprintf(file, "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_bos_token\":%s}", add_bos ? "true" : "false");
    fclose(file);
    free(path);
}

static inline void setup_with(bool add_bos)
{
    folder = test_folder();
    write_tokenizer(add_bos);
    ck_assert_ok(ql_tokenizer_open(&tokenizer, folder, &err), &err);
}

static inline void setup(void)
{
    setup_with(false);
}

static inline void teardown(void)
{
    ql_tokenizer_close(tokenizer);
    test_folder_remove(folder);
}

static inline ql_status open_bytes(ql_dataset **out, const char *name, const void *bytes, size_t size,
                                   const ql_data_options *options)
{
    char *path = ql_path_join(folder, name);
    FILE *file = fopen(path, "wb");
    fwrite(bytes, 1, size, file);
    fclose(file);
    ql_status status = ql_dataset_open(out, path, tokenizer, options, &err);
    free(path);
    return status;
}

static inline ql_status open_text(ql_dataset **out, const char *name, const char *text, size_t sequence)
{
    ql_data_options options = ql_data_options_defaults();
    options.sequence = sequence;
    return open_bytes(out, name, text, strlen(text), &options);
}

/* A sample as letters, "<" for BOS, ">" for EOS; tokens that are not learned in capitals ("(" and ")" then). */
static inline const char *spelled(const ql_dataset *dataset, size_t index)
{
    static char text[256];
    ql_sample sample = ql_dataset_sample(dataset, index);
    for (size_t i = 0; i < sample.length; i++) {
        int id = sample.ids[i];
        const char *signs = sample.learn[i] ? "<> " : "()_";
        text[i] = id < 3 ? signs[id] : (char)((sample.learn[i] ? 'a' : 'A') + id - 3);
    }
    text[sample.length] = 0;
    return text;
}

/* Two turns of the assistant. */
static const char chat[] =
    "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},"
    "{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"}]}";

#endif
