/* Formats: their names, codebooks and sizes, and the layout of a weight's arrays. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "quant/weight.h"

static const ql_codebook int4 = {
    .table = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7},
    .thresholds = {-7.5f, -6.5f, -5.5f, -4.5f, -3.5f, -2.5f, -1.5f, -0.5f, 0.5f, 1.5f, 2.5f, 3.5f, 4.5f, 5.5f, 6.5f},
    .codes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    .zero = 8,
};

/* bitsandbytes' table and decision thresholds, to the bit. */
static const ql_codebook nf4 = {
    .table = {-0x1p0f, -0x1.647362p-1f, -0x1.0cd66p-1f, -0x1.94654p-2f, -0x1.23449ap-2f, -0x1.7a6a7ep-3f,
              -0x1.74f0e2p-4f, 0.0f, 0x1.45f5fep-4f, 0x1.4995c6p-3f, 0x1.f809bap-3f, 0x1.5a0674p-2f, 0x1.c3497p-2f,
              0x1.200f56p-1f, 0x1.722766p-1f, 0x1p0f},
    .thresholds = {-0x1.b239bp-1f, -0x1.38a4ep-1f, -0x1.d709p-2f, -0x1.5bd4ecp-2f, -0x1.e079d8p-3f, -0x1.1a7178p-3f,
                   -0x1.74f0e2p-5f, 0x1.45f5fep-5f, 0x1.ec90c4p-4f, 0x1.a0cfcp-3f, 0x1.2b05a8p-2f, 0x1.8ea7f2p-2f,
                   0x1.00da08p-1f, 0x1.491b5ep-1f, 0x1.b913b4p-1f},
    .codes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    .zero = 7,
};

/* bitsandbytes compares |x| strictly with its thresholds, so that a negative tie goes towards zero: those
 * thresholds are one float further out. Codes 0 and 8 both mean zero; like its CPU code, we give 8 to
 * small positive values. */
static const ql_codebook fp4 = {
    .table = {0.0f, 0x1.555556p-8f, 0x1.555556p-1f, 0x1p0f, 0x1.555556p-2f, 0x1p-1f, 0x1.555556p-3f, 0x1p-2f, 0.0f,
              -0x1.555556p-8f, -0x1.555556p-1f, -0x1p0f, -0x1.555556p-2f, -0x1p-1f, -0x1.555556p-3f, -0x1p-2f},
    .thresholds = {-0x1.aaaaacp-1f, -0x1.2aaaa2p-1f, -0x1.aaaaaep-2f, -0x1.2aaaacp-2f, -0x1.aaaaacp-3f, -0x1.600002p-4f,
                   -0x1.555574p-9f, 0.0f, 0x1.555572p-9f, 0x1.6p-4f, 0x1.aaaaaap-3f, 0x1.2aaaaap-2f, 0x1.aaaaacp-2f,
                   0x1.2aaaap-1f, 0x1.aaaaaap-1f},
    .codes = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3},
    .zero = 0,
};

const ql_codebook *ql_codebook_of(ql_code code)
{
    switch (code) {
    case QL_CODE_INT4:
        return &int4;
    case QL_CODE_NF4:
        return &nf4;
    case QL_CODE_FP4:
        return &fp4;
    default:
        return NULL;
    }
}

/* The names there are. The last three columns do not hold for dense codes. */
static const struct {
    const char *name;
    ql_code code;
    ql_scale single, twice; /* the scale without and with double quantization */
    bool flat;
} names[] = {
    {"f32", QL_CODE_F32, QL_SCALE_NONE, QL_SCALE_NONE, false},
    {"none", QL_CODE_F32, QL_SCALE_NONE, QL_SCALE_NONE, false},
    {"f16", QL_CODE_F16, QL_SCALE_NONE, QL_SCALE_NONE, false},
    {"bf16", QL_CODE_BF16, QL_SCALE_NONE, QL_SCALE_NONE, false},
    {"nf4", QL_CODE_NF4, QL_SCALE_F16, QL_SCALE_DQ, false},
    {"fp4", QL_CODE_FP4, QL_SCALE_F16, QL_SCALE_DQ, false},
    {"int4", QL_CODE_INT4, QL_SCALE_F16, QL_SCALE_DQ, false},
    {"int8", QL_CODE_INT8, QL_SCALE_F16, QL_SCALE_DQ, false},
    {"bnb-nf4", QL_CODE_NF4, QL_SCALE_F32, QL_SCALE_BNB_NESTED, true},
    {"bnb-fp4", QL_CODE_FP4, QL_SCALE_F32, QL_SCALE_BNB_NESTED, true},
};
enum { NAMES = sizeof names / sizeof *names };

