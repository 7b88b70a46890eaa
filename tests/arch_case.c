#include "arch_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "gguf_case.h"
#include "io/path.h"
#include "model/model.h"
#include "qlora/train.h"
#include "support.h"

static ql_error err;

uint64_t arch_case_bits(const char *name, uint64_t index)
{
    uint64_t x = 0xCBF29CE484222325u;
    for (; *name; name++)
        x = (x ^ (unsigned char)*name) * 0x100000001B3u;
    x += (index + 1) * 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

static float *numbers_of(const char *name, size_t count, bool vector, bool offset_norms)
{
    float *x = malloc(count * sizeof *x);
    bool lora = strstr(name, "lora_") != NULL, norm = !lora && strstr(name, "norm");
    double offset = norm && !offset_norms ? 1 : 0;
    double spread = strstr(name, "lora_B") || (vector && !norm) ? 0.25 : strstr(name, "embed") ? 1 : 0.5;
    int shift = lora ? 55 : 41; /* adapters hold FP16 */
    for (size_t i = 0; i < count; i++)
        x[i] = (float)(offset + spread * ((double)(arch_case_bits(name, i) >> shift) / ldexp(1, 63 - shift) - 1));
    return x;
}

enum { TENSORS = 160 };

/* FOLDER/FILE of tensors of these shapes; a name in the file is before + name + after. */
static void write_tensors(const char *folder, const char *file, const json_t *shapes, const char *before,
                          const char *after, bool offset_norms)
{
    static char full[TENSORS][160];
    ql_tensor tensors[TENSORS] = {0};
    size_t count = 0;
    const char *name;
    json_t *shape;
    json_object_foreach((json_t *)(uintptr_t)shapes, name, shape)
    {
        ck_assert_uint_lt(count, TENSORS);
        ql_tensor *t = &tensors[count];
        snprintf(full[count], sizeof full[count], "%s%s%s", before, name, after);
        *t = (ql_tensor){.name = full[count], .dtype = QL_F32, .ndim = json_array_size(shape)};
        for (size_t i = 0; i < t->ndim; i++)
            t->shape[i] = (size_t)json_integer_value(json_array_get(shape, i));
        t->data = numbers_of(name, ql_tensor_elements(t), t->ndim == 1, offset_norms);
        count++;
    }
    char *path = ql_path_join(folder, file);
    ck_assert_ok(ql_safetensors_write(path, tensors, count, NULL, 0, &err), &err);
    for (size_t i = 0; i < count; i++)
        free((void *)(uintptr_t)tensors[i].data);
    free(path);
}

/* ---- GGUF files, whose matrices are blocks of random bits ---- */

typedef struct block_kind {
    const char *name;
    uint32_t type;
    size_t bytes, elements, place[2]; /* of its fp16 scales */
    double scale[2];                  /* before the block's factor of 1 to 4 */
    size_t scales;
} block_kind;

static const block_kind kinds[] = {
    {"Q4_0", 2, 18, 32, {0, 0}, {0x1p-6, 0}, 1},           {"Q4_1", 3, 20, 32, {0, 2}, {0x1p-6, -0x1p-3}, 2},
    {"Q8_0", 8, 34, 32, {0, 0}, {0x1p-10, 0}, 1},          {"Q4_K", 12, 144, 256, {0, 2}, {0x1p-13, 0x1p-10}, 2},
    {"Q5_K", 13, 176, 256, {0, 2}, {0x1p-14, 0x1p-10}, 2}, {"Q6_K", 14, 210, 256, {208, 0}, {0x1p-14, 0}, 1},
};

static void put_blocks(gguf_writer *w, const char *name, const char *written, const char *type, const size_t shape[2])
{
    const block_kind *kind = kinds;
    while (strcmp(kind->name, type) != 0)
        kind++;
    size_t count = shape[0] * shape[1] / kind->elements, words = (count * kind->bytes + 7) / 8;
    uint64_t *data = malloc(words * 8);
    char scale_name[200];
    snprintf(scale_name, sizeof scale_name, "%s.scale", name);
    for (size_t i = 0; i < words; i++)
        data[i] = arch_case_bits(name, i);
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < kind->scales; j++) {
            uint16_t half = ql_f32_to_f16((float)((double)(1 + arch_case_bits(scale_name, i) % 4) * kind->scale[j]));
            memcpy((char *)data + i * kind->bytes + kind->place[j], &half, 2);
        }
    gguf_tensor(w, written, kind->type, 2, shape, data, count * kind->bytes);
    free(data);
}

