/* Reading and writing PEFT's adapter_config.json. Names of modules are matched as PEFT does: a list by the
 * last parts of the name, a string as a regular expression for the whole of it. */
#include "train/adapter_config.h"

#include <math.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/error.h"
#include "qlora/io.h"

enum { MOST_STEPS = 100000 }; /* of a regular expression over a name: each is asked about every layer */

/* ---- what cannot be honoured ---- */

/* Options that must be absent, null, false or empty. */
static const char *const refused[] = {
    "fan_in_fan_out",          "modules_to_save",   "layers_to_transform", "lora_bias",
    "trainable_token_indices", "target_parameters", "layer_replication",   "use_qalora",
    "alora_invocation_tokens", "megatron_config",   "use_bdlora",          "arrow_config",
    "kasa_config",             "velora_config",     "monteclora_config",
};

static bool neutral(const json_t *value)
{
    return !value || json_is_null(value) || json_is_false(value) || (json_is_array(value) && !json_array_size(value)) ||
           (json_is_object(value) && !json_object_size(value));
}

/* PEFT type and bias are words with one value that is handled. */
static ql_status require_word(const ql_json_at *root, const char *key, ql_json_need need, const char *wanted,
                              ql_error *err)
{
    const char *word = wanted;
    ql_status status = ql_json_get_string(root, key, need, &word, NULL, err);
    if (!status && strcmp(word, wanted) != 0)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: %s is \"%.60s\"; only \"%s\" is handled", root->file, key, word,
                       wanted);
    return status;
}

/* Some initializations change the base weights too (PiSSA, OLoRA, CorDA, LoftQ, ...). */
static ql_status check_init(const ql_json_at *root, ql_error *err)
{
    const char *harmless[] = {"gaussian", "eva", "orthogonal"};
    const json_t *init = ql_json_member(root, "init_lora_weights");
    if (!json_is_string(init))
        return QL_OK;
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
        if (strcmp(json_string_value(init), harmless[i]) == 0)
            return QL_OK;
    return ql_fail(err, QL_ERR_UNSUPPORTED,
                   "%s: init_lora_weights \"%.60s\" may change the base weights; convert the adapter to plain LoRA "
                   "with PEFT first",
                   root->file, json_string_value(init));
}

static ql_status refuse_others(const ql_json_at *root, ql_error *err)
{
    ql_status status = require_word(root, "peft_type", QL_REQUIRED, "LORA", err);
    if (!status)
        status = require_word(root, "bias", QL_OPTIONAL, "none", err);
    if (status)
        return status;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (!neutral(ql_json_member(root, refused[i])))
            return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: %s is set, which is not handled", root->file, refused[i]);
    return check_init(root, err);
}

/* ---- reading ---- */

static ql_status check_modules(const ql_json_at *root, const char *key, ql_json_need need, ql_error *err)
{
    const json_t *value = ql_json_member(root, key);
    if (json_is_string(value) || (need == QL_OPTIONAL && (!value || json_is_null(value))))
        return QL_OK;
    bool good = json_is_array(value) && (need == QL_OPTIONAL || json_array_size(value));
    for (size_t i = 0; good && i < json_array_size(value); i++)
        good = json_is_string(json_array_get(value, i));
    if (good)
        return QL_OK;
    return ql_fail(err, QL_ERR_FORMAT, "%s: %s: expected a list of names or a regular expression", root->file, key);
}

static ql_status read_fields(ql_peft_config *config, ql_error *err)
{
    ql_json_at root = ql_json_root(config->path, config->json), pattern;
    ql_adapter_config *c = &config->common;
    ql_status status = json_is_object(config->json) ? QL_OK : ql_json_expected(&root, "an object", err);
    if (!status)
        status = refuse_others(&root, err);
    *c = (ql_adapter_config){.rank = 8, .alpha = 8}; /* PEFT's defaults */
    if (!status)
        status = ql_json_get_size(&root, "r", QL_OPTIONAL, 1, 1 << 16, &c->rank, err);
    if (!status)
        status = ql_json_get_double(&root, "lora_alpha", QL_OPTIONAL, 0, 1e9, &c->alpha, err);
    if (!status)
        status = ql_json_get_double(&root, "lora_dropout", QL_OPTIONAL, 0, 1, &c->dropout, err);
    if (!status && c->dropout == 1)
        status = ql_fail(err, QL_ERR_FORMAT, "%s: lora_dropout is 1: nothing would be left to learn", config->path);
    if (!status)
        status = ql_json_get_bool(&root, "use_rslora", QL_OPTIONAL, &c->use_rslora, err);
    if (!status)
        status = ql_json_get_bool(&root, "use_dora", QL_OPTIONAL, &c->use_dora, err);
    if (!status)
        status = ql_json_get_string(&root, "base_model_name_or_path", QL_OPTIONAL, &c->base_model, NULL, err);
    if (!status)
        status = check_modules(&root, "target_modules", QL_REQUIRED, err);
    if (!status)
        status = check_modules(&root, "exclude_modules", QL_OPTIONAL, err);
    if (!status)
        status = ql_json_get_object(&root, "rank_pattern", QL_OPTIONAL, &pattern, err);
    if (!status)
        status = ql_json_get_object(&root, "alpha_pattern", QL_OPTIONAL, &pattern, err);
    return status;
}

