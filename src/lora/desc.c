/* The layer descriptor: validation, scaling and exact memory accounting. */
#include <math.h>

#include "base/error.h"
#include "qlora/lora.h"

static ql_lora_desc describe(ql_code format, unsigned bits, size_t in, size_t out, size_t rank, double alpha)
{
    return (ql_lora_desc){.in_features = in,
                          .out_features = out,
                          .rank = rank,
                          .alpha = alpha,
                          .quant_bits = bits,
                          .format = format,
                          .group_size = 64,
                          .double_quant = true};
}

ql_lora_desc ql_lora_desc_int4(size_t in_features, size_t out_features, size_t rank, double alpha)
{
    return describe(QL_CODE_INT4, 4, in_features, out_features, rank, alpha);
}

ql_lora_desc ql_lora_desc_nf4(size_t in_features, size_t out_features, size_t rank, double alpha)
{
    return describe(QL_CODE_NF4, 4, in_features, out_features, rank, alpha);
}

ql_lora_desc ql_lora_desc_int8(size_t in_features, size_t out_features, size_t rank, double alpha)
{
    return describe(QL_CODE_INT8, 8, in_features, out_features, rank, alpha);
}

static unsigned code_bits(ql_code code)
{
    switch (code) {
    case QL_CODE_INT4:
    case QL_CODE_NF4:
    case QL_CODE_FP4:
        return 4;
    case QL_CODE_INT8:
        return 8;
    default:
        return 0;
    }
}

ql_format ql_lora_format(const ql_lora_desc *desc)
{
    return (ql_format){.code = desc->format,
                       .scale = desc->double_quant ? QL_SCALE_DQ : QL_SCALE_F16,
                       .group = desc->group_size};
}

static ql_status check_shape(const ql_lora_desc *d, ql_error *err)
{
    if (!d->in_features || !d->out_features || !d->rank)
        return ql_fail(err, QL_ERR_SHAPE, "LoRA layer: in_features %zu, out_features %zu, rank %zu: none may be 0",
                       d->in_features, d->out_features, d->rank);
    size_t sides, elements, bytes;
    if (__builtin_add_overflow(d->in_features, d->out_features, &sides) ||
        __builtin_mul_overflow(sides, d->rank, &elements) || __builtin_mul_overflow(elements, 2, &bytes) ||
        __builtin_mul_overflow(d->in_features, d->out_features, &elements) ||
        __builtin_mul_overflow(elements, 2, &bytes))
        return ql_fail(err, QL_ERR_SHAPE, "LoRA layer: %zu x %zu with rank %zu is larger than memory can address",
                       d->out_features, d->in_features, d->rank);
    return QL_OK;
}

ql_status ql_lora_desc_check(const ql_lora_desc *d, ql_error *err)
{
    ql_status status = check_shape(d, err);
    if (status)
        return status;
    if (!isfinite(d->alpha) || d->alpha <= 0)
        return ql_fail(err, QL_ERR_ARG, "LoRA layer: alpha is %g; it must be above 0", d->alpha);
    if (!(d->dropout >= 0 && d->dropout < 1))
        return ql_fail(err, QL_ERR_ARG, "LoRA layer: dropout is %g; it must be in [0, 1)", d->dropout);
    unsigned bits = code_bits(d->format);
    if (!bits)
        return ql_fail(err, QL_ERR_ARG, "LoRA layer: the base's format must be INT4, NF4, FP4 or INT8");
    if (d->quant_bits != bits)
        return ql_fail(err, QL_ERR_ARG, "LoRA layer: quant_bits is %u, but the format has %u", d->quant_bits, bits);
    if (d->group_size != 32 && d->group_size != 64 && d->group_size != 128 && d->group_size != 256)
        return ql_fail(err, QL_ERR_ARG, "LoRA layer: group_size is %u; it must be 32, 64, 128 or 256", d->group_size);
    ql_weight_size size;
    return ql_format_size(&size, ql_lora_format(d), d->out_features, d->in_features, err);
}

double ql_lora_scaling(const ql_lora_desc *desc)
{
    return desc->alpha / (desc->use_rslora ? sqrt((double)desc->rank) : (double)desc->rank);
}

size_t ql_lora_quantized_base_bytes(const ql_lora_desc *desc)
{
    ql_weight_size size = {0};
    if (ql_lora_desc_check(desc, NULL) ||
        ql_format_size(&size, ql_lora_format(desc), desc->out_features, desc->in_features, NULL))
        return 0;
    return size.codes + size.scales;
}

size_t ql_lora_adapter_bytes(const ql_lora_desc *desc)
{
    if (ql_lora_desc_check(desc, NULL))
        return 0;
    return (desc->in_features + desc->out_features) * desc->rank * sizeof(uint16_t);
}

double ql_lora_vram_savings_ratio(const ql_lora_desc *desc)
{
    if (ql_lora_desc_check(desc, NULL))
        return 0;
    double held = (double)ql_lora_quantized_base_bytes(desc) + (double)ql_lora_adapter_bytes(desc);
    double dense = 2.0 * (double)desc->in_features * (double)desc->out_features;
    return 1.0 - held / dense;
}
