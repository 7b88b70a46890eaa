/* The training loop's state and one optimizer step. */
#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/workers.h"
#include "train/health.h"

ql_train_options ql_train_options_defaults(void)
{
    return (ql_train_options){
        .batch_size = 4,
        .grad_accum = 1,
        .epochs = 1,
        .lr = 2e-4,
        .beta1 = 0.9,
        .beta2 = 0.999,
        .eps = 1e-8,
        .loraplus_ratio = 1,
        .max_grad_norm = 1,
        .schedule = QL_SCHEDULE_COSINE,
        .bf16_activations = true,
        .shuffle = true,
    };
}

static ql_status check_options(const ql_train_options *o, ql_error *err)
{
    if (!o->batch_size || o->batch_size > 1 << 20)
        return ql_fail(err, QL_ERR_ARG, "batch size %zu: must be 1 to 1048576", o->batch_size);
    if (!o->grad_accum || o->grad_accum > 1 << 20)
        return ql_fail(err, QL_ERR_ARG, "gradient accumulation %zu: must be 1 to 1048576", o->grad_accum);
    if (!o->steps && !(o->epochs > 0 && o->epochs <= 1e6))
        return ql_fail(err, QL_ERR_ARG, "epochs %g: must be above 0, or give steps", o->epochs);
    if (!(o->lr >= 0 && o->lr <= 1e3))
        return ql_fail(err, QL_ERR_ARG, "learning rate %g: must be 0 to 1000", o->lr);
    if (o->on_nonfinite != QL_NONFINITE_STOP && o->on_nonfinite != QL_NONFINITE_SKIP)
        return ql_fail(err, QL_ERR_ARG, "on_nonfinite %d: must be to stop or to skip", (int)o->on_nonfinite);
    if (!(o->neftune_alpha >= 0 && o->neftune_alpha <= 1e6))
        return ql_fail(err, QL_ERR_ARG, "NEFTune's alpha %g: must be 0 (none) to 1e6", o->neftune_alpha);
    if (!(o->max_grad_norm >= 0))
        return ql_fail(err, QL_ERR_ARG, "gradient norm limit %g: must be positive, or 0 for none", o->max_grad_norm);
    return QL_OK;
}

static void plan_steps(ql_trainer *t)
{
    const ql_train_options *o = &t->options;
    size_t per_step = o->batch_size * o->grad_accum;
    t->samples = ql_dataset_count(t->batcher.data);
    t->steps_per_epoch = (t->samples + per_step - 1) / per_step;
    t->steps = o->steps ? o->steps : (size_t)ceil(o->epochs * (double)t->steps_per_epoch);
}

static ql_status build(ql_trainer *t, const ql_dataset *data, ql_error *err)
{
    const ql_train_options *o = &t->options;
    const ql_adapters *adapters = t->model->adapters;
    if (!ql_model_adapter_parameters(t->model))
        return ql_fail(err, QL_ERR_ARG, "the model has no trainable adapter: attach one first");
    ql_status status = check_options(o, err);
    if (!status)
        status = ql_batcher_init(&t->batcher, data, o->batch_size, &t->model->config, err);
    if (status)
        return status;
    plan_steps(t);
    t->order = malloc(t->samples * sizeof *t->order);
    if (!t->order)
        return ql_fail(err, QL_ERR_MEMORY, "the order of %zu samples: out of memory", t->samples);
    const ql_adamw_options adamw = {o->optim, o->beta1, o->beta2, o->eps, o->weight_decay, o->loraplus_ratio};
    status = ql_adamw_init(&t->optimizer, adapters->count, &adamw, err);
    if (status)
        return status;
    const ql_pass_kind kind = {true, o->bf16_activations, o->recompute_blocks};
    return ql_pass_init(&t->pass, t->model, t->batcher.tokens, t->batcher.longest, kind, t->workers, err);
}

ql_status ql_trainer_create(ql_trainer **out, ql_model *model, const ql_dataset *data, const ql_train_options *options,
                            ql_workers *workers, ql_error *err)
{
    *out = NULL;
    ql_trainer *t = calloc(1, sizeof *t);
    if (!t)
        return ql_fail(err, QL_ERR_MEMORY, "trainer: out of memory");
    t->model = model;
    t->workers = workers;
    t->options = *options;
    ql_status status = build(t, data, err);
    if (status) {
        ql_trainer_destroy(t);
        return status;
    }
    *out = t;
    return QL_OK;
}

void ql_trainer_destroy(ql_trainer *t)
{
    if (!t)
        return;
    ql_pass_free(&t->pass);
    ql_batcher_free(&t->batcher);
    ql_adamw_free(&t->optimizer);
    free(t->order);
    free(t);
}

size_t ql_trainer_steps(const ql_trainer *t)
{
    return t->steps;
}

size_t ql_trainer_done(const ql_trainer *t)
{
    return t->done;
}

size_t ql_trainer_skipped(const ql_trainer *t)
{
    return t->skipped;
}

ql_trainer_bytes ql_trainer_memory(const ql_trainer *t)
{
    const ql_adapters *a = t->model->adapters;
    return (ql_trainer_bytes){
        .adapters = ql_adapters_bytes(a) - a->count * sizeof *a->grad + t->model->start_bytes,
        .gradients = a->count * sizeof *a->grad,
        .optimizer = ql_adamw_bytes(t->options.optim, t->optimizer.count),
        .activations = t->pass.bytes,
        .workspace = ql_workers_bytes(t->workers) + ql_batcher_bytes(t->batcher.samples, t->batcher.longest) +
                     t->samples * sizeof *t->order,
    };
}

