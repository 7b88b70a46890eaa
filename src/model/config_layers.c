/* What differs between the layers: rotation, window. */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "model/config.h"

static void put_layer(ql_layer_set *set, size_t layer, bool in)
{
    uint64_t bit = (uint64_t)1 << layer % 64;
    set->bits[layer / 64] = in ? set->bits[layer / 64] | bit : set->bits[layer / 64] & ~bit;
}

/* A size that null turns off, which is not the same as leaving it out. */
static ql_status read_or_null(const ql_json_at *root, const char *key, size_t max, size_t *out, ql_error *err)
{
    const json_t *value = ql_json_member(root, key);
    if (value && json_is_null(value)) {
        *out = 0;
        return QL_OK;
    }
    return ql_json_get_size(root, key, QL_OPTIONAL, 1, max, out, err);
}

/* ---- rotation ---- */

static ql_status read_llama3(ql_model_config *c, const ql_json_at *scaling, ql_error *err)
{
    ql_status status = ql_json_get_double(scaling, "low_freq_factor", QL_REQUIRED, 1e-6, 1e6,
                                          &c->rope_scaling.low_freq_factor, err);
    if (!status)
        status = ql_json_get_double(scaling, "high_freq_factor", QL_REQUIRED, 1e-6, 1e6,
                                    &c->rope_scaling.high_freq_factor, err);
    if (!status)
        status = ql_json_get_size(scaling, "original_max_position_embeddings", QL_REQUIRED, 1, QL_MAX_POSITIONS,
                                  &c->rope_scaling.original_max_positions, err);
    if (!status && c->rope_scaling.high_freq_factor <= c->rope_scaling.low_freq_factor)
        status = ql_fail(err, QL_ERR_FORMAT, "%s: rope scaling: high_freq_factor %g is not above low_freq_factor %g",
                         scaling->file, c->rope_scaling.high_freq_factor, c->rope_scaling.low_freq_factor);
    return status;
}

/* The short factors of longrope, and its gain; *used becomes how many there are. */
static ql_status read_longrope(ql_model_config *c, const ql_json_at *root, const ql_json_at *scaling, size_t *used,
                               ql_error *err)
{
    ql_json_at list;
    size_t most = sizeof c->rope_scaling.divisors / sizeof *c->rope_scaling.divisors, original = 0;
    double factor = 0, gain = 0;
    ql_status status = ql_json_get_array(scaling, "short_factor", QL_REQUIRED, &list, err);
    status = status ? status : ql_json_get_double(scaling, "factor", QL_OPTIONAL, 1, 1e6, &factor, err);
    status = status ? status : ql_json_get_double(scaling, "attention_factor", QL_OPTIONAL, 1e-3, 1e3, &gain, err);
    const char *key = "original_max_position_embeddings";
    const ql_json_at *where = ql_json_member(scaling, key) ? scaling : root;
    status = status ? status : ql_json_get_size(where, key, QL_REQUIRED, 2, QL_MAX_POSITIONS, &original, err);
    if (!status && json_array_size(list.value) > most)
        status = ql_fail(err, QL_ERR_FORMAT, "%s: short_factor has %zu entries, %zu at most are possible", root->file,
                         json_array_size(list.value), most);
    for (size_t i = 0; !status && i < json_array_size(list.value); i++) {
        ql_json_at entry = ql_json_element(&list, i);
        double x = json_number_value(entry.value);
        if (!(x >= 1e-3 && x <= 1e6))
            return ql_json_expected(&entry, "a number from 0.001 to 1000000", err);
        c->rope_scaling.divisors[i] = (float)x;
    }
    if (status)
        return status;
    *used = json_array_size(list.value);
    factor = factor > 0 ? factor : (double)c->max_positions / (double)original;
    c->rope_scaling.gain = gain > 0 ? gain : factor <= 1 ? 1 : sqrt(1 + log(factor) / log((double)original));
    c->rope_scaling.original_max_positions = original;
    c->max_positions = original < c->max_positions ? original : c->max_positions;
    return QL_OK;
}

