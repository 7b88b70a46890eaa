#include "train/health.h"

#include <stdatomic.h>
#include <stdio.h>

#include "base/error.h"
#include "base/finite.h"
#include "base/workers.h"

/* Of adapter `index` of the set, as the model's layers go. */
static const char *name_adapter(const ql_trainer *t, size_t index, char text[QL_LOCATE_BYTES])
{
    const ql_model *model = t->model;
    for (size_t i = 0; i < model->config.layers * QL_MODULES; i++)
        if (model->blocks[i / QL_MODULES].linear[i % QL_MODULES].adapter == &model->adapters->layer[index])
            snprintf(text, QL_LOCATE_BYTES, "layer %zu, %s", i / QL_MODULES,
                     ql_module_name(&model->config, (ql_module)(i % QL_MODULES)));
    return text;
}

typedef struct finite_job {
    const ql_adapters *set;
    atomic_size_t first_bad;
} finite_job;

static void check_adapter(void *ctx, size_t index, size_t worker)
{
    finite_job *job = ctx;
    const ql_adapter *a = &job->set->layer[index];
    (void)worker;
    if (ql_all_finite_f16(a->a, a->count) && ql_all_finite(a->master_a, a->count))
        return;
    size_t known = atomic_load(&job->first_bad);
    while (index < known && !atomic_compare_exchange_weak(&job->first_bad, &known, index))
        ;
}

ql_status ql_health_adapters(const ql_trainer *t, ql_error *err)
{
    finite_job job = {.set = t->model->adapters, .first_bad = t->model->adapters->layers};
    char text[QL_LOCATE_BYTES];
    ql_parallel(t->workers, job.set->layers, check_adapter, &job);
    if (job.first_bad == job.set->layers)
        return QL_OK;
    return ql_fail(err, QL_ERR_VALUE,
                   "the adapter of %s has numbers that are not finite in FP16: "
                   "go on from an earlier checkpoint with a lower learning rate",
                   name_adapter(t, job.first_bad, text));
}

ql_status ql_health_logits(ql_trainer *t, const ql_batch *batch, size_t bad, size_t first, const ql_dropout *dropout,
                           ql_error *err)
{
    char text[QL_LOCATE_BYTES];
    size_t sequence = 0;
    while (batch->start[sequence + 1] <= bad)
        sequence++;
    size_t sample = t->order[first + sequence], token = bad - batch->start[sequence];
    int id = (int)batch->ids[bad];
    return ql_fail(err, QL_ERR_VALUE,
                   "sample %zu: the logits after its token %zu (id %d) are not finite; it begins in %s", sample, token,
                   id, ql_pass_locate(&t->pass, batch, dropout, t->workers, text));
}

/* Backward goes from the last layer to the first, and what is not finite spreads that way. */
static size_t last_bad(const ql_adapters *set)
{
    size_t i = set->layers;
    while (i > 0 && ql_all_finite(set->layer[i - 1].grad_a, set->layer[i - 1].count))
        i--;
    return i;
}

ql_status ql_health_gradients(ql_trainer *t, size_t first, size_t count, double norm, ql_error *err)
{
    ql_adapters *set = t->model->adapters;
    char text[QL_LOCATE_BYTES] = "", sample[64] = "no sample alone";
    size_t index = last_bad(set);
    if (index)
        name_adapter(t, index - 1, text);
    for (size_t i = 0; i < count; i++) {
        ql_batch batch = ql_batcher_fill(&t->batcher, t->order, first + i, 1);
        ql_loss_sum loss;
        ql_adapters_zero_grad(set, t->workers);
        if (ql_pass_run(&t->pass, &batch, 1, NULL, NULL, &loss, t->workers, NULL) || last_bad(set)) {
            snprintf(sample, sizeof sample, "sample %zu", t->order[first + i]);
            break;
        }
    }
    return ql_fail(err, QL_ERR_VALUE, "%s: the norm of the gradient is %g; on the way back it begins in %s", sample,
                   norm, text);
}
