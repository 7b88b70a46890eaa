/* Any bytes as JSON and as JSON lines: parsed or refused, and every getter answers. */
#include <string.h>

#include "fuzz.h"
#include "io/json.h"

static void get_everything(const ql_json_at *root)
{
    const char *key, *text;
    json_t *value;
    int64_t integer;
    size_t size;
    double real;
    bool flag;
    ql_json_at child;
    ql_error err = {0};
    json_object_foreach((json_t *)root->value, key, value)
    {
        ql_json_get_int(root, key, QL_REQUIRED, -5, 5, &integer, &err);
        ql_json_get_size(root, key, QL_OPTIONAL, 0, 5, &size, &err);
        ql_json_get_double(root, key, QL_REQUIRED, -5, 5, &real, &err);
        ql_json_get_bool(root, key, QL_OPTIONAL, &flag, &err);
        ql_json_get_string(root, key, QL_REQUIRED, &text, NULL, &err);
        ql_json_get_object(root, key, QL_OPTIONAL, &child, &err);
        if (ql_json_get_array(root, key, QL_REQUIRED, &child, &err) == QL_OK) {
            child = ql_json_element(&child, 0);
            ql_json_get_int(&child, "x", QL_REQUIRED, 0, 5, &integer, &err);
        }
        FUZZ_CHECK(!strchr(err.message, '\n'));
    }
}

static void read_lines(const char *path)
{
    ql_jsonl lines;
    json_t *value;
    ql_error err = {0};
    FUZZ_CHECK(ql_jsonl_open(&lines, path, &err) == QL_OK);
    while (ql_jsonl_next(&lines, &value, &err) == QL_OK && value) {
        ql_json_at root = ql_jsonl_root(&lines, value);
        get_everything(&root);
        json_decref(value);
    }
    ql_jsonl_close(&lines);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *path = fuzz_file("x.json", (fuzz_part){data, size});
    json_t *value;
    ql_error err = {0};
    if (fuzz_went_well(ql_json_read(&value, path, &err), &err)) {
        ql_json_at root = ql_json_root(path, value);
        get_everything(&root);
        json_decref(value);
    }
    read_lines(path);
    return 0;
}