static ql_status read_scaling(ql_model_config *c, const ql_json_at *root, const ql_json_at *scaling, size_t *used,
                              ql_error *err)
{
    const char *type = NULL;
    ql_status status = ql_json_get_string(scaling, "rope_type", QL_OPTIONAL, &type, NULL, err);
    if (!status && !type)
        status = ql_json_get_string(scaling, "type", QL_OPTIONAL, &type, NULL, err);
    if (status || !type || strcmp(type, "default") == 0)
        return status;
    if (strcmp(type, "longrope") == 0 || strcmp(type, "su") == 0)
        return read_longrope(c, root, scaling, used, err);
    if (strcmp(type, "llama3") != 0 && strcmp(type, "linear") != 0)
        return ql_fail(err, QL_ERR_UNSUPPORTED,
                       "%s: rope scaling \"%.40s\" is not supported; llama3, linear and longrope are", scaling->file, type);
    status = ql_json_get_double(scaling, "factor", QL_REQUIRED, 1, 1e6, &c->rope_scaling.factor, err);
    return status || strcmp(type, "linear") == 0 ? status : read_llama3(c, scaling, err);
}

/* An object of theta, scaling and the share of a head that rotates. */
static ql_status read_parameters(ql_model_config *c, const ql_json_at *root, const ql_json_at *parameters, double *share,
                                 size_t *used, ql_error *err)
{
    ql_status status = ql_json_get_double(parameters, "rope_theta", QL_OPTIONAL, 1, 1e12, &c->rope_theta, err);
    if (!status)
        status = ql_json_get_double(parameters, "partial_rotary_factor", QL_OPTIONAL, 0, 1, share, err);
    return status ? status : read_scaling(c, root, parameters, used, err);
}

/* rope_parameters as newer writers put it: one object, or one for each kind of layer. */
static ql_status read_new_style(ql_model_config *c, const ql_json_at *root, double *share, size_t *used, ql_error *err)
{
    ql_json_at parameters, global, local;
    ql_status status = ql_json_get_object(root, "rope_parameters", QL_OPTIONAL, &parameters, err);
    if (status || !parameters.value)
        return status;
    status = ql_json_get_object(&parameters, "full_attention", QL_OPTIONAL, &global, err);
    if (!status)
        status = ql_json_get_object(&parameters, "sliding_attention", QL_OPTIONAL, &local, err);
    if (!status && local.value)
        status = ql_json_get_double(&local, "rope_theta", QL_OPTIONAL, 1, 1e12, &c->local_rope_theta, err);
    return status ? status : read_parameters(c, root, global.value ? &global : &parameters, share, used, err);
}

ql_status ql_model_config_rope(ql_model_config *c, const ql_json_at *root, ql_error *err)
{
    const ql_arch_traits *traits = ql_arch_traits_of(c->arch);
    ql_json_at scaling;
    double share = 1;
    size_t used = 0;
    c->rope_theta = traits->theta;
    c->local_rope_theta = traits->local_theta;
    ql_status status = ql_json_get_double(root, "rope_theta", QL_OPTIONAL, 1, 1e12, &c->rope_theta, err);
    if (!status && traits->local_theta > 0)
        status = ql_json_get_double(root, "rope_local_base_freq", QL_OPTIONAL, 1, 1e12, &c->local_rope_theta, err);
    if (!status)
        status = ql_json_get_double(root, "partial_rotary_factor", QL_OPTIONAL, 0, 1, &share, err);
    if (!status)
        status = ql_json_get_object(root, "rope_scaling", QL_OPTIONAL, &scaling, err);
    if (!status && scaling.value)
        status = read_scaling(c, root, &scaling, &used, err);
    if (!status)
        status = read_new_style(c, root, &share, &used, err);
    size_t rotated = (size_t)((double)c->head_dim * share);
    if (!status && (rotated % 2 || !rotated))
        status = ql_fail(err, QL_ERR_UNSUPPORTED, "%s: %zu of %zu elements of a head rotate (partial_rotary_factor %g): "
                         "must be an even number", root->file, rotated, c->head_dim, share);
    if (!status && c->rope_scaling.gain > 0 && used != rotated / 2)
        status = ql_fail(err, QL_ERR_FORMAT, "%s: short_factor has %zu entries for %zu frequencies", root->file, used,
                         rotated / 2);
    c->rotated = rotated < c->head_dim ? rotated : 0;
    return status;
}

/* ---- layers ---- */

