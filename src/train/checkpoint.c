/* A run in one safetensors file. The tensors are what steps change; the metadata say where the run stands and
 * what must be the same for it to go on. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "qlora/io.h"
#include "quant/weight.h"
#include "train/health.h"
#include "train/moments8.h"

#define VERSION "2"

enum { FIELDS = 40, VALUE_BYTES = 96 };

/* Names and values as they stand in the file's metadata. The first `same` of them must agree between the
 * checkpoint and the run that goes on from it. */
typedef struct record {
    size_t count, same;
    ql_metadata pair[FIELDS];
    char value[FIELDS][VALUE_BYTES];
} record;

static void put(record *r, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void put(record *r, const char *name, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(r->value[r->count], VALUE_BYTES, format, args);
    va_end(args);
    r->pair[r->count] = (ql_metadata){name, r->value[r->count]};
    r->count++;
}

static void put_real(record *r, const char *name, double value)
{
    put(r, name, "%.17g", value); /* so many digits tell any two numbers apart */
}

static void put_size(record *r, const char *name, uint64_t value)
{
    put(r, name, "%" PRIu64, value);
}

/* ---- fingerprints ---- */

static uint64_t mix(uint64_t hash, const void *data, size_t bytes)
{
    return ql_hash_mix(hash, ql_hash(data, bytes));
}

static uint64_t hash_data(const ql_dataset *data)
{
    uint64_t hash = ql_dataset_count(data);
    for (size_t i = 0; i < ql_dataset_count(data); i++) {
        ql_sample sample = ql_dataset_sample(data, i);
        hash = mix(hash, sample.ids, sample.length * sizeof *sample.ids);
        hash = mix(hash, sample.learn, sample.length);
    }
    return hash;
}

/* Norms and biases, and the first row of every matrix as the products see it: enough to tell models of one shape
 * apart, at the cost of a few pages. row[] has room for the longest. */
static uint64_t hash_weights(const ql_model *model, float *row)
{
    const ql_model_config *c = &model->config;
    uint64_t hash = mix(0, model->dense, model->dense_bytes);
    ql_weight_dequantize(model->embed, 0, 1, row, c->hidden_size);
    hash = mix(hash, row, c->hidden_size * sizeof *row);
    ql_weight_dequantize(model->head, 0, 1, row, c->hidden_size);
    hash = mix(hash, row, c->hidden_size * sizeof *row);
    for (size_t i = 0; i < c->layers * QL_MODULES; i++) {
        const ql_weight *w = model->blocks[i / QL_MODULES].weight[i % QL_MODULES];
        if (!w)
            continue;
        ql_weight_dequantize(w, 0, 1, row, ql_weight_cols(w));
        hash = mix(hash, row, ql_weight_cols(w) * sizeof *row);
    }
    return hash;
}

static uint64_t hash_shapes(const ql_adapters *set)
{
    uint64_t hash = set->layers;
    for (size_t i = 0; i < set->layers; i++) {
        const ql_adapter *a = &set->layer[i];
        hash = mix(hash, (size_t[]){a->k, a->n, a->r}, 3 * sizeof(size_t));
        hash = mix(hash, &a->scaling, sizeof a->scaling);
    }
    return hash;
}

/* Where the run stands. */
typedef struct progress {
    uint64_t done, of, updates, skipped, forwards;
} progress;

/* What steps change, as it stands in the file and in memory. */
typedef struct state {
    size_t parts, bytes;
    struct {
        const char *name;
        ql_dtype type;
        size_t count;
        void *data;
    } part[5];
} state;

static void add_part(state *s, const char *name, ql_dtype type, size_t count, void *data)
{
    s->part[s->parts].name = name;
    s->part[s->parts].type = type;
    s->part[s->parts].count = count;
    s->part[s->parts].data = data;
    s->parts++;
    s->bytes += count * ql_dtype_size(type);
}

static state state_of(const ql_trainer *t)
{
    const ql_adamw *opt = &t->optimizer;
    size_t count = opt->count, blocks = (count + QL_MOMENT_BLOCK - 1) / QL_MOMENT_BLOCK;
    state s = {0};
    add_part(&s, "master", QL_F32, count, t->model->adapters->master);
    if (opt->options.kind == QL_OPTIM_ADAMW) {
        add_part(&s, "moment1", QL_F32, count, opt->m);
        add_part(&s, "moment2", QL_F32, count, opt->v);
        return s;
    }
    add_part(&s, "moment1.codes", QL_U8, count, opt->m8);
    add_part(&s, "moment1.scales", QL_F32, blocks, opt->m_scale);
    add_part(&s, "moment2.codes", QL_U8, count, opt->v8);
    add_part(&s, "moment2.scales", QL_F32, blocks, opt->v_scale);
    return s;
}

/* data: the parts one after another, or NULL for those in memory. */
static uint64_t hash_state(const progress *p, const state *s, const char *data)
{
    uint64_t hash = mix(s->part[0].count, p, sizeof *p);
    for (size_t i = 0, at = 0; i < s->parts; i++) {
        size_t bytes = s->part[i].count * ql_dtype_size(s->part[i].type);
        hash = mix(hash, data ? data + at : s->part[i].data, bytes);
        at += bytes;
    }
    return hash;
}

/* ---- the record of a run ---- */

static void put_model(record *r, const ql_model *model, uint64_t weights)
{
    char text[48];
    const ql_model_config *c = &model->config;
    put(r, "model", "%s, %zu layers of %zu, mlp %zu, heads %zu/%zu of %zu, vocabulary %zu", ql_arch_name(c->arch),
        c->layers, c->hidden_size, c->intermediate_size, c->heads, c->kv_heads, c->head_dim, c->vocab_size);
    put(r, "base format", "%s", ql_format_describe(model->format, text));
    put(r, "bf16 products", "%s", model->blocks[0].weight[0]->kernel->bf16_inputs ? "yes" : "no");
    put(r, "base weights", "%016" PRIx64, weights);
}

static void put_adapters(record *r, const ql_model *model)
{
    char text[VALUE_BYTES] = "";
    const ql_lora_options *lora = &model->lora;
    for (int i = 0, used = 0; i < QL_MODULES; i++)
        if (lora->modules >> i & 1 && ql_module_present(&model->config, (ql_module)i))
            used += snprintf(text + used, sizeof text - (size_t)used, "%s%s", used ? "," : "",
                             ql_module_name(&model->config, (ql_module)i));
    put_size(r, "rank", lora->rank);
    put_real(r, "alpha", lora->alpha);
    put(r, "rslora", "%s", lora->use_rslora ? "yes" : "no");
    put(r, "dora", "%s", lora->use_dora ? "yes" : "no");
    put(r, "init", "%s", ql_lora_init_name(lora->init));
    put_real(r, "dropout", lora->dropout);
    put(r, "target-modules", "%s", text);
    put(r, "adapter shapes", "%016" PRIx64, hash_shapes(model->adapters));
}

static void put_options(record *r, const ql_trainer *t)
{
    const ql_train_options *o = &t->options;
    put_size(r, "batch-size", o->batch_size);
    put_size(r, "grad-accum", o->grad_accum);
    put(r, "optim", "%s", ql_optim_name(o->optim));
    /* Recomputing from what was rounded is not the same as keeping what was computed. */
    if (o->bf16_activations)
        put(r, "kind of activations", "bf16, %zu blocks recomputed", t->pass.kind.recompute);
    else
        put(r, "kind of activations", "f32");
    put_real(r, "lr", o->lr);
    put_real(r, "loraplus-ratio", o->loraplus_ratio);
    put_real(r, "beta1", o->beta1);
    put_real(r, "beta2", o->beta2);
    put_real(r, "eps", o->eps);
    put_real(r, "weight-decay", o->weight_decay);
    put_real(r, "max-grad-norm", o->max_grad_norm);
    put_real(r, "neftune-alpha", o->neftune_alpha);
    put(r, "schedule", "%s", ql_schedule_name(o->schedule));
    put_size(r, "warmup-steps", o->warmup_steps);
    put(r, "shuffle", "%s", o->shuffle ? "yes" : "no");
    put_size(r, "seed", o->seed);
    if (o->schedule != QL_SCHEDULE_CONSTANT)
        put_size(r, "steps", t->steps);
}

/* What must be the same, and the version, without which nothing can be said. */
static ql_status describe(record *r, const ql_trainer *t, ql_error *err)
{
    const ql_model_config *c = &t->model->config;
    size_t longest = c->hidden_size;
    for (int i = 0; i < QL_MODULES; i++)
        longest = ql_module_inputs(c, (ql_module)i) > longest ? ql_module_inputs(c, (ql_module)i) : longest;
    float *row = malloc(longest * sizeof *row);
    if (!row)
        return ql_fail(err, QL_ERR_MEMORY, "checkpoint: out of memory");
    r->count = 0;
    put(r, "format", "qlora checkpoint");
    put(r, "version", VERSION);
    put_model(r, t->model, hash_weights(t->model, row));
    put(r, "data", "%zu samples, %016" PRIx64, t->samples, hash_data(t->batcher.data));
    put_adapters(r, t->model);
    put_options(r, t);
    r->same = r->count;
    free(row);
    return QL_OK;
}

ql_status ql_trainer_save(const ql_trainer *t, const char *path, ql_error *err)
{
    ql_status status = ql_health_adapters(t, err); /* never over a good one */
    if (status)
        return ql_fail_in(err, status, "%s: not written", path);
    record *r = malloc(sizeof *r);
    status = r ? describe(r, t, err) : ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    if (!status) {
        const state s = state_of(t);
        ql_tensor tensors[sizeof s.part / sizeof *s.part];
        for (size_t i = 0; i < s.parts; i++)
            tensors[i] = (ql_tensor){.name = s.part[i].name, .dtype = s.part[i].type, .ndim = 1,
                                     .shape = {s.part[i].count}, .data = s.part[i].data};
        const progress p = {t->done, t->steps, t->optimizer.step, t->skipped, t->forwards};
        put_size(r, "done", p.done);
        put_size(r, "of", p.of);
        put_size(r, "updates", p.updates);
        put_size(r, "skipped", p.skipped);
        put_size(r, "micro-batches", p.forwards);
        put(r, "checksum", "%016" PRIx64, hash_state(&p, &s, NULL));
        status = ql_safetensors_write(path, tensors, s.parts, r->pair, r->count, err);
    }
    free(r);
    return status;
}

/* ---- reading ---- */

static ql_status get_size(const ql_tensors *file, const char *name, uint64_t *out, ql_error *err)
{
    const char *text = ql_tensors_metadata(file, name);
    char *end = NULL;
    errno = 0;
    if (text && *text >= '0' && *text <= '9')
        *out = strtoull(text, &end, 10);
    if (!end || *end || errno)
        return ql_fail(err, QL_ERR_FORMAT, "%s: damaged: \"%s\" is %s", ql_tensors_path(file), name,
                       text ? text : "missing");
    return QL_OK;
}

static ql_status check_same(const ql_tensors *file, const record *r, ql_error *err)
{
    const char *path = ql_tensors_path(file);
    for (size_t i = 0; i < r->same; i++) {
        const char *name = r->pair[i].key, *here = r->pair[i].value, *there = ql_tensors_metadata(file, name);
        if (there && strcmp(here, there) == 0)
            continue;
        if (i == 0)
            return ql_fail(err, QL_ERR_FORMAT, "%s: this is not a checkpoint of a run", path);
        if (i == 1)
            return ql_fail(err, QL_ERR_FORMAT, "%s: a checkpoint of version %s; this library reads version %s", path,
                           there ? there : "(none)", here);
        return ql_fail(err, QL_ERR_ARG,
                       "%s: the run that was stopped cannot be gone on with: its %s was %s and is %s now", path, name,
                       there ? there : "(none)", here);
    }
    return QL_OK;
}

static ql_status read_progress(progress *p, const ql_tensors *file, const ql_trainer *t, ql_error *err)
{
    const struct {
        const char *name;
        uint64_t *out;
    } sizes[] = {{"done", &p->done}, {"of", &p->of}, {"updates", &p->updates}, {"skipped", &p->skipped},
                 {"micro-batches", &p->forwards}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        ql_status status = get_size(file, sizes[i].name, sizes[i].out, err);
        if (status)
            return status;
    }
    if (p->done > t->steps)
        return ql_fail(err, QL_ERR_ARG, "%s: %" PRIu64 " steps are done already, and the run has %zu",
                       ql_tensors_path(file), p->done, t->steps);
    if (p->skipped > p->done || p->updates != p->done - p->skipped)
        return ql_fail(err, QL_ERR_FORMAT, "%s: damaged: %" PRIu64 " updates in %" PRIu64 " steps, %" PRIu64 " skipped",
                       ql_tensors_path(file), p->updates, p->done, p->skipped);
    return QL_OK;
}

/* The parts from the file, one after another; what its checksum says. */
static ql_status read_state(char *data, const state *s, const ql_tensors *file, const progress *p, ql_error *err)
{
    const char *path = ql_tensors_path(file);
    for (size_t i = 0, at = 0; i < s->parts; i++) {
        const ql_tensor *tensor;
        ql_status status = ql_tensors_need(&tensor, file, s->part[i].name, 1, &s->part[i].count, err);
        if (status)
            return status;
        if (tensor->foreign || tensor->dtype != s->part[i].type)
            return ql_fail(err, QL_ERR_FORMAT, "%s: damaged: \"%s\" is %s, not %s", path, s->part[i].name,
                           tensor->dtype_name, ql_dtype_name(s->part[i].type));
        size_t bytes = s->part[i].count * ql_dtype_size(s->part[i].type);
        memcpy(data + at, tensor->data, bytes);
        at += bytes;
    }
    char sum[VALUE_BYTES];
    const char *wanted = ql_tensors_metadata(file, "checksum");
    snprintf(sum, sizeof sum, "%016" PRIx64, hash_state(p, s, data));
    if (!wanted || strcmp(sum, wanted) != 0)
        return ql_fail(err, QL_ERR_FORMAT, "%s: damaged: its numbers have the checksum %s, not %s", path, sum,
                       wanted ? wanted : "(none)");
    return QL_OK;
}

static ql_status resume(ql_trainer *t, const ql_tensors *file, record *r, const state *s, char *data, ql_error *err)
{
    progress p = {0};
    ql_status status = describe(r, t, err);
    status = status ? status : check_same(file, r, err);
    status = status ? status : read_progress(&p, file, t, err);
    status = status ? status : read_state(data, s, file, &p, err);
    if (status)
        return status;
    for (size_t i = 0, at = 0; i < s->parts; i++) {
        size_t bytes = s->part[i].count * ql_dtype_size(s->part[i].type);
        memcpy(s->part[i].data, data + at, bytes);
        at += bytes;
    }
    ql_adapters_set(t->model->adapters, 0, t->optimizer.count, (const float *)(const void *)data);
    ql_model_refresh(t->model, t->workers);
    t->optimizer.step = p.updates;
    t->done = (size_t)p.done;
    t->skipped = (size_t)p.skipped;
    t->forwards = p.forwards;
    return QL_OK;
}

ql_status ql_trainer_resume(ql_trainer *t, const char *path, ql_error *err)
{
    ql_tensors *file = NULL;
    ql_status status = ql_tensors_open(&file, path, err);
    if (status)
        return status;
    record *r = malloc(sizeof *r);
    const state s = state_of(t);
    char *data = malloc(s.bytes);
    status = r && data ? resume(t, file, r, &s, data, err) : ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", path);
    free(data);
    free(r);
    ql_tensors_close(file);
    return status;
}
