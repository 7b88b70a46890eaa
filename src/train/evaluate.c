#include <math.h>

#include "base/clock.h"
#include "base/error.h"
#include "qlora/train.h"
#include "train/batch.h"

static ql_status run(ql_eval_report *report, ql_pass *pass, ql_batcher *batcher, size_t batch_size, ql_workers *workers,
                     ql_error *err)
{
    size_t count = ql_dataset_count(batcher->data);
    double sum = 0;
    for (size_t first = 0; first < count; first += batch_size) {
        size_t samples = count - first < batch_size ? count - first : batch_size;
        ql_batch batch = ql_batcher_fill(batcher, NULL, first, samples);
        ql_loss_sum loss;
        ql_status status = ql_pass_run(pass, &batch, 0, NULL, NULL, &loss, workers, err);
        if (status)
            return ql_fail_in(err, status, "evaluation, samples %zu to %zu", first, first + samples - 1);
        sum += loss.sum;
        report->learned += loss.count;
        report->tokens += batch.tokens;
    }
    report->samples = count;
    report->loss = sum / (double)report->learned;
    report->perplexity = exp(report->loss);
    return QL_OK;
}

size_t ql_evaluate_bytes(const ql_model *model, ql_train_shape data, size_t batch_size)
{
    size_t samples = batch_size < data.samples ? batch_size : data.samples, longest = data.longest - 1;
    ql_scratch need;
    return ql_batcher_bytes(samples, longest) +
           ql_pass_measure(model, samples * longest, longest, (ql_pass_kind){0}, 1, &need);
}

ql_status ql_evaluate(ql_eval_report *report, const ql_model *model, const ql_dataset *data, size_t batch_size,
                      ql_workers *workers, ql_error *err)
{
    *report = (ql_eval_report){0};
    if (!batch_size)
        return ql_fail(err, QL_ERR_ARG, "batch size: must be at least 1");
    double start = ql_seconds();
    ql_batcher batcher = {0};
    ql_pass pass = {0};
    ql_status status = ql_batcher_init(&batcher, data, batch_size, &model->config, err);
    if (!status)
        status = ql_pass_init(&pass, model, batcher.tokens, batcher.longest, (ql_pass_kind){0}, workers, err);
    if (!status)
        status = run(report, &pass, &batcher, batch_size, workers, err);
    ql_pass_free(&pass);
    ql_batcher_free(&batcher);
    report->seconds = ql_seconds() - start;
    return status;
}