/* The path of a GGUF file of the case, as config.json in its folder has it. */
static const char *write_gguf(const arch_case *c)
{
    gguf_writer w = {0};
    ql_model_config config;
    const char *name;
    json_t *shape;
    ck_assert_ok(ql_model_config_read(&config, c->folder, &err), &err);
    gguf_config(&w, &config);
    json_object_foreach(json_object_get(c->json, "tensors"), name, shape)
    {
        char written[96];
        size_t dims = json_array_size(shape), sizes[2] = {0};
        const char *type = json_string_value(json_object_get(json_object_get(c->json, "types"), name));
        ck_assert_msg(ql_gguf_name(written, sizeof written, name), "%s", name);
        for (size_t i = 0; i < dims; i++)
            sizes[i] = (size_t)json_integer_value(json_array_get(shape, i));
        if (type) {
            put_blocks(&w, name, written, type, sizes);
        } else {
            ck_assert_uint_eq(dims, 1);
            float *x = numbers_of(name, sizes[0], true, false);
            gguf_tensor(&w, written, GGUF_F32, 1, sizes, x, sizes[0] * sizeof *x);
            free(x);
        }
    }
    return gguf_finish(&w, c->folder, "model.gguf");
}

static void write_text(const char *folder, const char *name, const char *text)
{
    test_file(folder, name, text, strlen(text));
}

void arch_case_open(arch_case *c, const char *name, const char *config_key, ql_format format)
{
    char path[512], text[512], target_text[512] = "";
    const char *root = getenv("QLORA_SOURCE_ROOT");
    snprintf(path, sizeof path, "%s/tests/data/arch/%s.json", root ? root : ".", name);
    *c = (arch_case){.folder = test_folder(), .adapter = test_folder()};
    ck_assert_ok(ql_json_read(&c->json, path, &err), &err);
    char *config = json_dumps(json_object_get(c->json, config_key), 0);
    write_text(c->folder, "config.json", config);
    bool offset_norms = json_is_true(json_object_get(c->json, "offset_norms"));
    bool gguf = json_object_size(json_object_get(c->json, "types")) > 0;
    if (!gguf)
        write_tensors(c->folder, "model.safetensors", json_object_get(c->json, "tensors"), "", "", offset_norms);
    ck_assert_ok(ql_workers_create(&c->workers, 2, &err), &err);
    ck_assert_ok(ql_model_open(&c->model, gguf ? write_gguf(c) : c->folder, format, c->workers, &err), &err);
    const ql_model_config *shape = ql_model_shape(c->model);
    for (int module = 0; module < QL_MODULES; module++)
        if (ql_module_present(shape, (ql_module)module))
            snprintf(target_text + strlen(target_text), sizeof target_text - strlen(target_text), "%s\"%s\"",
                     *target_text ? ", " : "", ql_module_name(shape, (ql_module)module));
    snprintf(text, sizeof text, "{\"peft_type\": \"LORA\", \"r\": %d, \"lora_alpha\": %d, \"target_modules\": [%s]}",
             (int)json_integer_value(json_object_get(c->json, "rank")),
             (int)json_integer_value(json_object_get(c->json, "alpha")), target_text);
    write_text(c->adapter, "adapter_config.json", text);
    write_tensors(c->adapter, "adapter_model.safetensors", json_object_get(c->json, "adapters"), "base_model.model.",
                  ".weight", offset_norms);
    ck_assert_ok(ql_adapter_load(c->model, c->adapter, true, &err), &err);
    const json_t *ids = json_object_get(c->json, "token_ids");
    c->count = json_array_size(ids);
    for (size_t i = 0; i < c->count; i++)
        c->ids[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    free(config);
}

void arch_case_close(arch_case *c)
{
    ql_model_destroy(c->model);
    ql_workers_destroy(c->workers);
    json_decref(c->json);
    test_folder_remove(c->folder);
    test_folder_remove(c->adapter);
}