/* ---- a step ---- */

/* Samples [first, first + count) of the epoch's order belong to this step. */
typedef struct slice {
    size_t first, count;
} slice;

static slice begin_step(ql_trainer *t)
{
    size_t epoch = t->done / t->steps_per_epoch;
    if (t->ordered_epoch != epoch + 1) {
        for (size_t i = 0; i < t->samples; i++)
            t->order[i] = i;
        if (t->options.shuffle)
            ql_dataset_order(t->batcher.data, t->options.seed, epoch, t->order);
        t->ordered_epoch = epoch + 1;
    }
    size_t per_step = t->options.batch_size * t->options.grad_accum;
    slice s = {.first = t->done % t->steps_per_epoch * per_step};
    s.count = t->samples - s.first < per_step ? t->samples - s.first : per_step;
    return s;
}

static size_t micro_batches(const ql_trainer *t, slice s)
{
    return (s.count + t->options.batch_size - 1) / t->options.batch_size;
}

/* Adds up the gradients of the step's micro-batches, each weighted by its learned tokens. */
static ql_status accumulate(ql_trainer *t, slice s, ql_step_report *report, ql_error *err)
{
    size_t batch_size = t->options.batch_size;
    double sum = 0;
    report->learned = ql_batcher_learned(&t->batcher, t->order, s.first, s.count);
    ql_mark(t->workers, QL_PART_OPTIMIZER);
    ql_adapters_zero_grad(t->model->adapters, t->workers);
    ql_mark(t->workers, QL_PART_OTHER);
    for (size_t i = 0; i < micro_batches(t, s); i++) {
        size_t at = i * batch_size, count = s.count - at < batch_size ? s.count - at : batch_size;
        ql_batch batch = ql_batcher_fill(&t->batcher, t->order, s.first + at, count);
        ql_dropout mask = {(float)t->model->lora.dropout, t->options.seed, t->forwards + i, 0};
        const ql_dropout *dropout = mask.p > 0 ? &mask : NULL;
        batch.noise = (ql_noise){(float)t->options.neftune_alpha, t->options.seed, t->forwards + i};
        ql_loss_sum loss;
        ql_status status = ql_pass_run(&t->pass, &batch, (float)(1.0 / (double)report->learned), dropout, NULL, &loss,
                                       t->workers, err);
        report->tokens += batch.tokens;
        if (status == QL_ERR_VALUE) {
            report->loss = NAN;
            return ql_health_logits(t, &batch, loss.first_bad, s.first + at, dropout, err);
        }
        if (status)
            return status;
        sum += loss.sum;
    }
    report->loss = sum / (double)report->learned;
    return QL_OK;
}

/* Gradients, their norm and the rate. QL_ERR_VALUE tells where they are not finite. */
static ql_status compute(ql_trainer *t, slice s, ql_step_report *report, ql_error *err)
{
    const ql_train_options *o = &t->options;
    report->lr = o->lr * ql_schedule_factor(o->schedule, t->done, o->warmup_steps, t->steps);
    ql_status status = accumulate(t, s, report, err);
    if (status)
        return status;
    ql_mark(t->workers, QL_PART_OPTIMIZER);
    if (ql_grad_norm(&report->grad_norm, t->model->adapters, t->workers, err))
        return ql_health_gradients(t, s.first, s.count, report->grad_norm, err);
    return QL_OK;
}

/* A step that cannot be taken: whether it is passed over. */
static ql_status pass_over(ql_trainer *t, ql_step_report *report, ql_status status, ql_error *err)
{
    if (status != QL_ERR_VALUE)
        return status;
    ql_error adapters = {0}; /* theirs is the better reason, and with them no step will do */
    if (ql_health_adapters(t, &adapters))
        return ql_fail(err, QL_ERR_VALUE, "%s", adapters.message);
    if (t->options.on_nonfinite == QL_NONFINITE_STOP)
        return status;
    report->skipped = true;
    t->skipped++;
    return QL_OK;
}

ql_status ql_trainer_step(ql_trainer *t, ql_step_report *report, ql_error *err)
{
    *report = (ql_step_report){.step = t->done + 1};
    if (t->done == t->steps)
        return ql_fail(err, QL_ERR_ARG, "the run is complete: all %zu steps are done", t->steps);
    double start = ql_seconds();
    slice s = begin_step(t);
    ql_status status = compute(t, s, report, err);
    if (status) {
        status = pass_over(t, report, status, err);
    } else {
        double clip = ql_clip_factor(report->grad_norm, t->options.max_grad_norm);
        ql_adamw_step(&t->optimizer, t->model->adapters, report->lr, clip, t->workers);
        ql_model_refresh(t->model, t->workers);
        status = ql_health_adapters(t, err);
    }
    ql_mark(t->workers, QL_PART_OTHER);
    if (status || report->skipped)
        ql_fail_in(err, status ? status : QL_ERR_VALUE, "step %zu", t->done + 1);
    if (status)
        return status;
    t->done++;
    t->forwards += micro_batches(t, s);
    report->epoch = (double)(t->done - 1 - (t->done - 1) % t->steps_per_epoch) / (double)t->steps_per_epoch +
                    (double)(s.first + s.count) / (double)t->samples;
    report->seconds = ql_seconds() - start;
    return QL_OK;
}
