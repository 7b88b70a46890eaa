/* Models, tokenizers and adapters looked into. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/gguf.h"
#include "io/path.h"
#include "qlora/adapter.h"
#include "qlora/model.h"
#include "qlora/text.h"
#include "text/chat.h"
#include "train/inspect.h"
#include "train/layer_list.h"

/* What sets some layers apart, and what bends the scores. */
static void note_layers(ql_inspection *in, const ql_model_config *c)
{
    size_t windowed = 0, unturned = 0;
    for (size_t i = 0; i < c->layers; i++) {
        windowed += ql_layer_in(&c->windowed, i);
        unturned += ql_layer_in(&c->unturned, i);
    }
    if (c->window && windowed)
        ql_note(in, "window", "%zu positions in %zu of %zu layers", c->window, windowed, c->layers);
    if (c->local_rope_theta > 0 && windowed)
        ql_note(in, "rope_theta there", "%.15g", c->local_rope_theta);
    if (unturned)
        ql_note(in, "without rotation", "%zu of %zu layers", unturned, c->layers);
    if (c->rotated)
        ql_note(in, "rotated", "%zu of %zu elements of a head", c->rotated, c->head_dim);
    if (c->attention_softcap > 0)
        ql_note(in, "soft cap of scores", "%.15g", c->attention_softcap);
    if (c->logit_softcap > 0)
        ql_note(in, "soft cap of logits", "%.15g", c->logit_softcap);
}

static bool note_config(ql_inspection *in, const char *path, ql_model_config *c)
{
    ql_error err = {0};
    if (ql_model_config_read(c, path, &err)) {
        ql_inspect_fault(in, &err);
        return false;
    }
    const struct {
        const char *name;
        size_t value;
    } sizes[] = {
        {"parameters", ql_model_config_parameters(c)},
        {"layers", c->layers},
        {"hidden_size", c->hidden_size},
        {"intermediate_size", c->intermediate_size},
        {"heads", c->heads},
        {"kv_heads", c->kv_heads},
        {"head_dim", c->head_dim},
        {"vocab_size", c->vocab_size},
        {"positions", c->max_positions},
    };
    ql_note(in, "architecture", "%s", ql_arch_name(c->arch));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        ql_note_number(in, sizes[i].name, (double)sizes[i].value);
    ql_note_number(in, "rope_theta", c->rope_theta);
    note_layers(in, c);
    ql_note(in, "tied embeddings", c->tied ? "yes" : "no");
    return true;
}

void ql_inspect_config(ql_inspection *in, const char *path)
{
    ql_model_config config;
    note_config(in, path, &config);
}

static const ql_tensor *find_weight(const ql_inspection *in, const char *module)
{
    char name[200], translated[200];
    snprintf(name, sizeof name, "%s.weight", module);
    if (ql_tensors_gguf(in->tensors) && ql_gguf_name(translated, sizeof translated, name))
        return ql_tensors_find(in->tensors, translated);
    return ql_tensors_find(in->tensors, name);
}

/* The linear layers that are not there or have another shape, beyond the first one that opening stopped at. */
static void list_missing(ql_inspection *in, const ql_model_config *config)
{
    ql_layer_list list = {0};
    ql_error err = {0};
    size_t found = 0;
    if (ql_layer_list_make(&list, config, &err)) {
        ql_inspect_fault(in, &err);
        return;
    }
    for (size_t i = 0; i < list.count; i++)
        found += find_weight(in, list.modules[i].name) != NULL;
    for (size_t i = 0; i < list.count && found; i++) { /* none: they are stored in another way */
        const ql_adapter_module *m = &list.modules[i];
        if (!m->out_features) /* held by another one */
            continue;
        const ql_tensor *t = find_weight(in, m->name);
        bool plain = t && t->ndim == 2 && (t->foreign || t->dtype != QL_U8);
        if (!t)
            ql_inspect_find(in, true, "tensor %s.weight is missing", m->name);
        else if (plain && (t->shape[0] != m->out_features || t->shape[1] != m->in_features))
            ql_inspect_find(in, true, "tensor %s is %zu x %zu, the configuration needs %zu x %zu", t->name, t->shape[0],
                            t->shape[1], m->out_features, m->in_features);
    }
    ql_layer_list_free(&list);
}

static bool has_tokenizer(const ql_inspection *in, const char *path)
{
    const ql_gguf *gguf = in->tensors ? ql_tensors_gguf(in->tensors) : NULL;
    if (gguf)
        return ql_gguf_find(gguf, "tokenizer.ggml.model");
    char *file = ql_path_join(path, "tokenizer.json");
    bool there = file && ql_path_is_file(file);
    free(file);
    return there;
}

