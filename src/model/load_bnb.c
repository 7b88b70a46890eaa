/* A matrix of a bitsandbytes checkpoint: NAME holds the nibbles, NAME.quant_state.bitsandbytes__nf4 (or fp4) a JSON text
 * of what they are, and the scales lie beside them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/json.h"
#include "model/load.h"
#include "quant/weight.h"

static const struct {
    const char *name;
    ql_code code;
} types[] = {{"nf4", QL_CODE_NF4}, {"fp4", QL_CODE_FP4}};
enum { TYPES = sizeof types / sizeof *types, NAME_BYTES = 256 };

static const ql_tensor *find_part(const ql_matrix_source *source, const char *part)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.%s", source->name, part);
    return ql_tensors_find(source->files, name);
}

static const ql_tensor *find_state(const ql_matrix_source *source, size_t *type)
{
    for (*type = 0; *type < TYPES; ++*type) {
        char part[64];
        snprintf(part, sizeof part, "quant_state.bitsandbytes__%s", types[*type].name);
        const ql_tensor *state = find_part(source, part);
        if (state)
            return state;
    }
    return NULL;
}

bool ql_bnb_stored(const ql_matrix_source *source)
{
    size_t type;
    return find_state(source, &type) != NULL;
}

/* What the arrays of a weight are read into. */
typedef struct parts {
    ql_bnb_source src;
    float *absmax, *absmax2, *map;
} parts;

static ql_status read_state(ql_bnb_source *src, const ql_matrix_source *source, const ql_tensor *state, size_t type,
                            ql_error *err)
{
    json_t *json;
    const char *name = NULL;
    size_t block = 0, nested = 0, shape[2] = {0};
    double offset = 0;
    ql_json_at dims;
    ql_status status = ql_json_parse(&json, state->name, state->data, state->bytes, err);
    if (status)
        return status;
    ql_json_at root = ql_json_root(state->name, json);
    status = ql_json_get_string(&root, "quant_type", QL_REQUIRED, &name, NULL, err);
    status = status ? status : ql_json_get_size(&root, "blocksize", QL_REQUIRED, 32, 4096, &block, err);
    status = status ? status : ql_json_get_size(&root, "nested_blocksize", QL_OPTIONAL, 1, 1 << 20, &nested, err);
    status = status ? status
                    : ql_json_get_double(&root, "nested_offset", nested ? QL_REQUIRED : QL_OPTIONAL, -3e38, 3e38,
                                         &offset, err);
    status = status ? status : ql_json_get_array(&root, "shape", QL_REQUIRED, &dims, err);
    for (size_t i = 0; i < 2 && !status; i++)
        status = ql_json_get_size_at(&dims, i, 1, SIZE_MAX / 2, &shape[i], err);
    if (!status && strcmp(name, types[type].name) != 0)
        status = ql_fail(err, QL_ERR_FORMAT, "%s: quant_type is \"%.20s\", which its name contradicts", state->name, name);
    if (!status && (json_array_size(dims.value) != 2 || shape[0] != source->n || shape[1] != source->k))
        status = ql_fail(err, QL_ERR_SHAPE, "%s: a weight of %zu x %zu, the model needs %zu x %zu", state->name, shape[0],
                         shape[1], source->n, source->k);
    json_decref(json);
    src->code = types[type].code;
    src->block = (uint32_t)block;
    src->nested_block = (uint32_t)nested;
    src->offset = (float)offset;
    return status;
}

/* The tensor source->name.part of `count` elements, fp32 or bytes. */
static ql_status need_part(const ql_tensor **out, const ql_matrix_source *source, const char *part, ql_dtype type,
                           size_t count, ql_error *err)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.%s", source->name, part);
    ql_status status = ql_tensors_need(out, source->files, name, 1, &count, err);
    if (!status && (*out)->dtype != type)
        status = ql_fail(err, QL_ERR_FORMAT, "%s: tensor %s is %s, not %s", (*out)->file, name, (*out)->dtype_name,
                         ql_dtype_name(type));
    return status;
}

static ql_status read_floats(float **out, const ql_matrix_source *source, const char *part, size_t count, ql_error *err)
{
    const ql_tensor *tensor;
    ql_status status = need_part(&tensor, source, part, QL_F32, count, err);
    if (status)
        return status;
    *out = malloc(count * sizeof **out);
    if (!*out)
        return ql_fail(err, QL_ERR_MEMORY, "%s: no memory for %zu scales", source->name, count);
    return ql_tensor_read_f32(tensor, 0, count, *out, err);
}

/* The values of the codes are ours to the last bit but one, or they are others. */
static ql_status check_map(const ql_matrix_source *source, ql_code code, ql_error *err)
{
    float *stored = NULL;
    const float *table = ql_codebook_of(code)->table;
    ql_status status = read_floats(&stored, source, "quant_map", 16, err);
    for (size_t i = 0; i < 16 && !status; i++)
        if (!(fabsf(stored[i] - table[i]) <= 1e-6f))
            status = ql_fail(err, QL_ERR_UNSUPPORTED, "tensor %s.quant_map: code %zu means %g, %g was expected",
                             source->name, i, (double)stored[i], (double)table[i]);
    free(stored);
    return status;
}

static ql_status read_scales(parts *p, const ql_matrix_source *source, size_t elements, ql_error *err)
{
    ql_bnb_source *src = &p->src;
    size_t blocks = (elements + src->block - 1) / src->block;
    const ql_tensor *codes;
    ql_status status;
    if (!src->nested_block) {
        status = read_floats(&p->absmax, source, "absmax", blocks, err);
    } else {
        status = need_part(&codes, source, "absmax", QL_U8, blocks, err);
        src->absmax_codes = status ? NULL : codes->data;
        size_t groups = (blocks + src->nested_block - 1) / src->nested_block;
        status = status ? status : read_floats(&p->absmax2, source, "nested_absmax", groups, err);
        status = status ? status : read_floats(&p->map, source, "nested_quant_map", 256, err);
    }
    src->absmax = p->absmax;
    src->absmax2 = p->absmax2;
    src->map = p->map;
    return status;
}

ql_status ql_bnb_load(ql_weight **out, const ql_matrix_source *source, ql_error *err)
{
    *out = NULL;
    parts p = {0};
    size_t type, elements;
    const ql_tensor *state = find_state(source, &type), *codes = ql_tensors_find(source->files, source->name);
    if (!codes || __builtin_mul_overflow(source->n, source->k, &elements))
        return ql_fail(err, QL_ERR_FORMAT, "%s: there is no tensor %s of %zu x %zu", state->file, source->name, source->n,
                       source->k);
    ql_status status = read_state(&p.src, source, state, type, err);
    if (!status && codes->bytes != elements / 2 + elements % 2) /* whatever type they are said to be */
        status = ql_fail(err, QL_ERR_SHAPE, "%s: tensor %s has %zu bytes; %zu x %zu values of 4 bits take %zu",
                         codes->file, source->name, codes->bytes, source->n, source->k, elements / 2 + elements % 2);
    p.src.packed = codes->data;
    status = status ? status : check_map(source, p.src.code, err);
    status = status ? status : read_scales(&p, source, elements, err);
    status = status ? status : ql_weight_from_bnb(out, source->name, &p.src, source->n, source->k, err);
    free(p.absmax);
    free(p.absmax2);
    free(p.map);
    return status;
}
