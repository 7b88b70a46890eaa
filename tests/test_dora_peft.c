/* DoRA in a model: losses, gradients and logits beside PEFT's (tests/data/dora_peft.json), files that go round. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "io/json.h"
#include "io/path.h"
#include "model/pass.h"
#include "qlora/adapter.h"
#include "qlora/convert.h"
#include "qlora/train.h"
#include "support.h"

static ql_error err;

static double formula(size_t i, size_t a, size_t b, double scale)
{
    return ((double)(i * a % b) - (double)(b / 2)) / scale;
}

/* The adapter that the reference starts from, as a folder. */
static void write_start(const char *dir, const char *module)
{
    enum { IN = 64, OUT = 32, RANK = 2 };
    const ql_adapter_shape shape = {IN, OUT, RANK, 1.5, true};
    ql_adapters *set;
    ck_assert_ok(ql_adapters_create(&set, &shape, 1, true, &err), &err);
    const ql_adapter *a = &set->layer[0];
    for (size_t i = 0; i < a->count; i++) {
        size_t b = i - RANK * IN, m = i - RANK * (IN + OUT);
        double x = i < RANK * IN           ? formula(i, 37, 101, 512)
                   : i < RANK * (IN + OUT) ? formula(b, 29, 83, 256)
                                           : 1.5 + formula(m, 7, 16, 64);
        float narrow = (float)x;
        ql_adapters_set(set, i, 1, &narrow);
    }
    const ql_adapter_config config = {.rank = RANK, .alpha = 3, .use_dora = true, .target_modules = &module,
                                      .targets = 1};
    ck_assert_ok(ql_adapter_file_write(dir, &config, set, &module, &err), &err);
    ql_adapters_destroy(set);
}

static void check_numbers(const json_t *list, const float *got, size_t count, double tolerance, const char *what)
{
    double largest = 0;
    ck_assert_uint_eq(json_array_size(list), count);
    for (size_t i = 0; i < count; i++)
        largest = fmax(largest, fabs(json_number_value(json_array_get(list, i))));
    for (size_t i = 0; i < count; i++) {
        double want = json_number_value(json_array_get(list, i));
        ck_assert_msg(fabs(got[i] - want) <= tolerance * largest, "%s[%zu] is %g, PEFT's %g", what, i, (double)got[i],
                      want);
    }
}

static void check_parameters(const json_t *object, const ql_adapter *a, const float *flat, double tolerance)
{
    check_numbers(json_object_get(object, "A"), flat, a->r * a->k, tolerance, "A");
    check_numbers(json_object_get(object, "B"), flat + a->r * a->k, a->n * a->r, tolerance, "B");
    check_numbers(json_object_get(object, "m"), flat + a->r * (a->k + a->n), a->n, tolerance, "m");
}

enum { MOST = 64 };

typedef struct peft_case {
    json_t *json;
    ql_workers *workers;
    ql_model *model;
    size_t tokens;
    int32_t ids[MOST];
    char *folder, *adapter;
} peft_case;

