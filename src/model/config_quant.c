/* quantization_config of a config.json: bitsandbytes' 4-bit checkpoints, and everything else refused by name. */
#include <string.h>

#include "base/error.h"
#include "model/config.h"

#define WHAT_TO_DO "use the original model in F32, F16 or BF16, or a 4-bit bitsandbytes checkpoint (NF4 or FP4)"

/* Modules that stay dense in every checkpoint, or that are not read here. */
static bool skips_a_layer(const char *name)
{
    static const char *const others[] = {"lm_head", "embed_tokens", "multi_modal_projector", "merger",
                                         "modality_projection"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strcmp(name, others[i]) == 0)
            return false;
    return true;
}

static ql_status read_bnb(ql_model_config *c, const ql_json_at *quant, ql_error *err)
{
    bool four = false, eight = false, nested = false;
    const char *type = "fp4";
    ql_json_at skipped;
    ql_status status = ql_json_get_bool(quant, "load_in_4bit", QL_OPTIONAL, &four, err);
    status = status ? status : ql_json_get_bool(quant, "load_in_8bit", QL_OPTIONAL, &eight, err);
    status = status ? status : ql_json_get_bool(quant, "bnb_4bit_use_double_quant", QL_OPTIONAL, &nested, err);
    status = status ? status : ql_json_get_string(quant, "bnb_4bit_quant_type", QL_OPTIONAL, &type, NULL, err);
    status = status ? status : ql_json_get_array(quant, "llm_int8_skip_modules", QL_OPTIONAL, &skipped, err);
    if (status)
        return status;
    if (!four)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: the weights are %s; " WHAT_TO_DO, quant->file,
                       eight ? "bitsandbytes' LLM.int8 (load_in_8bit), which is not supported"
                             : "bitsandbytes', but not in 4 bits");
    if (strcmp(type, "nf4") != 0 && strcmp(type, "fp4") != 0)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: bnb_4bit_quant_type \"%.20s\" is not supported; nf4 and fp4 are",
                       quant->file, type);
    c->quantized = (ql_format){.code = strcmp(type, "nf4") == 0 ? QL_CODE_NF4 : QL_CODE_FP4,
                               .scale = nested ? QL_SCALE_BNB_NESTED : QL_SCALE_F32, .group = 64, .flat = true};
    for (size_t i = 0; skipped.value && i < json_array_size(skipped.value); i++) {
        const char *name = json_string_value(json_array_get(skipped.value, i));
        c->partly = c->partly || (name && skips_a_layer(name));
    }
    return QL_OK;
}

ql_status ql_model_config_quantized(ql_model_config *c, const ql_json_at *root, ql_error *err)
{
    static const struct {
        const char *method, *name;
    } known[] = {{"gptq", "GPTQ"}, {"awq", "AWQ"}, {"fp8", "FP8"}, {"mxfp4", "MXFP4"}};
    const json_t *mlx = ql_json_member(root, "quantization");
    if (mlx && !json_is_null(mlx))
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: \"quantization\": the weights are quantized already, by MLX, in a "
                       "format that is not read here; " WHAT_TO_DO, root->file);
    ql_json_at quant;
    const char *method = NULL;
    ql_status status = ql_json_get_object(root, "quantization_config", QL_OPTIONAL, &quant, err);
    if (status || !quant.value)
        return status;
    status = ql_json_get_string(&quant, "quant_method", QL_OPTIONAL, &method, NULL, err);
    if (status)
        return status;
    if (!method || strcmp(method, "bitsandbytes") == 0) /* early writers gave no method */
        return read_bnb(c, &quant, err);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(method, known[i].method) == 0)
            method = known[i].name;
    return ql_fail(err, QL_ERR_UNSUPPORTED, "%s: \"quantization_config\": the weights are quantized already, by %.40s, in "
                   "a format that is not read here; " WHAT_TO_DO, root->file, method);
}
