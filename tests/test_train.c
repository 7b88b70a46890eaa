/* Fine-tuning against runs that PyTorch's autograd and AdamW computed in float64, step by step. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "io/path.h"
#include "model/pass.h"
#include "qlora/train.h"
#include "support.h"

static ql_error err;

/* ---- a run of the reference folder ---- */

typedef struct run {
    ql_workers *workers;
    ql_model *model;
    json_t *reference;
    ql_pass pass;
    ql_adamw optimizer;
    double lr;
    size_t rows, columns, steps; /* of a batch: sequences and inputs each */
    int32_t *ids, *target;
    uint32_t *position;
    size_t *start;
} run;

static double number_at(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static void open_run(run *r, const char *folder, ql_format format, size_t threads, ql_pass_kind kind)
{
    const char *base = test_data("models/stories260K-hf");
    char *reference = ql_path_join(folder, "reference.json"), *init = ql_path_join(folder, "adapter_init");
    *r = (run){0};
    ck_assert_ok(ql_workers_create(&r->workers, threads, &err), &err);
    ck_assert_ok(ql_model_open(&r->model, base, format, r->workers, &err), &err);
    ck_assert_ok(ql_adapter_load(r->model, init, true, &err), &err);
    ck_assert_ok(ql_json_read(&r->reference, reference, &err), &err);
    const json_t *batches = json_object_get(r->reference, "batch_token_ids"), *batch = json_array_get(batches, 0);
    r->steps = json_array_size(batches);
    r->rows = json_array_size(batch);
    r->columns = json_array_size(json_array_get(batch, 0)) - 1;
    size_t m = r->rows * r->columns;
    r->ids = malloc(m * sizeof *r->ids);
    r->target = malloc(m * sizeof *r->target);
    r->position = malloc(m * sizeof *r->position);
    r->start = malloc((r->rows + 1) * sizeof *r->start);
    const json_t *adamw = json_object_get(r->reference, "optimizer"), *betas = json_object_get(adamw, "betas");
    r->lr = number_at(adamw, "lr");
    const ql_adamw_options options = {
        .beta1 = json_number_value(json_array_get(betas, 0)),
        .beta2 = json_number_value(json_array_get(betas, 1)),
        .eps = number_at(adamw, "eps"),
        .weight_decay = number_at(adamw, "weight_decay"),
        .b_ratio = 1,
    };
    ck_assert_ok(ql_adamw_init(&r->optimizer, ql_model_adapter_parameters(r->model), &options, &err), &err);
    ck_assert_ok(ql_pass_init(&r->pass, r->model, m, r->columns, kind, r->workers, &err), &err);
    free(reference);
    free(init);
}

static void close_run(run *r)
{
    ql_pass_free(&r->pass);
    ql_adamw_free(&r->optimizer);
    ql_model_destroy(r->model);
    ql_workers_destroy(r->workers);
    json_decref(r->reference);
    free(r->ids);
    free(r->target);
    free(r->position);
    free(r->start);
}

static ql_batch batch_of(run *r, size_t step)
{
    const json_t *batch = json_array_get(json_object_get(r->reference, "batch_token_ids"), step);
    for (size_t i = 0; i < r->rows; i++) {
        const json_t *row = json_array_get(batch, i);
        for (size_t j = 0; j < r->columns; j++) {
            size_t at = i * r->columns + j;
            r->ids[at] = (int32_t)json_integer_value(json_array_get(row, j));
            r->target[at] = (int32_t)json_integer_value(json_array_get(row, j + 1));
            r->position[at] = (uint32_t)j;
        }
        r->start[i + 1] = (i + 1) * r->columns;
    }
    r->start[0] = 0;
    return (ql_batch){
        .tokens = r->rows * r->columns,
        .sequences = r->rows,
        .ids = r->ids,
        .target = r->target,
        .position = r->position,
        .start = r->start,
    };
}

/* Loss of a batch; the gradient is that of the mean. */
static double gradients(run *r, size_t step)
{
    ql_batch batch = batch_of(r, step);
    ql_loss_sum loss;
    ql_adapters_zero_grad(r->model->adapters, NULL);
    ck_assert_ok(ql_pass_run(&r->pass, &batch, 1.0f / (float)batch.tokens, NULL, NULL, &loss, r->workers, &err), &err);
    ck_assert_uint_eq(loss.count, batch.tokens);
    return loss.sum / (double)loss.count;
}

typedef void check_slice(const float *got, const float *wanted, size_t count, const char *name, double tolerance);

/* Compares every adapter matrix of `flat` with the tensor of its name in the file. */
static void compare_file(const run *r, const float *flat, const char *folder, const char *file, check_slice *check,
                         double tolerance)
{
    char *path = ql_path_join(folder, file);
    ql_tensors *tensors;
    ck_assert_ok(ql_tensors_open(&tensors, path, &err), &err);
    const ql_lora_options *lora = &r->model->lora;
    size_t next = 0, seen = 0;
    for (size_t layer = 0; layer < ql_model_shape(r->model)->layers; layer++) {
        for (int module = 0; module < QL_MODULES; module++) {
            if (!(lora->modules >> module & 1))
                continue;
            const ql_adapter *a = &r->model->adapters->layer[next++];
            const float *from[2] = {flat + a->offset, flat + a->offset + a->r * a->k};
            const size_t count[2] = {a->r * a->k, a->n * a->r};
            for (int side = 0; side < 2; side++, seen++) {
                char name[160];
                snprintf(name, sizeof name, "base_model.model.model.layers.%zu.%s.%s.lora_%c.weight", layer,
                         ql_module_path((ql_module)module), ql_module_name(ql_model_shape(r->model), (ql_module)module),
                         "AB"[side]);
                const ql_tensor *tensor;
                ck_assert_ok(ql_tensors_need(&tensor, tensors, name, 2, NULL, &err), &err);
                ck_assert_uint_eq(ql_tensor_elements(tensor), count[side]);
                float *wanted = malloc(count[side] * sizeof *wanted);
                ck_assert_ok(ql_tensor_read_f32(tensor, 0, count[side], wanted, &err), &err);
                check(from[side], wanted, count[side], name, tolerance);
                free(wanted);
            }
        }
    }
    ck_assert_uint_eq(seen, ql_tensors_count(tensors));
    ql_tensors_close(tensors);
    free(path);
}

static void within_largest(const float *got, const float *wanted, size_t count, const char *name, double tolerance)
{
    double largest = 0, worst = 0;
    for (size_t i = 0; i < count; i++) {
        largest = fmax(largest, fabs(wanted[i]));
        worst = fmax(worst, fabs((double)got[i] - wanted[i]));
    }
    ck_assert_msg(worst <= tolerance * largest, "%s: off by %g of its largest entry %g", name, worst / largest,
                  largest);
}

static void within_distance(const float *got, const float *wanted, size_t count, const char *name, double tolerance)
{
    double distance = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        distance += ((double)got[i] - wanted[i]) * ((double)got[i] - wanted[i]);
        norm += (double)wanted[i] * wanted[i];
    }
    ck_assert_msg(distance <= tolerance * tolerance * norm, "%s: relative distance %g", name, sqrt(distance / norm));
}

