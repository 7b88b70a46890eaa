/* Where adapters start: PiSSA (Meng et al. 2024) and LoftQ (Li et al. 2024) take them from the weights, which change
 * with them: W ~ Q + s B A, with Q what is quantized.
 *
 *     PiSSA: s B A has W's largest singular values, and Q is the rest of it
 *     LoftQ: s B A has the largest ones of W - Q, and Q is anew what that leaves, in turns */
#include "model/start.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/half.h"
#include "base/workers.h"
#include "lora/dot.h"
#include "lora/streams.h"
#include "lora/svd.h"
#include "quant/weight.h"

static const char *const names[] = {[QL_INIT_DEFAULT] = "default",
                                    [QL_INIT_GAUSSIAN] = "gaussian",
                                    [QL_INIT_PISSA] = "pissa",
                                    [QL_INIT_LOFTQ] = "loftq"};

const char *ql_lora_init_name(ql_lora_init init)
{
    return names[init];
}

ql_status ql_lora_init_parse(ql_lora_init *out, const char *name, ql_error *err)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (ql_lora_init)i;
            return QL_OK;
        }
    }
    return ql_fail(err, QL_ERR_ARG, "\"%.60s\" is no initialization: default, gaussian, pissa and loftq are", name);
}

/* ---- one layer ---- */

typedef struct layer_job {
    ql_model *model;
    size_t index;           /* of the layer, as in the list of all */
    const ql_weight *whole; /* W */
    const ql_weight *minus; /* Q; NULL: 0 */
    ql_adapter adapter;     /* of scaling -s: adding it takes s B A away; rank 0: none */
    float *rest;            /* [n][k] */
    double *square;         /* [n] of its rows */
    float *rows;            /* [threads][k] */
    float *u, *s, *v;
    ql_workers *workers;
    ql_error *err;
} layer_job;

static void rest_row(void *ctx, size_t row, size_t worker)
{
    const layer_job *j = ctx;
    size_t k = ql_weight_cols(j->whole);
    float *x = j->rest + row * k, *minus = j->rows + worker * k;
    ql_weight_dequantize(j->whole, row, 1, x, k);
    if (j->minus)
        ql_weight_dequantize(j->minus, row, 1, minus, k);
    for (size_t i = 0; j->minus && i < k; i++)
        x[i] -= minus[i];
    if (j->adapter.r)
        ql_adapter_add_rows(&j->adapter, row, 1, x, k);
    j->square[row] = ql_dot(x, x, k);
}

/* rest = W - Q - s B A, without what is NULL; returns the sum of its squares. */
static double take_rest(layer_job *j, const ql_weight *minus, const ql_adapter *adapter)
{
    double sum = 0;
    j->minus = minus;
    j->adapter = adapter ? *adapter : (ql_adapter){0};
    j->adapter.scaling = -j->adapter.scaling;
    ql_parallel(j->workers, ql_weight_rows(j->whole), rest_row, j);
    for (size_t i = 0; i < ql_weight_rows(j->whole); i++)
        sum += j->square[i];
    return sum;
}

/* s B A = the largest singular values of w. The numbers are such as FP16 has, so that Q is what exactly they leave. */
static ql_status set_adapter(layer_job *j, const ql_weight *w, const ql_adapter *a)
{
    ql_status status =
        ql_svd(w, a->r, j->model->lora.seed, QL_STREAM_INIT | j->index, j->u, j->s, j->v, j->workers, j->err);
    for (size_t i = 0; i < a->r && !status; i++) {
        float root = sqrtf(j->s[i] / a->scaling);
        for (size_t c = 0; c < a->k; c++) {
            float x = ql_f16_to_f32(ql_f32_to_f16(root * j->v[i * a->k + c]));
            ql_adapters_set(j->model->adapters, a->offset + i * a->k + c, 1, &x);
        }
        for (size_t r = 0; r < a->n; r++) {
            float x = ql_f16_to_f32(ql_f32_to_f16(root * j->u[i * a->n + r]));
            ql_adapters_set(j->model->adapters, a->offset + a->r * a->k + r * a->r + i, 1, &x);
        }
    }
    return status;
}

/* The layer's base becomes the rest, quantized. */
static ql_status quantize_rest(layer_job *j)
{
    ql_block *block = &j->model->blocks[j->index / QL_MODULES];
    size_t module = j->index % QL_MODULES, n = ql_weight_rows(j->whole), k = ql_weight_cols(j->whole);
    ql_weight *made, *old = block->weight[module];
    ql_status status =
        ql_weight_quantize(&made, ql_weight_format(old), ql_module_name(&j->model->config, (ql_module)module), j->rest,
                           QL_F32, k, n, k, j->workers, j->err);
    if (status)
        return status;
    ql_weight_allow_bf16(made, old->kernel->bf16_inputs);
    block->weight[module] = made;
    block->linear[module].base = made;
    ql_weight_destroy(old);
    return QL_OK;
}

static ql_status start_pissa(layer_job *j, const ql_linear *linear)
{
    ql_status status = set_adapter(j, j->whole, linear->adapter);
    if (status)
        return status;
    take_rest(j, NULL, linear->adapter);
    return quantize_rest(j);
}