ql_format ql_format_default(void)
{
    return (ql_format){QL_CODE_NF4, QL_SCALE_DQ, 64, false};
}

static bool scale_is_bnb(ql_scale scale)
{
    return scale == QL_SCALE_F32 || scale == QL_SCALE_BNB_NESTED;
}

static ql_status check_group(uint32_t group, bool bnb, ql_error *err)
{
    uint32_t limit = bnb ? 4096 : 256;
    if (group < 32 || group > limit || (group & (group - 1)))
        return ql_fail(err, QL_ERR_ARG, "group size %u: it must be a power of two from 32 to %u", group, limit);
    return QL_OK;
}

ql_status ql_format_parse(ql_format *out, const char *name, uint32_t group, bool double_quant, ql_error *err)
{
    *out = (ql_format){0};
    for (size_t i = 0; i < NAMES; i++) {
        if (strcmp(name, names[i].name) != 0)
            continue;
        ql_format format = {.code = names[i].code};
        if (!ql_code_is_dense(format.code)) {
            format.scale = double_quant ? names[i].twice : names[i].single;
            format.group = group;
            format.flat = names[i].flat;
            if (check_group(group, scale_is_bnb(format.scale), err) != QL_OK)
                return QL_ERR_ARG;
        }
        *out = format;
        return QL_OK;
    }
    return ql_fail(err, QL_ERR_ARG,
                   "format '%s' is not known; there are nf4, fp4, int4, int8, bnb-nf4, bnb-fp4, bf16, f16 and f32 "
                   "(or none)",
                   name);
}

static const struct {
    const char *name, *upper; /* ours, and as GGUF files spell it */
    ql_code code;
} blocks[] = {
    {"q8_0", "Q8_0", QL_CODE_Q8_0}, {"q4_0", "Q4_0", QL_CODE_Q4_0}, {"q4_1", "Q4_1", QL_CODE_Q4_1},
    {"q4_K", "Q4_K", QL_CODE_Q4_K}, {"q5_K", "Q5_K", QL_CODE_Q5_K}, {"q6_K", "Q6_K", QL_CODE_Q6_K},
};
enum { BLOCKS = sizeof blocks / sizeof *blocks };

bool ql_code_of_blocks(ql_code *out, const char *name)
{
    for (size_t i = 0; i < BLOCKS; i++)
        if (strcmp(name, blocks[i].name) == 0 || strcmp(name, blocks[i].upper) == 0) {
            *out = blocks[i].code;
            return true;
        }
    return false;
}

const char *ql_format_describe(ql_format format, char text[48])
{
    for (size_t i = 0; i < NAMES; i++) {
        if (names[i].code != format.code || (names[i].single != format.scale && names[i].twice != format.scale))
            continue;
        if (ql_code_is_dense(format.code))
            snprintf(text, 48, "%s", names[i].name);
        else
            snprintf(text, 48, "%s g%u%s", names[i].name, format.group, names[i].twice == format.scale ? " dq" : "");
        return text;
    }
    snprintf(text, 48, "no format");
    for (size_t i = 0; i < BLOCKS; i++)
        if (blocks[i].code == format.code)
            snprintf(text, 48, "%s", blocks[i].name);
    return text;
}