/* bf16: activations that wait are rounded, by 2^-9 of themselves at most. */
static void check_run(const char *name, ql_format format, ql_pass_kind kind)
{
    const char *folder = test_data(name);
    if (!folder)
        return;
    run r;
    open_run(&r, folder, format, 2, kind);
    double near = kind.bf16 ? 8e-3 : 1e-3;
    const json_t *losses = json_object_get(r.reference, "loss_before_each_step");
    const json_t *norms = json_object_get(r.reference, "grad_l2_norm_each_step");
    for (size_t step = 0; step < r.steps; step++) {
        double wanted = json_number_value(json_array_get(losses, step)), loss = gradients(&r, step), norm;
        ck_assert_msg(fabs(loss - wanted) < near / 10 * wanted, "step %zu: loss %.8f, reference %.8f", step, loss, wanted);
        ck_assert_ok(ql_grad_norm(&norm, r.model->adapters, r.workers, &err), &err);
        wanted = json_number_value(json_array_get(norms, step));
        ck_assert_msg(fabs(norm - wanted) < near * wanted, "step %zu: norm %.8f, reference %.8f", step, norm, wanted);
        if (step == 0)
            compare_file(&r, r.model->adapters->grad, folder, "grads_step0.safetensors", within_largest, near);
        ql_adamw_step(&r.optimizer, r.model->adapters, r.lr, 1.0, r.workers);
    }
    double wanted = number_at(r.reference, "loss_on_batch0_after_all_steps");
    ck_assert_double_eq_tol(gradients(&r, 0), wanted, near / 10 * wanted);
    compare_file(&r, r.model->adapters->master, folder, "adapter_final/adapter_model.safetensors", within_distance,
                 20 * near);
    close_run(&r);
}

