#include "gguf_case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

static void add(gguf_part *part, const void *bytes, size_t size)
{
    if (part->size + size >= part->room) {
        part->room = 2 * (part->size + size) + 64;
        part->bytes = realloc(part->bytes, part->room);
    }
    if (size)
        memcpy(part->bytes + part->size, bytes, size);
    part->size += size;
}

static void add_u32(gguf_part *part, uint32_t value)
{
    add(part, &value, 4);
}

static void add_u64(gguf_part *part, uint64_t value)
{
    add(part, &value, 8);
}

static void add_string(gguf_part *part, const char *text)
{
    add_u64(part, strlen(text));
    add(part, text, strlen(text));
}

/* false: it is to be left out. */
static bool begin(gguf_writer *w, const char *key, ql_gguf_type type)
{
    if (w->without && strcmp(w->without, key) == 0)
        return false;
    add_string(&w->metadata, key);
    add_u32(&w->metadata, type);
    w->values++;
    return true;
}

static bool begin_array(gguf_writer *w, const char *key, ql_gguf_type element, size_t count)
{
    if (!begin(w, key, QL_GGUF_ARRAY))
        return false;
    add_u32(&w->metadata, element);
    add_u64(&w->metadata, count);
    return true;
}

void gguf_u32(gguf_writer *w, const char *key, uint32_t value)
{
    if (begin(w, key, QL_GGUF_U32))
        add_u32(&w->metadata, value);
}

void gguf_f32(gguf_writer *w, const char *key, float value)
{
    if (begin(w, key, QL_GGUF_F32))
        add(&w->metadata, &value, 4);
}

void gguf_bool(gguf_writer *w, const char *key, bool value)
{
    if (begin(w, key, QL_GGUF_BOOL))
        add(&w->metadata, value ? "\1" : "\0", 1);
}

void gguf_string(gguf_writer *w, const char *key, const char *value)
{
    if (begin(w, key, QL_GGUF_STRING))
        add_string(&w->metadata, value);
}

void gguf_strings(gguf_writer *w, const char *key, const char *const *values, size_t count)
{
    if (!begin_array(w, key, QL_GGUF_STRING, count))
        return;
    for (size_t i = 0; i < count; i++)
        add_string(&w->metadata, values[i]);
}

void gguf_f32s(gguf_writer *w, const char *key, const float *values, size_t count)
{
    if (begin_array(w, key, QL_GGUF_F32, count))
        add(&w->metadata, values, count * sizeof *values);
}

void gguf_i32s(gguf_writer *w, const char *key, const int32_t *values, size_t count)
{
    if (begin_array(w, key, QL_GGUF_I32, count))
        add(&w->metadata, values, count * sizeof *values);
}

static void pad(gguf_part *part, size_t from)
{
    static const char zeros[32];
    add(part, zeros, -from % 32);
}

void gguf_tensor(gguf_writer *w, const char *name, uint32_t type, size_t ndim, const size_t *shape, const void *data,
                 size_t bytes)
{
    if (w->without && strcmp(w->without, name) == 0)
        return;
    add_string(&w->infos, name);
    add_u32(&w->infos, (uint32_t)ndim);
    for (size_t i = ndim; i-- > 0;)
        add_u64(&w->infos, shape[i]);
    add_u32(&w->infos, type);
    pad(&w->data, w->data.size);
    add_u64(&w->infos, w->data.size);
    add(&w->data, data, bytes);
    w->tensors++;
}

const char *gguf_finish(gguf_writer *w, const char *folder, const char *name)
{
    gguf_part file = {0};
    add(&file, "GGUF", 4);
    add_u32(&file, 3);
    add_u64(&file, w->tensors);
    add_u64(&file, w->values);
    add(&file, w->metadata.bytes, w->metadata.size);
    add(&file, w->infos.bytes, w->infos.size);
    pad(&file, file.size);
    add(&file, w->data.bytes, w->data.size);
    const char *path = test_file(folder, name, file.bytes, file.size);
    free(file.bytes);
    free(w->metadata.bytes);
    free(w->infos.bytes);
    free(w->data.bytes);
    *w = (gguf_writer){0};
    return path;
}