ql_status ql_format_check(ql_format *format, const char *name, size_t n, size_t k, ql_error *err)
{
    ql_ggml_block block = ql_ggml_block_of(format->code);
    bool known = block.elements && format->scale == QL_SCALE_NONE;
    for (size_t i = 0; i < NAMES; i++)
        known |= names[i].code == format->code && (names[i].single == format->scale || names[i].twice == format->scale);
    if (!known)
        return ql_fail(err, QL_ERR_ARG, "%s: code %d does not go with scale %d", name, (int)format->code,
                       (int)format->scale);
    size_t elements;
    if (!n || !k)
        return ql_fail(err, QL_ERR_SHAPE, "%s: a weight of %zu x %zu is empty", name, n, k);
    if (k > SIZE_MAX / 64 || __builtin_mul_overflow(n, k + QL_BLOCK, &elements) || elements > SIZE_MAX / 64)
        return ql_fail(err, QL_ERR_SHAPE, "%s: a weight of %zu x %zu is too large", name, n, k);
    if (ql_code_is_dense(format->code)) {
        *format = (ql_format){.code = format->code};
        return QL_OK;
    }
    if (block.elements) {
        char text[48];
        if (k % block.elements)
            return ql_fail(err, QL_ERR_SHAPE, "%s: rows of %zu are not whole blocks of %zu, which %s has", name, k,
                           block.elements, ql_format_describe(*format, text));
        *format = (ql_format){.code = format->code};
        return QL_OK;
    }
    bool bnb = scale_is_bnb(format->scale);
    if (check_group(format->group, bnb, err) != QL_OK)
        return ql_fail_in(err, QL_ERR_ARG, "%s", name);
    if (format->flat && !bnb)
        return ql_fail(err, QL_ERR_ARG, "%s: only bitsandbytes' formats have groups that cross row ends", name);
    format->flat = format->flat && k % format->group != 0;
    return QL_OK;
}

static size_t divide_up(size_t count, size_t by)
{
    return (count + by - 1) / by;
}

static void carve_scales(ql_wview *view, ql_arena *arena)
{
    size_t scales = ql_wview_scales(view);
    switch (view->format.scale) {
    case QL_SCALE_NONE:
        break;
    case QL_SCALE_F16:
        view->scales = ql_take(arena, scales, uint16_t);
        break;
    case QL_SCALE_DQ:
        view->scales = ql_take(arena, scales, uint8_t);
        view->steps = ql_take(arena, divide_up(scales, QL_DQ_GROUPS), uint16_t);
        view->offsets = ql_take(arena, divide_up(scales, QL_DQ_GROUPS), uint16_t);
        break;
    case QL_SCALE_F32:
        view->scales = ql_take(arena, scales, float);
        break;
    case QL_SCALE_BNB_NESTED:
        view->scales = ql_take(arena, scales, uint8_t);
        view->absmax2 = ql_take(arena, divide_up(scales, view->nested_block), float);
        view->map = ql_take(arena, 256, float);
        break;
    }
}

void ql_wview_carve(ql_wview *view, ql_arena *arena, size_t *code_bytes, ql_format format, uint32_t nested_block,
                    size_t n, size_t k)
{
    const ql_codebook *book = ql_codebook_of(format.code);
    *view = (ql_wview){.format = format, .n = n, .k = k};
    view->nested_block = format.scale == QL_SCALE_BNB_NESTED ? nested_block : 0;
    view->table = book ? book->table : NULL;
    if (ql_code_is_dense(format.code)) {
        view->row_bytes = k * ql_dtype_size(ql_code_dtype(format.code));
    } else if (ql_code_is_ggml(format.code)) {
        ql_ggml_block block = ql_ggml_block_of(format.code);
        view->row_bytes = k / block.elements * block.bytes;
    } else {
        size_t padded = divide_up(k, QL_BLOCK) * QL_BLOCK;
        view->row_bytes = book ? padded / 2 : padded;
        view->groups = divide_up(format.flat ? n * k : k, format.group);
    }
    view->codes = ql_arena_take(arena, n, view->row_bytes);
    *code_bytes = arena->used;
    carve_scales(view, arena);
}

ql_status ql_format_size(ql_weight_size *out, ql_format format, size_t n, size_t k, ql_error *err)
{
    *out = (ql_weight_size){0};
    ql_status status = ql_format_check(&format, "weight", n, k, err);
    if (status != QL_OK)
        return status;
    ql_wview view;
    ql_arena arena = {0};
    size_t code_bytes;
    ql_wview_carve(&view, &arena, &code_bytes, format, QL_BNB_NESTED_BLOCK, n, k);
    *out = (ql_weight_size){.codes = code_bytes, .scales = arena.used - code_bytes};
    return QL_OK;
}
