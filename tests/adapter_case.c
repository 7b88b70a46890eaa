#include "adapter_case.h"

#include <stdio.h>

const char *const part_names[PARTS] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                              "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                              "mlp.down_proj"};

const reference_case references[] = {
    {"finetune-reference/lora-fp32-qv/adapter_init", 4, 8, 0x05},
    {"finetune-reference/lora-fp32-qv/adapter_final", 4, 8, 0x05},
    {"finetune-reference/qlora-nf4-all/adapter_init", 8, 16, 0x7f},
    {"finetune-reference/qlora-nf4-all/adapter_final", 8, 16, 0x7f},
};

const ql_adapter_module *stories(void)
{
    static const size_t in[PARTS] = {64, 64, 64, 64, 64, 64, 172}, out[PARTS] = {64, 32, 32, 64, 172, 172, 64};
    static ql_adapter_module modules[MODULES];
    static char names[MODULES][64];
    for (size_t i = 0; i < MODULES; i++) {
        snprintf(names[i], sizeof names[i], "model.layers.%zu.%s", i / PARTS, part_names[i % PARTS]);
        modules[i] = (ql_adapter_module){names[i], in[i % PARTS], out[i % PARTS]};
    }
    return modules;
}

const ql_adapter_module small[2] = {{"model.layers.0.self_attn.q_proj", 6, 4},
                                           {"model.layers.0.self_attn.v_proj", 6, 3}};

char *join(const char *dir, const char *name)
{
    static char path[4][512];
    static unsigned turn;
    char *p = path[turn++ % 4];
    size_t left = strlen(dir), right = strlen(name);
    ck_assert_uint_lt(left + right + 1, sizeof path[0]);
    memcpy(p, dir, left);
    p[left] = '/';
    memcpy(p + left + 1, name, right + 1);
    return p;
}

ql_status plan_small(const char *dir, ql_adapter_shape shapes[2], ql_error *err)
{
    ql_adapter_file *file;
    ql_status status = ql_adapter_file_open(&file, dir, err);
    if (!status)
        status = ql_adapter_file_plan(file, small, 2, shapes, err);
    ql_adapter_file_close(file);
    return status;
}

ql_adapters *load(const char *dir, const ql_adapter_module *modules, size_t count, bool trainable)
{
    ql_error err = {0};
    ql_adapter_file *file;
    ql_adapter_shape shapes[MODULES], used[MODULES];
    ql_adapters *set;
    size_t adapted = 0;
    ck_assert_ok(ql_adapter_file_open(&file, dir, &err), &err);
    ck_assert_ok(ql_adapter_file_plan(file, modules, count, shapes, &err), &err);
    for (size_t i = 0; i < count; i++)
        if (shapes[i].rank)
            used[adapted++] = shapes[i];
    ck_assert_ok(ql_adapters_create(&set, used, adapted, trainable, &err), &err);
    ck_assert_ok(ql_adapter_file_read(file, modules, count, set, &err), &err);
    ql_adapter_file_close(file);
    return set;
}