ql_status ql_peft_config_read(ql_peft_config *out, const char *path, ql_error *err)
{
    *out = (ql_peft_config){.path = path};
    ql_status status = ql_json_read(&out->json, path, err);
    if (!status)
        status = read_fields(out, err);
    if (status)
        ql_peft_config_free(out);
    return status;
}

void ql_peft_config_free(ql_peft_config *config)
{
    json_decref(config->json);
    *config = (ql_peft_config){0};
}

/* ---- which modules ---- */

/* Whether the whole of `text` matches before + pattern + after, as Python's re would have it. */
static ql_status matches(const ql_peft_config *config, const char *key, const char *before, const char *pattern,
                         const char *after, const char *text, bool *out, ql_error *err)
{
    char whole[2048];
    int length = snprintf(whole, sizeof whole, "%s%s%s", before, pattern, after);
    if (length < 0 || (size_t)length >= sizeof whole)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: %s: a pattern of more than 2000 bytes", config->path, key);
    int number;
    PCRE2_SIZE at;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)whole, (PCRE2_SIZE)length, PCRE2_ANCHORED | PCRE2_ENDANCHORED, &number,
                                     &at, NULL);
    if (!code)
        return ql_fail(err, QL_ERR_FORMAT, "%s: %s: \"%.200s\" is not a regular expression that is understood",
                       config->path, key, pattern);
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(code, NULL);
    pcre2_match_context *limits = pcre2_match_context_create(NULL);
    int rc = PCRE2_ERROR_NOMEMORY;
    if (data && limits) {
        pcre2_set_match_limit(limits, MOST_STEPS);
        rc = pcre2_match(code, (PCRE2_SPTR)text, strlen(text), 0, 0, data, limits);
    }
    pcre2_match_context_free(limits);
    pcre2_match_data_free(data);
    pcre2_code_free(code);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
        return ql_fail(err, QL_ERR_FORMAT, "%s: %s: matching \"%.200s\" is too costly", config->path, key, pattern);
    *out = rc > 0;
    return QL_OK;
}

/* name is `tail`, or ends in ".tail". */
static bool ends_in(const char *name, const char *tail)
{
    size_t all = strlen(name), own = strlen(tail);
    return own <= all && strcmp(name + all - own, tail) == 0 && (all == own || name[all - own - 1] == '.');
}

static ql_status selects(const ql_peft_config *config, const char *key, const char *module, bool *out, ql_error *err)
{
    const json_t *value = json_object_get(config->json, key);
    *out = false;
    if (json_is_string(value))
        return matches(config, key, "", json_string_value(value), "", module, out, err);
    for (size_t i = 0; i < json_array_size(value) && !*out; i++)
        *out = ends_in(module, json_string_value(json_array_get(value, i)));
    return QL_OK;
}

static bool all_linear(const ql_peft_config *config)
{
    const json_t *value = json_object_get(config->json, "target_modules");
    return json_is_string(value) && strcmp(json_string_value(value), "all-linear") == 0;
}

/* The value of the first key of a pattern object that matches the end of the module's name. */
static ql_status lookup(const ql_peft_config *config, const char *key, const char *module, double least, double most,
                        double *out, ql_error *err)
{
    json_t *pattern = json_object_get(config->json, key), *value;
    const char *name;
    json_object_foreach(pattern, name, value)
    {
        bool hit;
        ql_status status = matches(config, key, "(.*\\.)?(", name, ")", module, &hit, err);
        if (status)
            return status;
        if (!hit)
            continue;
        if (!json_is_number(value) || !(json_number_value(value) >= least && json_number_value(value) <= most))
            return ql_fail(err, QL_ERR_FORMAT, "%s: %s: \"%.200s\": expected a number from %g to %g", config->path, key,
                           name, least, most);
        *out = json_number_value(value);
        return QL_OK;
    }
    return QL_OK;
}