void gguf_config(gguf_writer *w, const ql_model_config *c)
{
    const struct {
        const char *name;
        size_t value;
    } sizes[] = {
        {"context_length", c->max_positions},
        {"embedding_length", c->hidden_size},
        {"feed_forward_length", c->intermediate_size},
        {"block_count", c->layers},
        {"attention.head_count", c->heads},
        {"attention.head_count_kv", c->kv_heads},
        {"attention.key_length", c->head_dim},
    };
    char key[96];
    gguf_string(w, "general.architecture", ql_arch_name(c->arch));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        snprintf(key, sizeof key, "%s.%s", ql_arch_name(c->arch), sizes[i].name);
        gguf_u32(w, key, (uint32_t)sizes[i].value);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", ql_arch_name(c->arch));
    gguf_f32(w, key, (float)c->rms_norm_eps);
    snprintf(key, sizeof key, "%s.rope.freq_base", ql_arch_name(c->arch));
    gguf_f32(w, key, (float)c->rope_theta);
}

/* Rows of q and k go as reshape(heads, 2, head_dim / 2).swapaxes(1, 2) puts them. */
static void add_permuted(gguf_writer *w, const char *name, uint32_t type, const ql_tensor *tensor, size_t heads)
{
    size_t rows = tensor->shape[0], bytes = tensor->bytes / rows, dim = rows / heads, to = 0;
    unsigned char *turned = malloc(tensor->bytes);
    for (size_t h = 0; h < heads; h++)
        for (size_t i = 0; i < dim / 2; i++)
            for (size_t half = 0; half < 2; half++)
                memcpy(turned + to++ * bytes,
                       (const unsigned char *)tensor->data + (h * dim + half * dim / 2 + i) * bytes, bytes);
    gguf_tensor(w, name, type, tensor->ndim, tensor->shape, turned, tensor->bytes);
    free(turned);
}

/* Llama 3's scaling as GGUF files have it: what each frequency is divided by. */
static void add_divisors(gguf_writer *w, const ql_model_config *c)
{
    float divisors[128];
    size_t half = c->head_dim / 2;
    double trained = (double)c->rope_scaling.original_max_positions, low = c->rope_scaling.low_freq_factor;
    double high = c->rope_scaling.high_freq_factor, factor = c->rope_scaling.factor;
    for (size_t i = 0; i < half; i++) {
        double wave = 2 * acos(-1) * pow(c->rope_theta, 2.0 * (double)i / (double)c->head_dim);
        double smooth = (trained / wave - low) / (high - low);
        divisors[i] = (float)(wave < trained / high  ? 1
                              : wave > trained / low ? factor
                                                     : 1 / ((1 - smooth) / factor + smooth));
    }
    gguf_tensor(w, "rope_freqs.weight", GGUF_F32, 1, &half, divisors, half * sizeof *divisors);
}

void gguf_of_folder(gguf_writer *w, const char *dir)
{
    ql_error err;
    ql_model_config c;
    ql_tensors *tensors;
    ck_assert_ok(ql_model_config_read(&c, dir, &err), &err);
    ck_assert_ok(ql_tensors_open(&tensors, dir, &err), &err);
    gguf_config(w, &c);
    if (c.rope_scaling.factor != 0)
        add_divisors(w, &c);
    for (size_t i = 0; i < ql_tensors_count(tensors); i++) {
        const ql_tensor *t = ql_tensors_at(tensors, i);
        char name[96];
        uint32_t type = t->dtype == QL_F32 ? GGUF_F32 : t->dtype == QL_F16 ? GGUF_F16 : GGUF_BF16;
        ck_assert_msg(ql_gguf_name(name, sizeof name, t->name), "%s", t->name);
        size_t heads = strstr(t->name, "q_proj") ? c.heads : strstr(t->name, "k_proj") ? c.kv_heads : 0;
        if (heads && c.arch == QL_ARCH_LLAMA)
            add_permuted(w, name, type, t, heads);
        else
            gguf_tensor(w, name, type, t->ndim, t->shape, t->data, t->bytes);
    }
    ql_tensors_close(tensors);
}