static const ql_format none = {.code = QL_CODE_F32, .scale = QL_SCALE_NONE};
static const ql_format bnb_nf4 = {.code = QL_CODE_NF4, .scale = QL_SCALE_F32, .group = 64, .flat = true};

START_TEST(plain_lora_follows_the_reference)
{
    check_run("finetune-reference/lora-fp32-qv", none, (ql_pass_kind){true, false, 0});
}
END_TEST

START_TEST(nf4_lora_follows_the_reference)
{
    check_run("finetune-reference/qlora-nf4-all", bnb_nf4, (ql_pass_kind){true, false, 0});
}
END_TEST

START_TEST(recomputation_follows_the_reference)
{
    check_run("finetune-reference/qlora-nf4-all", bnb_nf4, (ql_pass_kind){true, false, SIZE_MAX});
}
END_TEST

START_TEST(bf16_activations_follow_the_reference)
{
    check_run("finetune-reference/qlora-nf4-all", bnb_nf4, (ql_pass_kind){true, true, _i < 2 ? (size_t)_i : SIZE_MAX});
}
END_TEST

/* ---- the trainer itself ---- */

/* The batches of the reference as a data set in their order. */
static ql_dataset *reference_data(const json_t *reference)
{
    const json_t *batches = json_object_get(reference, "batch_token_ids");
    size_t rows = json_array_size(json_array_get(batches, 0)), count = json_array_size(batches) * rows;
    ql_sample *samples = calloc(count, sizeof *samples);
    int32_t *ids[256];
    uint8_t learn[256];
    memset(learn, 1, sizeof learn);
    ck_assert_uint_le(count, 256);
    for (size_t i = 0; i < count; i++) {
        const json_t *row = json_array_get(json_array_get(batches, i / rows), i % rows);
        samples[i] = (ql_sample){.learn = learn, .length = json_array_size(row)};
        samples[i].ids = ids[i] = malloc(samples[i].length * sizeof *ids[i]);
        for (size_t j = 0; j < samples[i].length; j++)
            ids[i][j] = (int32_t)json_integer_value(json_array_get(row, j));
    }
    ql_dataset *data;
    ck_assert_ok(ql_dataset_from_samples(&data, samples, count, &err), &err);
    for (size_t i = 0; i < count; i++)
        free(ids[i]);
    free(samples);
    return data;
}

/* Micro-batches of one sample must add up to the reference's batches of four. */
START_TEST(trainer_follows_the_reference)
{
    const char *folder = test_data("finetune-reference/qlora-nf4-all");
    if (!folder)
        return;
    run r;
    open_run(&r, folder, bnb_nf4, 2, (ql_pass_kind){0});
    ql_dataset *data = reference_data(r.reference);
    ql_train_options options = ql_train_options_defaults();
    options.batch_size = 1;
    options.grad_accum = 4;
    options.lr = r.lr;
    options.weight_decay = number_at(json_object_get(r.reference, "optimizer"), "weight_decay");
    options.max_grad_norm = 0;
    options.schedule = QL_SCHEDULE_CONSTANT;
    options.shuffle = false;
    options.bf16_activations = false;
    ql_trainer *trainer;
    ck_assert_ok(ql_trainer_create(&trainer, r.model, data, &options, r.workers, &err), &err);
    ck_assert_uint_eq(ql_trainer_steps(trainer), r.steps);
    ql_step_report report;
    for (size_t step = 0; step < r.steps; step++) {
        double wanted = json_number_value(json_array_get(json_object_get(r.reference, "loss_before_each_step"), step));
        ck_assert_ok(ql_trainer_step(trainer, &report, &err), &err);
        ck_assert_double_eq_tol(report.loss, wanted, 1e-4 * wanted);
        ck_assert_uint_eq(report.learned, 4 * r.columns);
    }
    ck_assert_double_eq(report.epoch, 1);
    ck_assert_fails(ql_trainer_step(trainer, &report, &err), QL_ERR_ARG, &err, "complete");
    compare_file(&r, r.model->adapters->master, folder, "adapter_final/adapter_model.safetensors", within_distance,
                 2e-2);
    ql_trainer_destroy(trainer);
    ql_dataset_close(data);
    close_run(&r);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("train");
    TCase *tests = tcase_create("train");
    tcase_set_timeout(tests, 240);
    tcase_add_test(tests, plain_lora_follows_the_reference);
    tcase_add_test(tests, nf4_lora_follows_the_reference);
    tcase_add_test(tests, recomputation_follows_the_reference);
    tcase_add_loop_test(tests, bf16_activations_follow_the_reference, 0, 3);
    tcase_add_test(tests, trainer_follows_the_reference);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
