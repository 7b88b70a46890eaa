/* Hugging Face's names of tensors to those of GGUF files, and which files these are. */
#include <stdio.h>
#include <string.h>

#include "io/gguf.h"
#include "io/path.h"

typedef struct pair {
    const char *from, *to;
} pair;

static const pair outside[] = {
    {"model.embed_tokens", "token_embd"},
    {"model.norm", "output_norm"},
    {"lm_head", "output"},
};

static const pair in_block[] = {
    {"input_layernorm", "attn_norm"},    {"post_attention_layernorm", "ffn_norm"},
    {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},      {"self_attn.o_proj", "attn_output"},
    {"self_attn.q_norm", "attn_q_norm"}, {"self_attn.k_norm", "attn_k_norm"},
    {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
};

/* The pair whose `from` is followed by ".weight" or ".bias" in name. */
static const pair *find(const pair *pairs, size_t count, const char *name)
{
    const char *suffix = strrchr(name, '.');
    size_t length = suffix ? (size_t)(suffix - name) : 0;
    for (size_t i = 0; i < count; i++)
        if (strlen(pairs[i].from) == length && memcmp(pairs[i].from, name, length) == 0)
            return &pairs[i];
    return NULL;
}

bool ql_gguf_name(char *out, size_t size, const char *name)
{
    unsigned long block = 0;
    int prefix = 0, length;
    const pair *found;
    if (sscanf(name, "model.layers.%8lu.%n", &block, &prefix) == 1 && prefix) {
        found = find(in_block, sizeof in_block / sizeof *in_block, name + prefix);
        length = found ? snprintf(out, size, "blk.%lu.%s%s", block, found->to, strrchr(name, '.')) : -1;
    } else {
        found = find(outside, sizeof outside / sizeof *outside, name);
        length = found ? snprintf(out, size, "%s%s", found->to, strrchr(name, '.')) : -1;
    }
    return length >= 0 && (size_t)length < size;
}

bool ql_path_is_gguf(const char *path)
{
    char magic[4];
    FILE *file = ql_path_is_file(path) ? fopen(path, "rb") : NULL;
    bool is = file && fread(magic, 1, sizeof magic, file) == sizeof magic && memcmp(magic, "GGUF", 4) == 0;
    if (file)
        fclose(file);
    return is;
}
