/* Named shapes, and the operations of a training step of theirs. */
#include <string.h>

#include "step.h"

static const struct {
    const char *name;
    ql_model_config config;
} shapes[] = {
    {"stories260k",
     {.arch = QL_ARCH_LLAMA, .vocab_size = 512, .hidden_size = 64, .intermediate_size = 172, .layers = 5, .heads = 8,
      .kv_heads = 4, .head_dim = 8, .max_positions = 512, .rms_norm_eps = 1e-5, .rope_theta = 1e4, .tied = true}},
    {"smollm2-135m",
     {.arch = QL_ARCH_LLAMA, .vocab_size = 49152, .hidden_size = 576, .intermediate_size = 1536, .layers = 30, .heads = 9,
      .kv_heads = 3, .head_dim = 64, .max_positions = 8192, .rms_norm_eps = 1e-5, .rope_theta = 1e4, .tied = true}},
    {"qwen2.5-0.5b",
     {.arch = QL_ARCH_QWEN2, .vocab_size = 151936, .hidden_size = 896, .intermediate_size = 4864, .layers = 24,
      .heads = 14, .kv_heads = 2, .head_dim = 64, .max_positions = 32768, .rms_norm_eps = 1e-6, .rope_theta = 1e6,
      .tied = true, .qkv_bias = true}},
    {"tinyllama-1.1b",
     {.arch = QL_ARCH_LLAMA, .vocab_size = 32000, .hidden_size = 2048, .intermediate_size = 5632, .layers = 22,
      .heads = 32, .kv_heads = 4, .head_dim = 64, .max_positions = 2048, .rms_norm_eps = 1e-5, .rope_theta = 1e4}},
};

bool step_shape(ql_model_config *out, const char *name)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strcmp(name, shapes[i].name) == 0) {
            *out = shapes[i].config;
            return true;
        }
    return false;
}

/* Two operations for each multiplication of a product of m tokens with all linear layers of a block. */
static double linear_layers(const ql_model_config *c, double m)
{
    double sum = 0;
    for (int module = 0; module < QL_MODULES; module++)
        sum += (double)ql_module_inputs(c, module) * (double)ql_module_outputs(c, module);
    return 2 * m * sum;
}

/* Of the products of a block's adapters with A, and with B: the same sum of sizes. */
static double adapter_products(const ql_model_config *c, double m, double rank)
{
    double sum = 0;
    for (int module = 0; module < QL_MODULES; module++)
        sum += (double)(ql_module_inputs(c, module) + ql_module_outputs(c, module));
    return 2 * m * rank * sum;
}

step_count step_operations(const step_options *o)
{
    const ql_model_config *c = &o->config;
    double m = (double)(o->seq * o->batch), layers = (double)c->layers, again = (double)o->recompute;
    double hidden = (double)c->hidden_size, rank = (double)o->rank;
    double linear = linear_layers(c, m), adapters = adapter_products(c, m, rank);
    double unneeded = 2 * m * hidden * (double)((c->heads + 2 * c->kv_heads) * c->head_dim); /* below the first block */
    double attention = 2 * m * (double)(o->seq + 1) / 2 * (double)(c->heads * c->head_dim);  /* a triangle's product */
    step_count count = {.done = {
        [QL_PART_FORWARD] = layers * linear,
        [QL_PART_BACKWARD] = layers * linear - unneeded,
        [QL_PART_ATTENTION] = layers * 7 * attention, /* 2 products forward, 5 backward */
        [QL_PART_ADAPTERS] = layers * 3 * adapters - 3 * 2 * m * rank * hidden, /* forward, dA and dB, dx */
        [QL_PART_LOSS] = 4 * m * (double)c->vocab_size * hidden,
    }};
    for (int part = 0; part < QL_PARTS; part++)
        count.wanted += count.done[part];
    count.done[QL_PART_FORWARD] += again * linear;
    count.done[QL_PART_ATTENTION] += again * 2 * attention;
    count.done[QL_PART_ADAPTERS] += again * adapters;
    return count;
}