static ql_status start_loftq(layer_job *j, const ql_linear *linear)
{
    ql_weight *rest;
    ql_status status =
        ql_weight_borrow(&rest, j->rest, QL_F32, ql_weight_rows(j->whole), ql_weight_cols(j->whole), j->err);
    for (size_t i = 0; i < j->model->lora.loftq_steps && !status; i++) {
        if (i > 0) {
            take_rest(j, NULL, linear->adapter);
            status = quantize_rest(j);
        }
        if (!status) {
            take_rest(j, linear->base, NULL);
            status = set_adapter(j, rest, linear->adapter);
        }
    }
    ql_weight_destroy(rest);
    return status;
}

static ql_status start_layer(layer_job *j, double *plain, double *now)
{
    const ql_linear *linear = &j->model->blocks[j->index / QL_MODULES].linear[j->index % QL_MODULES];
    const ql_adapter *a = linear->adapter;
    j->rest = malloc(a->n * a->k * sizeof *j->rest);
    j->square = malloc(a->n * sizeof *j->square);
    j->rows = malloc(ql_workers_count(j->workers) * a->k * sizeof *j->rows);
    j->u = malloc(a->r * (a->n + a->k + 1) * sizeof *j->u);
    ql_status status = j->rest && j->square && j->rows && j->u
                           ? QL_OK
                           : ql_fail(j->err, QL_ERR_MEMORY, "a layer of %zu x %zu in fp32: out of memory", a->n, a->k);
    if (!status) {
        j->v = j->u + a->r * a->n;
        j->s = j->v + a->r * a->k;
        *plain += take_rest(j, linear->base, NULL);
        status = j->model->lora.init == QL_INIT_PISSA ? start_pissa(j, linear) : start_loftq(j, linear);
    }
    if (!status)
        *now += take_rest(j, linear->base, a);
    free(j->rest);
    free(j->square);
    free(j->rows);
    free(j->u);
    return status;
}

/* ---- the model ---- */

ql_status ql_start_check(const ql_model *model, const ql_lora_options *o, ql_error *err)
{
    if (o->init != QL_INIT_PISSA && o->init != QL_INIT_LOFTQ)
        return QL_OK;
    const char *name = ql_lora_init_name(o->init);
    if (o->use_dora)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "DoRA does not start with %s: leave one of them out", name);
    if (o->init == QL_INIT_LOFTQ && (!o->loftq_steps || o->loftq_steps > 100))
        return ql_fail(err, QL_ERR_ARG, "LoftQ of %zu steps: must be 1 to 100", o->loftq_steps);
    if (!model->files && !model->planned)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s needs the weights of a model's files", name);
    ql_code code = model->format.code;
    if (model->config.quantized.code && model->format.scale == model->config.quantized.scale)
        return ql_fail(err, QL_ERR_UNSUPPORTED,
                       "%s needs a base that is quantized here, not one of bitsandbytes: choose a format, such as nf4",
                       name);
    if (code != QL_CODE_NF4 && code != QL_CODE_FP4 && code != QL_CODE_INT4 && code != QL_CODE_INT8)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "%s needs a base that is quantized here: choose a format, such as nf4",
                       name);
    for (int module = 0; module < QL_MODULES; module++) {
        size_t n = ql_module_outputs(&model->config, (ql_module)module);
        size_t k = ql_module_inputs(&model->config, (ql_module)module), least = n < k ? n : k;
        if (o->modules >> module & 1 && ql_module_present(&model->config, (ql_module)module) && o->rank > least)
            return ql_fail(err, QL_ERR_ARG, "%s of rank %zu: %s has but %zu singular values", name, o->rank,
                           ql_module_name(&model->config, (ql_module)module), least);
    }
    return QL_OK;
}

static ql_status start_layers(ql_model *model, ql_workers *workers, ql_error *err)
{
    double plain = 0, now = 0;
    ql_status status = QL_OK;
    for (size_t i = 0; i < model->config.layers * QL_MODULES && !status; i++) {
        if (!model->blocks[i / QL_MODULES].linear[i % QL_MODULES].adapter)
            continue;
        ql_weight *whole;
        layer_job job = {.model = model, .index = i, .workers = workers, .err = err};
        status = ql_model_load_linear(&whole, model, i / QL_MODULES, (ql_module)(i % QL_MODULES), workers, err);
        job.whole = whole;
        if (!status)
            status = start_layer(&job, &plain, &now);
        ql_weight_destroy(whole);
    }
    model->start_error[0] = sqrt(plain);
    model->start_error[1] = sqrt(now);
    return status;
}

ql_status ql_start_adapters(ql_model *model, ql_error *err)
{
    const ql_lora_options *o = &model->lora;
    ql_adapters *set = model->adapters;
    if (o->init == QL_INIT_GAUSSIAN && !model->planned)
        ql_adapters_gaussian(set, o->seed);
    if (o->init != QL_INIT_PISSA && o->init != QL_INIT_LOFTQ)
        return QL_OK;
    model->start_bytes = set->count * sizeof *model->start;
    if (model->planned)
        return QL_OK;
    model->start = malloc(model->start_bytes);
    ql_workers *own = NULL;
    ql_status status = model->start ? QL_OK : ql_fail(err, QL_ERR_MEMORY, "adapters: out of memory");
    if (!status && !o->workers)
        status = ql_workers_create(&own, 0, err);
    if (!status)
        status = start_layers(model, own ? own : o->workers, err);
    if (!status)
        memcpy(model->start, set->value, model->start_bytes);
    ql_workers_destroy(own);
    return status;
}

void ql_model_start_error(const ql_model *model, double *plain, double *now)
{
    *plain = model->start_error[0];
    *now = model->start_error[1];
}
