/* DoRA: a layer against sums in double and finite differences, a model against PEFT's numbers, files that go round. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/half.h"
#include "base/rng.h"
#include "io/json.h"
#include "io/path.h"
#include "model/pass.h"
#include "qlora/adapter.h"
#include "qlora/convert.h"
#include "qlora/train.h"
#include "support.h"

static ql_error err;

/* ---- a layer ---- */

enum { N = 21, K = 70, R = 3 };
static const double S = 0.75;

typedef struct layer_case {
    size_t m;
    ql_workers *workers;
    ql_weight *base;
    ql_adapters *set;
    float bias[N], *x, *y, *h, *dy, *dx, *work;
    ql_linear linear;
    double w[N * K], a[R * K], b[N * R], mag[N], norm[N];
} layer_case;

static float *numbers(size_t count, uint64_t seed, float scale)
{
    float *x = malloc(count * sizeof *x);
    ql_rng rng = {.seed = seed};
    for (size_t i = 0; i < count; i++)
        x[i] = (ql_uniform(ql_rng_next(&rng)) - 0.5f) * scale;
    return x;
}

static void take_norms(layer_case *c)
{
    for (size_t i = 0; i < N; i++) {
        double sum = 0;
        for (size_t j = 0; j < K; j++) {
            double v = c->w[i * K + j];
            for (size_t r = 0; r < R; r++)
                v += S * c->b[i * R + r] * c->a[r * K + j];
            sum += v * v;
        }
        c->norm[i] = sqrt(sum);
    }
}

static void open_layer(layer_case *c, ql_format format, size_t m, size_t threads)
{
    *c = (layer_case){.m = m, .x = numbers(m * K, 1, 2), .dy = numbers(m * N, 2, 2), .y = calloc(m * N, sizeof(float)),
                      .h = calloc(m * R, sizeof(float)), .dx = calloc(m * K, sizeof(float))};
    float *w = numbers(N * K, 3, 1), *bias = numbers(N, 4, 1), dense[K];
    const ql_adapter_shape shape = {K, N, R, S, true};
    ck_assert_ok(ql_workers_create(&c->workers, threads, &err), &err);
    ck_assert_ok(ql_weight_quantize(&c->base, format, "w", w, QL_F32, K, N, K, c->workers, &err), &err);
    ck_assert_ok(ql_adapters_create(&c->set, &shape, 1, true, &err), &err);
    float *start = numbers(c->set->count, 5, 1);
    for (size_t i = 0; i < N; i++)
        start[c->set->count - N + i] = 1 + start[c->set->count - N + i];
    ql_adapters_set(c->set, 0, c->set->count, start);
    memcpy(c->bias, bias, sizeof c->bias);
    c->linear = (ql_linear){c->base, c->bias, &c->set->layer[0]};
    ck_assert_ok(ql_workers_reserve(c->workers, ql_linear_scratch(&c->linear, m, threads), &err), &err);
    c->work = aligned_alloc(64, (ql_linear_work(&c->linear, m, 0) * sizeof(float) + 63) / 64 * 64);
    ck_assert_ok(ql_dora_start(&c->linear, false, c->workers, &err), &err);
    ql_dora_refresh(&c->linear, c->workers);
    for (size_t i = 0; i < N; i++) {
        ql_weight_dequantize(c->base, i, 1, dense, K);
        for (size_t j = 0; j < K; j++)
            c->w[i * K + j] = dense[j];
        c->mag[i] = c->set->layer[0].magnitude[i];
    }
    for (size_t i = 0; i < R * K; i++)
        c->a[i] = ql_f16_to_f32(c->set->layer[0].a[i]);
    for (size_t i = 0; i < N * R; i++)
        c->b[i] = ql_f16_to_f32(c->set->layer[0].b[i]);
    take_norms(c);
    free(w);
    free(bias);
    free(start);
}

static void close_layer(layer_case *c)
{
    float *const arrays[] = {c->x, c->dy, c->y, c->h, c->dx, c->work};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        free(arrays[i]);
    ql_adapters_destroy(c->set);
    ql_weight_destroy(c->base);
    ql_workers_destroy(c->workers);
}

/* Output `i` of a token in double; the norms stand still. */
static double output(const layer_case *c, const double *x, size_t i)
{
    double sum = 0;
    for (size_t j = 0; j < K; j++) {
        double v = c->w[i * K + j];
        for (size_t r = 0; r < R; r++)
            v += S * c->b[i * R + r] * c->a[r * K + j];
        sum += v * x[j];
    }
    return sum * c->mag[i] / c->norm[i] + c->bias[i];
}

/* Sum of dy * y over all tokens: linear in each variable, so that a central difference is exact but for rounding. */
static double objective(const layer_case *c, const double *x)
{
    double sum = 0;
    for (size_t t = 0; t < c->m; t++)
        for (size_t i = 0; i < N; i++)
            sum += c->dy[t * N + i] * output(c, x + t * K, i);
    return sum;
}

static double slope(const layer_case *c, const double *x, double *variable)
{
    const double step = 1.0 / 256;
    double at = *variable, up, down;
    *variable = at + step, up = objective(c, x);
    *variable = at - step, down = objective(c, x);
    *variable = at;
    return (up - down) / (2 * step);
}