/* no_rope_layers, where 1 says that a layer does rotate, or every no_rope_layer_interval-th. */
static ql_status read_unturned(ql_model_config *c, const ql_json_at *root, ql_error *err)
{
    size_t every = ql_arch_traits_of(c->arch)->unturned, turns;
    if (!every)
        return QL_OK;
    ql_json_at list;
    ql_status status = ql_json_get_size(root, "no_rope_layer_interval", QL_OPTIONAL, 1, QL_MAX_LAYERS, &every, err);
    if (!status)
        status = ql_json_get_array(root, "no_rope_layers", QL_OPTIONAL, &list, err);
    bool listed = !status && list.value && json_array_size(list.value) > 0;
    if (listed && json_array_size(list.value) != c->layers)
        return ql_fail(err, QL_ERR_FORMAT, "%s: no_rope_layers has %zu entries for %zu layers", root->file,
                       json_array_size(list.value), c->layers);
    for (size_t i = 0; i < c->layers && !status; i++) {
        if (listed)
            status = ql_json_get_size_at(&list, i, 0, 1, &turns, err);
        put_layer(&c->unturned, i, listed ? !status && !turns : (i + 1) % every == 0);
    }
    return status;
}

/* The rule of the architecture, where the layers are not listed. */
static ql_status follow_rule(ql_model_config *c, const ql_json_at *root, ql_error *err)
{
    const ql_arch_traits *traits = ql_arch_traits_of(c->arch);
    size_t first = 28, pattern = traits->pattern; /* max_window_layers as transformers has it */
    ql_status status = QL_OK;
    if (traits->rule == QL_WINDOW_LATER)
        status = ql_json_get_size(root, "max_window_layers", QL_OPTIONAL, 0, QL_MAX_LAYERS, &first, err);
    if (traits->rule == QL_WINDOW_PATTERN && pattern > 2) /* Gemma 2 does not ask */
        status = ql_json_get_size(root, "sliding_window_pattern", QL_OPTIONAL, 1, QL_MAX_LAYERS, &pattern, err);
    for (size_t i = 0; i < c->layers; i++) {
        const bool rules[] = {
            [QL_WINDOW_NONE] = false,
            [QL_WINDOW_ALL] = true,
            [QL_WINDOW_LATER] = i >= first,
            [QL_WINDOW_PATTERN] = pattern && (i + 1) % pattern != 0,
            [QL_WINDOW_UNTURNED] = ql_layer_in(&c->unturned, i),
        };
        put_layer(&c->windowed, i, rules[traits->rule]);
    }
    return status;
}

/* layer_types: "sliding_attention" or "full_attention". */
static ql_status read_types(ql_model_config *c, const ql_json_at *types, ql_error *err)
{
    if (json_array_size(types->value) != c->layers)
        return ql_fail(err, QL_ERR_FORMAT, "%s: layer_types has %zu entries for %zu layers", types->file,
                       json_array_size(types->value), c->layers);
    for (size_t i = 0; i < c->layers; i++) {
        const char *type = json_string_value(json_array_get(types->value, i));
        bool sliding = type && strcmp(type, "sliding_attention") == 0;
        if (!sliding && (!type || strcmp(type, "full_attention") != 0))
            return ql_fail(err, QL_ERR_UNSUPPORTED,
                           "%s: layer_types: layer %zu is \"%.40s\"; full_attention and sliding_attention are supported",
                           types->file, i, type ? type : "no text");
        put_layer(&c->windowed, i, sliding);
    }
    return QL_OK;
}

ql_status ql_model_config_layers(ql_model_config *c, const ql_json_at *root, ql_error *err)
{
    const ql_arch_traits *traits = ql_arch_traits_of(c->arch);
    bool asked = traits->rule == QL_WINDOW_LATER || traits->rule == QL_WINDOW_UNTURNED, wanted = !asked;
    ql_json_at types = {0};
    ql_status status = read_unturned(c, root, err);
    if (status || traits->rule == QL_WINDOW_NONE)
        return status;
    c->window = traits->window;
    if (asked)
        status = ql_json_get_bool(root, "use_sliding_window", QL_OPTIONAL, &wanted, err);
    if (!status)
        status = read_or_null(root, "sliding_window", QL_MAX_POSITIONS, &c->window, err);
    if (!status && traits->rule != QL_WINDOW_ALL)
        status = ql_json_get_array(root, "layer_types", QL_OPTIONAL, &types, err);
    if (status)
        return status;
    c->window = wanted ? c->window : 0;
    if (!c->window && !(c->local_rope_theta > 0))
        return QL_OK;
    return types.value ? read_types(c, &types, err) : follow_rule(c, root, err);
}