static bool open_peft(peft_case *c)
{
    const char *base = test_data("models/stories260K-hf"), *root = getenv("QLORA_SOURCE_ROOT");
    char path[1024];
    ql_format stored;
    if (!base)
        return false;
    *c = (peft_case){.folder = test_folder()};
    snprintf(path, sizeof path, "%s/tests/data/dora_peft.json", root ? root : ".");
    ck_assert_ok(ql_json_read(&c->json, path, &err), &err);
    c->adapter = ql_path_join(c->folder, "start");
    write_start(c->adapter, json_string_value(json_object_get(c->json, "module")));
    const json_t *ids = json_object_get(c->json, "ids");
    c->tokens = json_array_size(ids);
    ck_assert_uint_le(c->tokens, MOST);
    for (size_t i = 0; i < c->tokens; i++)
        c->ids[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    ck_assert_ok(ql_format_parse(&stored, "none", 0, false, &err), &err);
    ck_assert_ok(ql_workers_create(&c->workers, 2, &err), &err);
    ck_assert_ok(ql_model_open(&c->model, base, stored, c->workers, &err), &err);
    return true;
}

static void close_peft(peft_case *c)
{
    ql_model_destroy(c->model);
    ql_workers_destroy(c->workers);
    json_decref(c->json);
    free(c->adapter);
    test_folder_remove(c->folder);
}

START_TEST(trains_as_peft_does)
{
    peft_case c;
    if (!open_peft(&c))
        return;
    ck_assert_ok(ql_adapter_load(c.model, c.adapter, true, &err), &err);
    const ql_adapters *set = c.model->adapters;
    const ql_adapter *a = &set->layer[0];
    const json_t *losses = json_object_get(c.json, "losses");
    uint32_t position[MOST];
    size_t count = c.tokens - 1, start[2] = {0, count};
    for (size_t i = 0; i < count; i++)
        position[i] = (uint32_t)i;
    const ql_batch batch = {.tokens = count, .sequences = 1, .ids = c.ids, .target = c.ids + 1, .position = position,
                            .start = start};
    ql_pass pass;
    ql_adamw adamw;
    const ql_adamw_options options = ql_adamw_options_defaults();
    ck_assert_ok(ql_pass_init(&pass, c.model, count, count, (ql_pass_kind){true, false, 0}, c.workers, &err), &err);
    ck_assert_ok(ql_adamw_init(&adamw, set->count, &options, &err), &err);
    for (size_t step = 0; step < json_array_size(losses); step++) {
        ql_loss_sum loss;
        ql_adapters_zero_grad(c.model->adapters, NULL);
        ck_assert_ok(ql_pass_run(&pass, &batch, 1.0f / (float)count, NULL, NULL, &loss, c.workers, &err), &err);
        ck_assert_double_eq_tol(loss.sum / (double)count, json_number_value(json_array_get(losses, step)), 1e-4);
        if (step == 0)
            check_parameters(json_object_get(c.json, "gradients"), a, set->grad, 2e-3);
        ql_adamw_step(&adamw, c.model->adapters, 1e-2, 1, c.workers);
        ql_model_refresh(c.model, c.workers);
    }
    check_parameters(json_object_get(c.json, "final"), a, set->master, 2e-3);
    ql_pass_free(&pass);
    ql_adamw_free(&adamw);
    close_peft(&c);
}
END_TEST

static void last_logits(const peft_case *c, const ql_model *model, float *out, size_t count)
{
    ql_generator *gen;
    const float *logits;
    ck_assert_ok(ql_generator_create(&gen, model, MOST, c->workers, &err), &err);
    ck_assert_ok(ql_generator_feed(gen, c->ids, c->tokens - 1, &logits, &err), &err);
    memcpy(out, logits, count * sizeof *out);
    ql_generator_destroy(gen);
}

/* Loaded for inference, merged into a folder, and saved again. */
START_TEST(evaluates_and_merges_as_peft_does)
{
    peft_case c;
    if (!open_peft(&c))
        return;
    enum { SOME = 24 };
    float logits[SOME];
    const json_t *want = json_object_get(c.json, "last_logits");
    char *merged = ql_path_join(c.folder, "merged"), *gguf = ql_path_join(c.folder, "a.gguf"),
         *again = ql_path_join(c.folder, "again");
    const char *base = ql_tensors_path(c.model->files);
    ck_assert_ok(ql_adapter_load(c.model, c.adapter, false, &err), &err);
    last_logits(&c, c.model, logits, SOME);
    check_numbers(want, logits, SOME, 1e-4, "logits");

    ql_merge_options options = ql_merge_options_defaults();
    ql_merge_report report;
    ck_assert_ok(ql_merge(&report, base, c.adapter, merged, &options, c.workers, &err), &err);
    ck_assert_uint_eq(report.merged, 1);
    ql_model *model;
    ck_assert_ok(ql_model_open(&model, merged, c.model->format, c.workers, &err), &err);
    last_logits(&c, model, logits, SOME);
    check_numbers(want, logits, SOME, 1e-4, "logits of the merged model");
    ql_model_destroy(model);

    ck_assert_ok(ql_adapter_save(c.model, again, NULL, &err), &err);
    ck_assert_ok(ql_adapter_load(c.model, again, false, &err), &err);
    last_logits(&c, c.model, logits, SOME);
    check_numbers(want, logits, SOME, 1e-4, "logits of the adapter saved again");
    ck_assert_fails(ql_adapter_export(QL_EXPORT_GGUF, c.adapter, base, gguf, &err), QL_ERR_UNSUPPORTED, &err,
                    "use_dora");
    free(merged);
    free(gguf);
    free(again);
    close_peft(&c);
}
END_TEST

/* A fresh adapter changes nothing: not the loss, and by merging not one bit. */
START_TEST(starts_at_the_base)
{
    peft_case c;
    if (!open_peft(&c))
        return;
    enum { VOCAB = 512 };
    float before[VOCAB], after[VOCAB];
    last_logits(&c, c.model, before, VOCAB);
    ql_lora_options lora = ql_lora_options_defaults();
    lora.use_dora = true;
    ck_assert_ok(ql_model_attach(c.model, &lora, &err), &err);
    last_logits(&c, c.model, after, VOCAB);
    for (size_t i = 0; i < VOCAB; i++)
        ck_assert_float_eq_tol(before[i], after[i], 1e-5);
    char *fresh = ql_path_join(c.folder, "fresh"), *merged = ql_path_join(c.folder, "merged");
    ql_merge_options options = ql_merge_options_defaults();
    ql_merge_report report;
    ql_tensors *file;
    ck_assert_ok(ql_adapter_save(c.model, fresh, NULL, &err), &err);
    ck_assert_ok(ql_merge(&report, ql_tensors_path(c.model->files), fresh, merged, &options, c.workers, &err), &err);
    ck_assert_uint_eq(report.merged, 35);
    ck_assert_ok(ql_tensors_open(&file, merged, &err), &err);
    for (size_t i = 0; i < ql_tensors_count(file); i++) {
        const ql_tensor *t = ql_tensors_at(file, i), *u = ql_tensors_find(c.model->files, t->name);
        ck_assert_msg(t->bytes == u->bytes && memcmp(t->data, u->data, t->bytes) == 0, "%s has changed", t->name);
    }
    ql_tensors_close(file);
    lora.dropout = 0.1;
    ck_assert_fails(ql_model_attach(c.model, &lora, &err), QL_ERR_UNSUPPORTED, &err, "DoRA with dropout");
    free(fresh);
    free(merged);
    close_peft(&c);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("dora_peft");
    TCase *tc = tcase_create("dora_peft");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, trains_as_peft_does);
    tcase_add_test(tc, evaluates_and_merges_as_peft_does);
    tcase_add_test(tc, starts_at_the_base);
    suite_add_tcase(suite, tc);
    return test_run(suite);
}
