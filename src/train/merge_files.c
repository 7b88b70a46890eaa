#include "train/merge_files.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "io/json.h"
#include "io/path.h"
#include "qlora/io.h"

#define CONFIG "config.json"

static const char *const copied[] = {
    "tokenizer.json",     "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt",         "tokenizer.model",       "chat_template.jinja",     "chat_template.json",
    "generation_config.json",
};

ql_status ql_merge_check_folders(const char *model, const char *output, ql_error *err)
{
    struct stat a, b;
    if (stat(model, &a) == 0 && stat(output, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino)
        return ql_fail(err, QL_ERR_ARG, "%s: this is the model itself; merge into another place", output);
    return QL_OK;
}

static ql_status copy(const char *from, const char *to, ql_error *err)
{
    ql_map map;
    if (!ql_path_is_file(from))
        return QL_OK;
    ql_status status = ql_map_open(&map, from, err);
    if (status)
        return status;
    status = ql_file_write(to, map.data, map.size, err);
    ql_map_close(&map);
    return status;
}

ql_status ql_merge_copy_files(const char *model, const char *output, ql_error *err)
{
    ql_status status = QL_OK;
    for (size_t i = 0; i < sizeof copied / sizeof *copied && !status; i++) {
        char *from = ql_path_join(model, copied[i]), *to = ql_path_join(output, copied[i]);
        status = from && to ? copy(from, to, err) : ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", output);
        free(from);
        free(to);
    }
    return status;
}

static ql_status read_config(json_t **out, const char *model, ql_error *err)
{
    *out = NULL;
    char *path = ql_path_join(model, CONFIG);
    ql_status status = path ? ql_json_read(out, path, err) : ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", model);
    free(path);
    return status;
}

static const char *torch_name(ql_dtype type)
{
    return type == QL_F32 ? "float32" : type == QL_F16 ? "float16" : "bfloat16";
}

ql_status ql_merge_write_config(const char *model, const char *output, const ql_dtype *dtype, ql_error *err)
{
    json_t *config;
    ql_status status = read_config(&config, model, err);
    if (status)
        return status;
    json_object_del(config, "quantization_config"); /* nothing that is written is quantized */
    /* Newer writers say "dtype"; the older name is read by all. */
    bool set = !dtype || json_object_set_new(config, "torch_dtype", json_string(torch_name(*dtype))) == 0;
    if (set && dtype && json_object_get(config, "dtype"))
        set = json_object_set_new(config, "dtype", json_string(torch_name(*dtype))) == 0;
    char *path = ql_path_join(output, CONFIG), *text = set ? json_dumps(config, JSON_INDENT(2)) : NULL;
    if (path && text) {
        size_t length = strlen(text);
        text[length] = '\n'; /* over the NUL: what is written needs none */
        status = ql_file_write(path, text, length + 1, err);
    } else {
        status = ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", output);
    }
    free(text);
    free(path);
    json_decref(config);
    return status;
}