void ql_inspect_model(ql_inspection *in, const char *path)
{
    ql_model_config config;
    ql_model *model = NULL;
    ql_error err = {0};
    const ql_format as_stored = {.code = QL_CODE_F32, .scale = QL_SCALE_NONE};
    bool known = note_config(in, path, &config);
    if (known && in->tensors) {
        if (ql_model_open(&model, path, as_stored, in->workers, &err)) {
            ql_inspect_fault(in, &err);
            list_missing(in, &config);
        } else {
            char text[48];
            ql_note(in, "blocks as stored", "%s", ql_format_describe(ql_model_format(model), text));
        }
        ql_model_destroy(model);
    }
    if (has_tokenizer(in, path))
        ql_inspect_tokenizer(in, path, known ? config.vocab_size : 0);
    else
        ql_inspect_find(in, false, "%s: no tokenizer", path);
}

static void note_token(ql_inspection *in, const ql_tokenizer *t, const char *name, int32_t id)
{
    const char *text = ql_tokenizer_token(t, id);
    if (id >= 0)
        ql_note(in, name, "%s (%d)", text ? text : "?", id);
    else
        ql_note(in, name, "none");
}

/* Whether the model's chat template can be run on the simplest of chats. */
static void check_template(ql_inspection *in, ql_tokenizer *t)
{
    const ql_message messages[] = {{"user", "a", 1}, {"assistant", "b", 1}};
    ql_error err = {0};
    ql_chat chat = {0};
    size_t learned = 0;
    if (!ql_tokenizer_has_chat_template(t)) {
        ql_note(in, "chat template", "none");
        return;
    }
    if (ql_chat_render(t, NULL, messages, 2, false, &chat, &err)) {
        ql_inspect_find(in, err.status == QL_ERR_FORMAT, "%s", err.message);
    } else {
        for (size_t i = 0; i < chat.count; i++)
            learned += chat.pieces[i].learn;
        ql_note(in, "chat template", "runs");
        if (!learned)
            ql_inspect_find(in, false, "the chat template leaves nothing of an answer to learn");
    }
    ql_chat_free(&chat);
}

void ql_inspect_tokenizer(ql_inspection *in, const char *path, size_t rows)
{
    ql_tokenizer *t;
    ql_error err = {0};
    if (ql_tokenizer_open(&t, path, &err)) {
        ql_inspect_fault(in, &err);
        return;
    }
    size_t vocab = ql_tokenizer_vocab(t);
    ql_note_number(in, "tokens", (double)vocab);
    note_token(in, t, "bos", ql_tokenizer_bos(t));
    note_token(in, t, "eos", ql_tokenizer_eos(t));
    note_token(in, t, "pad", ql_tokenizer_pad(t));
    note_token(in, t, "unk", ql_tokenizer_unk(t));
    ql_note(in, "puts bos in front", ql_tokenizer_adds_bos(t) ? "yes" : "no");
    if (rows && vocab > rows)
        ql_inspect_find(in, true, "the tokenizer has ids up to %zu, the embedding %zu rows", vocab - 1, rows);
    if (ql_tokenizer_eos(t) < 0)
        ql_inspect_find(in, false, "%s: no end token (eos): a model trained with it will not learn to stop", path);
    check_template(in, t);
    ql_tokenizer_close(t);
}

/* Each A has its B, of the same rank. */
static void check_pairs(ql_inspection *in)
{
    static const char a_end[] = ".lora_A.weight";
    for (size_t i = 0; i < ql_tensors_count(in->tensors); i++) {
        const ql_tensor *a = ql_tensors_at(in->tensors, i);
        size_t length = strlen(a->name), stem = length - (sizeof a_end - 1);
        char name[400];
        if (length < sizeof a_end || length >= sizeof name || strcmp(a->name + stem, a_end) != 0)
            continue;
        snprintf(name, sizeof name, "%.*s.lora_B.weight", (int)stem, a->name);
        const ql_tensor *b = ql_tensors_find(in->tensors, name);
        if (!b)
            ql_inspect_find(in, true, "tensor %s is there without %s", a->name, name);
        else if (a->ndim != 2 || b->ndim != 2 || a->shape[0] != b->shape[1])
            ql_inspect_find(in, true, "tensors %s and %s have no rank in common", a->name, name);
    }
}

void ql_inspect_adapter(ql_inspection *in, const char *path)
{
    ql_adapter_file *file;
    ql_error err = {0};
    char *weights = ql_path_join(path, "adapter_model.safetensors");
    in->failed = in->failed || !weights;
    if (ql_adapter_file_open(&file, path, &err)) {
        ql_inspect_fault(in, &err);
    } else {
        ql_adapter_config c = ql_adapter_file_config(file);
        ql_note_number(in, "rank", (double)c.rank);
        ql_note_number(in, "alpha", c.alpha);
        ql_note_number(in, "scaling", c.alpha / (c.use_rslora ? sqrt((double)c.rank) : (double)c.rank));
        ql_note_number(in, "dropout", c.dropout);
        ql_note(in, "rank-stabilized", c.use_rslora ? "yes" : "no");
        ql_note(in, "dora", c.use_dora ? "yes" : "no");
        ql_note(in, "base model", "%s", c.base_model ? c.base_model : "not named");
    }
    ql_adapter_file_close(file);
    if (weights && ql_path_is_file(weights) && ql_tensors_open(&in->tensors, weights, &err) == QL_OK) {
        ql_note_metadata(in);
        check_pairs(in);
    }
    free(weights);
}