static const ql_format formats[] = {{QL_CODE_F32, QL_SCALE_NONE, 0, false},
                                    {QL_CODE_NF4, QL_SCALE_DQ, 64, false},
                                    {QL_CODE_INT8, QL_SCALE_F16, 32, false}};

/* _i: the format; few tokens, and so many that the backward pass takes them in parts. */
START_TEST(layer_against_double)
{
    for (size_t m = 5; m <= 300; m += 295) {
        layer_case c;
        open_layer(&c, formats[_i], m, 2);
        const ql_adapter *a = &c.set->layer[0];
        double *x = malloc(m * K * sizeof *x), tolerance = 2e-4 * sqrt((double)m);
        for (size_t i = 0; i < m * K; i++)
            x[i] = c.x[i];
        for (size_t i = 0; i < N; i++) {
            ck_assert_double_eq_tol(a->norm[i], c.norm[i], 2e-6 * c.norm[i]);
            ck_assert_double_eq_tol(a->gain[i], c.mag[i] / c.norm[i], 1e-5);
        }
        ql_linear_forward(&c.linear, m, c.x, K, c.y, N, c.h, NULL, c.work, c.workers);
        for (size_t t = 0; t < m; t++)
            for (size_t i = 0; i < N; i++)
                ck_assert_double_eq_tol(c.y[t * N + i], output(&c, x + t * K, i), 2e-5);
        for (size_t i = 0; i < c.set->count; i++)
            c.set->grad[i] = 10; /* gradients are added to what is there */
        for (size_t i = 0; i < m * K; i++)
            c.dx[i] = 3;
        ql_linear_backward(&c.linear, m, c.x, K, c.dy, N, c.h, c.dx, K, true, NULL, c.work, c.workers);
        for (size_t i = 0; i < R * K; i += m > 5 ? 23 : 1)
            ck_assert_double_eq_tol(a->grad_a[i] - 10, slope(&c, x, &c.a[i]), tolerance);
        for (size_t i = 0; i < N * R; i += m > 5 ? 7 : 1)
            ck_assert_double_eq_tol(a->grad_b[i] - 10, slope(&c, x, &c.b[i]), tolerance);
        for (size_t i = 0; i < N; i++)
            ck_assert_double_eq_tol(a->grad_m[i] - 10, slope(&c, x, &c.mag[i]), tolerance);
        for (size_t i = 0; i < m * K; i += m > 5 ? 1511 : 1)
            ck_assert_double_eq_tol(c.dx[i] - 3, slope(&c, x, &x[i]), tolerance);
        free(x);
        close_layer(&c);
    }
}
END_TEST

START_TEST(threads_do_not_matter)
{
    layer_case c[2];
    for (size_t i = 0; i < 2; i++) {
        open_layer(&c[i], formats[1], 300, 1 + 2 * i);
        ql_linear_forward(&c[i].linear, 300, c[i].x, K, c[i].y, N, c[i].h, NULL, c[i].work, c[i].workers);
        ql_linear_backward(&c[i].linear, 300, c[i].x, K, c[i].dy, N, c[i].h, c[i].dx, K, false, NULL, c[i].work,
                           c[i].workers);
    }
    ck_assert_mem_eq(c[0].y, c[1].y, 300 * N * sizeof(float));
    ck_assert_mem_eq(c[0].dx, c[1].dx, 300 * K * sizeof(float));
    ck_assert_mem_eq(c[0].set->grad, c[1].set->grad, c[0].set->count * sizeof(float));
    close_layer(&c[0]);
    close_layer(&c[1]);
}
END_TEST

/* With B = 0 and fresh magnitudes the base comes out; a merged row is its direction times its magnitude. */
START_TEST(merges_rows)
{
    layer_case c;
    float row[K], base[K];
    open_layer(&c, formats[1], 1, 1);
    for (size_t i = 0; i < N; i++) {
        ql_linear_merge_rows(&c.linear, i, 1, row, K);
        for (size_t j = 0; j < K; j++) {
            double v = c.w[i * K + j];
            for (size_t r = 0; r < R; r++)
                v += S * c.set->layer[0].master_b[i * R + r] * c.set->layer[0].master_a[r * K + j];
            ck_assert_double_eq_tol(row[j], v * c.mag[i] / c.norm[i], 2e-3); /* the norm is that of FP16 values here */
        }
    }
    ql_adapters_init(c.set, 1);
    ck_assert_ok(ql_dora_start(&c.linear, true, c.workers, &err), &err);
    for (size_t i = 0; i < N; i++) {
        ql_linear_merge_rows(&c.linear, i, 1, row, K);
        ql_weight_dequantize(c.base, i, 1, base, K);
        ck_assert_mem_eq(row, base, sizeof row);
    }
    close_layer(&c);
}
END_TEST

/* ---- a model, beside PEFT ---- */

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
    Suite *suite = suite_create("dora");
    TCase *tc = tcase_create("dora");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, layer_against_double, 0, sizeof formats / sizeof *formats);
    tcase_add_test(tc, threads_do_not_matter);
    tcase_add_test(tc, merges_rows);
    tcase_add_test(tc, trains_as_peft_does);
    tcase_add_test(tc, evaluates_and_merges_as_peft_does);
    tcase_add_test(tc, starts_at_the_base);
    suite_add_tcase(suite, tc);
    return test_run(suite);
}
