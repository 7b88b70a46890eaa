/* Seconds of a step from a short run: a model of the same shape with two layers, random weights and a part of the
 * vocabulary takes a few steps, and each part of their time grows with what it depends on. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/workers.h"
#include "quant/weight.h"
#include "train/trainer.h"

enum { SAMPLE_LAYERS = 2, SAMPLE_WORDS = 8192, SAMPLE_TOKENS = 1024, MOST_STEPS = 3 };

typedef struct sample {
    ql_model_config config;
    ql_format format;
    size_t sequence, sequences;
    ql_model *model;
    ql_dataset *data;
    ql_part_times step; /* of a step */
    double forward;     /* of a pass without its loss */
} sample;

/* The model in small. ggml's blocks are stood for by NF4, which takes about as long. */
static ql_status make_model(sample *s, const ql_model *model, ql_workers *workers, ql_error *err)
{
    bool bf16 = model->blocks[0].weight[0]->kernel->bf16_inputs;
    ql_lora_options lora = model->lora;
    s->config = model->config;
    s->config.layers = s->config.layers < SAMPLE_LAYERS ? s->config.layers : SAMPLE_LAYERS;
    s->config.vocab_size = s->config.vocab_size < SAMPLE_WORDS ? s->config.vocab_size : SAMPLE_WORDS;
    s->config.tied = true;
    s->format = ql_code_is_ggml(model->format.code) ? ql_format_default() : model->format;
    lora.init = QL_INIT_DEFAULT;
    lora.workers = workers;
    ql_status status = ql_model_random(&s->model, &s->config, s->format, 1, workers, err);
    if (status)
        return status;
    ql_model_allow_bf16(s->model, bf16);
    return ql_model_attach(s->model, &lora, err);
}

static ql_status make_data(sample *s, size_t count, ql_error *err)
{
    size_t length = s->sequence + 1;
    int32_t *ids = malloc(length * sizeof *ids);
    uint8_t *learn = malloc(length);
    ql_sample *samples = malloc(count * sizeof *samples);
    ql_status status = QL_ERR_MEMORY;
    if (ids && learn && samples) {
        memset(learn, 1, length);
        for (size_t i = 0; i < length; i++)
            ids[i] = (int32_t)(i * 2654435761u % s->config.vocab_size);
        for (size_t i = 0; i < count; i++)
            samples[i] = (ql_sample){ids, learn, length};
        status = ql_dataset_from_samples(&s->data, samples, count, err);
    } else {
        ql_fail(err, status, "estimate: out of memory");
    }
    free(ids);
    free(learn);
    free(samples);
    return status;
}

static double whole(const ql_part_times *times)
{
    double sum = 0;
    for (int part = 0; part < QL_PARTS; part++)
        sum += times->seconds[part];
    return sum;
}

/* One step to warm up and one that counts; while they are short the fastest of more. */
static ql_status time_steps(sample *s, const ql_train_options *options, ql_workers *workers, ql_error *err)
{
    ql_trainer *trainer;
    ql_train_options o = *options;
    o.batch_size = s->sequences;
    o.grad_accum = 1;
    o.recompute_blocks = 0;
    o.steps = MOST_STEPS + 1;
    o.warmup_steps = 0;
    ql_status status = ql_trainer_create(&trainer, s->model, s->data, &o, workers, err);
    if (status)
        return status;
    double start = ql_seconds();
    for (int i = 0; i <= MOST_STEPS && !status && (i < 2 || ql_seconds() - start < 1); i++) {
        ql_part_times times = {.since = 0};
        ql_step_report report;
        ql_workers_time(workers, &times);
        status = ql_trainer_step(trainer, &report, err);
        ql_workers_time(workers, NULL);
        if (i == 1 || (i > 1 && whole(&times) < whole(&s->step)))
            s->step = times;
    }
    ql_trainer_destroy(trainer);
    return status;
}

/* What recomputation does again. */
static ql_status time_forward(sample *s, ql_workers *workers, ql_error *err)
{
    ql_part_times times = {.since = 0};
    ql_eval_report report;
    ql_workers_time(workers, &times);
    ql_status status = ql_evaluate(&report, s->model, s->data, s->sequences, workers, err);
    ql_workers_time(workers, NULL);
    s->forward = whole(&times) - times.seconds[QL_PART_LOSS];
    return status;
}

/* Multiplications of the linear layers' transposed products: the first block needs no gradient of its input. */
static double backward_work(const ql_model_config *c, size_t layers)
{
    double linear = 0, unneeded = 0;
    for (int module = 0; module < QL_MODULES; module++) {
        double size = (double)ql_module_inputs(c, module) * (double)ql_module_outputs(c, module);
        linear += size;
        unneeded += module <= QL_V ? size : 0;
    }
    return (double)layers * linear - unneeded;
}

static void grow(ql_step_estimate *out, const sample *s, const ql_model *model, double tokens,
                 const ql_train_options *options)
{
    const ql_model_config *c = &model->config;
    double sampled = (double)(s->sequence * s->sequences), micro_batches = (double)options->grad_accum, each[QL_PARTS];
    size_t most = c->layers - 1, again = options->recompute_blocks < most ? options->recompute_blocks : most;
    double layers = (double)c->layers / (double)s->config.layers;
    for (int part = 0; part < QL_PARTS; part++)
        each[part] = s->step.seconds[part] * (part == QL_PART_OPTIMIZER ? layers : tokens / sampled);
    each[QL_PART_LOSS] *= (double)ql_weight_rows(model->head) / (double)s->config.vocab_size;
    each[QL_PART_BACKWARD] *= backward_work(c, c->layers) / backward_work(c, s->config.layers);
    double rest = each[QL_PART_FORWARD] + each[QL_PART_ATTENTION] + each[QL_PART_ADAPTERS] + each[QL_PART_OTHER];
    out->kept = micro_batches * (layers * rest + each[QL_PART_BACKWARD] + each[QL_PART_LOSS]) + each[QL_PART_OPTIMIZER];
    double block = micro_batches * s->forward * tokens / sampled / (double)s->config.layers;
    out->recomputed = out->kept + block * (double)most;
    out->asked = out->kept + block * (double)again;
    out->tokens = tokens * micro_batches;
}

ql_status ql_train_estimate(ql_step_estimate *out, const ql_model *model, ql_train_shape data,
                            const ql_train_options *options, ql_workers *workers, ql_error *err)
{
    *out = (ql_step_estimate){0};
    if (!ql_model_adapter_parameters(model) || !data.samples || data.longest < 2)
        return ql_fail(err, QL_ERR_ARG, "estimate: the model needs adapters, and the data a sample");
    double start = ql_seconds();
    size_t longest = data.longest - 1, batch = options->batch_size < data.samples ? options->batch_size : data.samples;
    size_t enough = (SAMPLE_TOKENS + longest - 1) / longest;
    sample s = {.sequence = longest, .sequences = batch < enough ? batch : enough};
    ql_status status = make_model(&s, model, workers, err);
    if (!status)
        status = make_data(&s, s.sequences, err);
    if (!status)
        status = time_steps(&s, options, workers, err);
    if (!status)
        status = time_forward(&s, workers, err);
    if (!status) {
        double mean = data.tokens ? (double)(data.tokens - data.samples) / (double)data.samples : (double)longest;
        grow(out, &s, model, mean * (double)batch, options);
    }
    ql_dataset_close(s.data);
    ql_model_destroy(s.model);
    out->took = ql_seconds() - start;
    return status ? ql_fail_in(err, status, "estimate of the time of a step") : QL_OK;
}