ql_status ql_peft_target_of(const ql_peft_config *config, const char *module, ql_peft_target *out, ql_error *err)
{
    const ql_adapter_config *c = &config->common;
    bool excluded = false;
    *out = (ql_peft_target){.adapted = all_linear(config)};
    ql_status status = out->adapted ? QL_OK : selects(config, "target_modules", module, &out->adapted, err);
    if (!status)
        status = selects(config, "exclude_modules", module, &excluded, err);
    out->adapted = out->adapted && !excluded;
    if (status || !out->adapted)
        return status;
    double rank = (double)c->rank, alpha = c->alpha;
    status = lookup(config, "rank_pattern", module, 1, 1 << 16, &rank, err);
    if (!status)
        status = lookup(config, "alpha_pattern", module, 0, 1e9, &alpha, err);
    if (status)
        return status;
    if (rank != floor(rank))
        return ql_fail(err, QL_ERR_FORMAT, "%s: rank_pattern gives %s a rank of %g", config->path, module, rank);
    out->rank = (size_t)rank;
    out->scaling = alpha / (c->use_rslora ? sqrt(rank) : rank);
    return QL_OK;
}

ql_status ql_peft_targets_exist(const ql_peft_config *config, const ql_adapter_module *modules, size_t count,
                                ql_error *err)
{
    const json_t *value = json_object_get(config->json, "target_modules");
    for (size_t i = 0; i < json_array_size(value); i++) {
        const char *name = json_string_value(json_array_get(value, i));
        bool found = false;
        for (size_t j = 0; j < count && !found; j++)
            found = ends_in(modules[j].name, name);
        if (!found)
            return ql_fail(err, QL_ERR_UNSUPPORTED,
                           "%s: target_modules names \"%.200s\", which is no linear layer of this model's blocks; the "
                           "adapter is for another architecture, or adapts a layer that is not handled",
                           config->path, name);
    }
    return QL_OK;
}

/* ---- writing ---- */

/* The alpha that gives a layer its scaling: the config's, unless fp32 tells them apart. */
static double alpha_of(const ql_adapter_config *c, const ql_adapter *a)
{
    double root = c->use_rslora ? sqrt((double)a->r) : (double)a->r;
    return a->scaling == (float)(c->alpha / root) ? c->alpha : a->scaling * root;
}

/* PEFT reads the names as regular expressions; a dot also matches itself. */
static void write_patterns(ql_json *json, const ql_adapter_config *c, const ql_adapters *set, const char *const *names)
{
    ql_json_object(json, "alpha_pattern");
    for (size_t i = 0; i < set->layers; i++)
        if (alpha_of(c, &set->layer[i]) != c->alpha)
            ql_json_number(json, names[i], alpha_of(c, &set->layer[i]));
    ql_json_end(json);
    ql_json_object(json, "rank_pattern");
    for (size_t i = 0; i < set->layers; i++)
        if (set->layer[i].r != c->rank)
            ql_json_integer(json, names[i], (int64_t)set->layer[i].r);
    ql_json_end(json);
}

ql_status ql_peft_config_write(const char *path, const ql_adapter_config *c, const ql_adapters *set,
                               const char *const *names, ql_error *err)
{
    ql_json json = {.pretty = true};
    ql_json_object(&json, NULL);
    write_patterns(&json, c, set, names);
    ql_json_string(&json, "base_model_name_or_path", c->base_model);
    ql_json_string(&json, "bias", "none");
    ql_json_bool(&json, "fan_in_fan_out", false);
    ql_json_bool(&json, "inference_mode", true);
    ql_json_bool(&json, "init_lora_weights", true);
    ql_json_number(&json, "lora_alpha", c->alpha);
    ql_json_number(&json, "lora_dropout", c->dropout);
    ql_json_null(&json, "modules_to_save");
    ql_json_string(&json, "peft_type", "LORA");
    ql_json_integer(&json, "r", (int64_t)c->rank);
    ql_json_array(&json, "target_modules");
    for (size_t i = 0; i < c->targets; i++)
        ql_json_string(&json, NULL, c->target_modules[i]);
    ql_json_end(&json);
    ql_json_string(&json, "task_type", "CAUSAL_LM");
    ql_json_bool(&json, "use_dora", c->use_dora);
    ql_json_bool(&json, "use_rslora", c->use_rslora);
    ql_json_end(&json);
    ql_status status = ql_json_write(&json, path, err);
    ql_json_free(&json);
    return status;
}
