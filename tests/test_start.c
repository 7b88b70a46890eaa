/* Adapters that begin with singular values: the decomposition itself, PiSSA and LoftQ beside PEFT's, and what is saved.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/half.h"
#include "base/rng.h"
#include "io/json.h"
#include "io/path.h"
#include "lora/svd.h"
#include "model/model.h"
#include "qlora/adapter.h"
#include "qlora/train.h"
#include "support.h"

static ql_error err;

static double dot(const float *x, const float *y, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += (double)x[i] * y[i];
    return sum;
}

/* ---- singular values ---- */

/* Rows of cosines: orthonormal (DCT-II). */
static float basis(size_t row, size_t i, size_t count)
{
    double scale = sqrt((row ? 2.0 : 1.0) / (double)count);
    return (float)(scale * cos(acos(-1) * (double)row * ((double)i + 0.5) / (double)count));
}

/* W = sum of value[i] u_i v_i^T. */
static void compose(float *w, size_t n, size_t k, const double *value, size_t values)
{
    for (size_t r = 0; r < n; r++)
        for (size_t c = 0; c < k; c++) {
            double sum = 0;
            for (size_t i = 0; i < values; i++)
                sum += value[i] * basis(i, r, n) * basis(i + 1, c, k);
            w[r * k + c] = (float)sum;
        }
}

static void decompose(const float *w, size_t n, size_t k, size_t rank, size_t threads, float *u, float *s, float *v)
{
    ql_workers *workers;
    ql_weight *weight;
    ck_assert_ok(ql_workers_create(&workers, threads, &err), &err);
    ck_assert_ok(ql_weight_borrow(&weight, w, QL_F32, n, k, &err), &err);
    ck_assert_ok(ql_svd(weight, rank, 7, 1, u, s, v, workers, &err), &err);
    ql_weight_destroy(weight);
    ql_workers_destroy(workers);
}

START_TEST(known_singular_values)
{
    static const size_t shapes[][2] = {{96, 130}, {130, 64}, {20, 20}};
    size_t n = shapes[_i][0], k = shapes[_i][1], values = 19, rank = 6;
    double value[19];
    float *w = malloc(n * k * sizeof *w), u[8 * 130], s[8], v[8 * 130];
    for (size_t i = 0; i < values; i++)
        value[i] = 3 * pow(0.93, (double)i);
    compose(w, n, k, value, values);
    decompose(w, n, k, rank, 2, u, s, v);
    for (size_t i = 0; i < rank; i++) {
        ck_assert_double_eq_tol(s[i], value[i], 1e-5);
        for (size_t j = 0; j <= i; j++) {
            ck_assert_double_eq_tol(dot(u + i * n, u + j * n, n), i == j, 1e-5);
            ck_assert_double_eq_tol(dot(v + i * k, v + j * k, k), i == j, 1e-5);
        }
        for (size_t r = 0; r < n; r++) /* u v^T tells no sign */
            for (size_t c = 0; c < k; c++)
                ck_assert_double_eq_tol(u[i * n + r] * v[i * k + c], basis(i, r, n) * basis(i + 1, c, k), 2e-4);
    }
    free(w);
}
END_TEST

/* Of fewer directions than are asked for the rest is 0, and threads do not matter. */
START_TEST(few_directions)
{
    enum { N = 40, K = 30, RANK = 5 };
    float w[N * K], u[2][RANK * N], s[2][RANK], v[2][RANK * K];
    compose(w, N, K, (double[]){2, 1}, 2);
    for (size_t i = 0; i < 2; i++)
        decompose(w, N, K, RANK, 1 + 2 * i, u[i], s[i], v[i]);
    ck_assert_mem_eq(u[0], u[1], sizeof u[0]);
    ck_assert_mem_eq(v[0], v[1], sizeof v[0]);
    for (size_t i = 0; i < RANK; i++)
        ck_assert_double_eq_tol(s[0][i], i < 2 ? 2 - (double)i : 0, 1e-5);
    for (size_t i = 0; i < RANK * K; i++)
        ck_assert(isfinite(v[0][i]));
}
END_TEST

/* ---- beside PEFT ---- */

enum { OUT = 32, IN = 64, RANK = 4, LAYER = 3 };

typedef struct start_case {
    json_t *json;
    ql_workers *workers;
    ql_model *model;
} start_case;

static bool open_case(start_case *c, const char *format, bool double_quant)
{
    const char *base = test_data("models/stories260K-hf"), *root = getenv("QLORA_SOURCE_ROOT");
    char path[1024];
    ql_format parsed;
    if (!base)
        return false;
    snprintf(path, sizeof path, "%s/tests/data/start_peft.json", root ? root : ".");
    ck_assert_ok(ql_json_read(&c->json, path, &err), &err);
    ck_assert_ok(ql_workers_create(&c->workers, 2, &err), &err);
    ck_assert_ok(ql_format_parse(&parsed, format, 64, double_quant, &err), &err);
    ck_assert_ok(ql_model_open(&c->model, base, parsed, c->workers, &err), &err);
    return true;
}

static void close_case(start_case *c)
{
    ql_model_destroy(c->model);
    ql_workers_destroy(c->workers);
    json_decref(c->json);
}

static ql_lora_options options_of(ql_lora_init init, double alpha)
{
    ql_lora_options o = ql_lora_options_defaults();
    o.rank = RANK;
    o.alpha = alpha;
    o.modules = 1u << QL_V;
    o.init = init;
    return o;
}

/* The relative distance of B A from the product of the reference's matrices. */
static double distance(const ql_adapter *a, const json_t *reference)
{
    const json_t *ra = json_object_get(reference, "A"), *rb = json_object_get(reference, "B");
    double apart = 0, all = 0;
    ck_assert_uint_eq(json_array_size(ra), RANK * IN);
    ck_assert_uint_eq(json_array_size(rb), OUT * RANK);
    for (size_t r = 0; r < OUT; r++)
        for (size_t c = 0; c < IN; c++) {
            double want = 0, got = 0;
            for (size_t i = 0; i < RANK; i++) {
                want += json_number_value(json_array_get(rb, r * RANK + i)) *
                        json_number_value(json_array_get(ra, i * IN + c));
                got += (double)a->master_b[r * RANK + i] * a->master_a[i * IN + c];
            }
            apart += (got - want) * (got - want);
            all += want * want;
        }
    return sqrt(apart / all);
}

/* |W - Q - s B A| of the layer. */
static double error_of(start_case *c, const ql_linear *linear)
{
    ql_weight *whole;
    float x[IN], y[IN];
    double sum = 0;
    ck_assert_ok(ql_model_load_linear(&whole, c->model, LAYER, QL_V, c->workers, &err), &err);
    for (size_t row = 0; row < OUT; row++) {
        ql_weight_dequantize(whole, row, 1, x, IN);
        ql_linear_merge_rows(linear, row, 1, y, IN);
        for (size_t i = 0; i < IN; i++)
            sum += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    }
    ql_weight_destroy(whole);
    return sqrt(sum);
}

START_TEST(pissa_as_peft)
{
    start_case c;
    if (!open_case(&c, "int8", false))
        return;
    const ql_lora_options options = options_of(QL_INIT_PISSA, 8);
    const ql_linear *linear = &c.model->blocks[LAYER].linear[QL_V];
    double plain = error_of(&c, linear);
    ck_assert_ok(ql_model_attach(c.model, &options, &err), &err);
    ck_assert_double_lt(distance(linear->adapter, json_object_get(c.json, "pissa")), 2e-3); /* of FP16 */
    /* PEFT's quick one draws no more vectors than the rank, and is farther from the truth. */
    ck_assert_double_lt(distance(linear->adapter, json_object_get(c.json, "pissa_niter_16")), 0.1);
    float row[IN];
    double rest = 0;
    for (size_t r = 0; r < OUT; r++) {
        ql_weight_dequantize(linear->base, r, 1, row, IN);
        rest += dot(row, row, IN);
    }
    double want = json_number_value(json_object_get(json_object_get(c.json, "pissa"), "rest"));
    ck_assert_double_eq_tol(sqrt(rest), want, 2e-3 * want);
    ck_assert_double_lt(error_of(&c, linear), plain);
    close_case(&c);
}
END_TEST

START_TEST(loftq_as_peft)
{
    start_case c;
    const json_t *reference;
    for (size_t steps = 1; steps <= 5; steps++) {
        if (!open_case(&c, "bnb-nf4", false))
            return;
        reference = json_object_get(c.json, "loftq");
        ql_lora_options options = options_of(QL_INIT_LOFTQ, RANK);
        options.loftq_steps = steps;
        const ql_linear *linear = &c.model->blocks[LAYER].linear[QL_V];
        double plain = json_number_value(json_object_get(reference, "plain"));
        ck_assert_double_eq_tol(error_of(&c, linear), plain, 1e-5);
        ck_assert_ok(ql_model_attach(c.model, &options, &err), &err);
        double want = json_number_value(json_array_get(json_object_get(reference, "errors"), steps - 1));
        double got = error_of(&c, linear);
        /* FP16's roundings lead later turns to other codes here and there. */
        ck_assert_msg(fabs(got - want) <= (steps > 1 ? 0.01 : 1e-3) * want, "step %zu: %g, wanted %g", steps, got,
                      want);
        ck_assert_double_lt(got, plain);
        if (steps == 1)
            ck_assert_double_lt(distance(linear->adapter, json_object_get(c.json, "loftq")), 5e-3);
        close_case(&c);
    }
}
END_TEST

START_TEST(both_come_nearer_to_the_weights)
{
    static const char *const formats[] = {"nf4", "int4", "fp4", "int8"};
    for (size_t i = 0; i < 8; i++) {
        start_case c;
        if (!open_case(&c, formats[i / 2], true))
            return;
        ql_lora_options options = options_of(i % 2 ? QL_INIT_LOFTQ : QL_INIT_PISSA, 16);
        options.modules = 1u << QL_O | 1u << QL_DOWN;
        ck_assert_ok(ql_model_attach(c.model, &options, &err), &err);
        double plain, now;
        ql_model_start_error(c.model, &plain, &now);
        ck_assert_msg(now > 0 && now < 0.97 * plain, "%s: %g, plain %g", formats[i / 2], now, plain);
        close_case(&c);
    }
}
END_TEST

/* ---- what is saved ---- */

enum { VOCAB = 512 };

static void logits_of(const start_case *c, const ql_model *model, float *out)
{
    static const int32_t ids[] = {1, 403, 407, 261, 378, 432};
    ql_generator *gen;
    const float *logits;
    ck_assert_ok(ql_generator_create(&gen, model, 16, c->workers, &err), &err);
    ck_assert_ok(ql_generator_feed(gen, ids, 6, &logits, &err), &err);
    memcpy(out, logits, VOCAB * sizeof *out);
    ql_generator_destroy(gen);
}

static double apart(const float *x, const float *y)
{
    double most = 0;
    for (size_t i = 0; i < VOCAB; i++)
        most = fmax(most, fabs((double)x[i] - y[i]));
    return most;
}

/* Over the original weights a fresh one adds nothing, and a changed one what it has become over its own base. */
START_TEST(saved_for_the_original_model)
{
    for (int rslora = 0; rslora < 2; rslora++) {
        start_case c;
        if (!open_case(&c, "int8", false))
            return;
        float base[VOCAB], start[VOCAB], own[VOCAB], other[VOCAB];
        ql_format stored;
        ql_model *original;
        char *folder = test_folder(), *dir = ql_path_join(folder, "adapter");
        ql_lora_options options = options_of(QL_INIT_PISSA, 8);
        options.modules = 1u << QL_Q | 1u << QL_K | 1u << QL_GATE;
        options.use_rslora = rslora;
        ck_assert_ok(ql_model_attach(c.model, &options, &err), &err);
        ck_assert_ok(ql_format_parse(&stored, "none", 0, false, &err), &err);
        ck_assert_ok(ql_model_open(&original, ql_tensors_path(c.model->files), stored, c.workers, &err), &err);
        logits_of(&c, original, base);
        logits_of(&c, c.model, start);
        double rounding = apart(base, start); /* what INT8 takes from the base */
        ck_assert_ok(ql_adapter_save(c.model, dir, NULL, &err), &err);
        ck_assert_ok(ql_adapter_load(original, dir, false, &err), &err);
        ck_assert_uint_eq(original->lora.rank, 2 * RANK);
        logits_of(&c, original, other);
        ck_assert_double_lt(apart(base, other), 1e-4);

        ql_rng rng = {.seed = 3};
        for (size_t i = 0; i < c.model->adapters->count; i++) {
            float x = c.model->adapters->master[i] + 0.2f * (ql_uniform(ql_rng_next(&rng)) - 0.5f);
            ql_adapters_set(c.model->adapters, i, 1, &x);
        }
        ck_assert_ok(ql_adapter_save(c.model, dir, NULL, &err), &err);
        ck_assert_ok(ql_adapter_load(original, dir, false, &err), &err);
        logits_of(&c, c.model, own);
        logits_of(&c, original, other);
        ck_assert_double_gt(apart(base, other), 10 * rounding);
        ck_assert_double_lt(apart(own, other), 3 * rounding);
        ql_model_destroy(original);
        free(dir);
        test_folder_remove(folder);
        close_case(&c);
    }
}
END_TEST

START_TEST(gaussian_is_pefts)
{
    const ql_adapter_shape shape = {900, 6, 16, 1, false};
    ql_adapters *set;
    double mean = 0, square = 0, beyond = 0;
    ck_assert_ok(ql_adapters_create(&set, &shape, 1, true, &err), &err);
    ql_adapters_gaussian(set, 42);
    for (size_t i = 0; i < 900 * 16; i++) {
        double x = set->master[i] * 16;
        mean += x / (900 * 16);
        square += x * x / (900 * 16);
        beyond += (fabs(x) > 1.96) / (900.0 * 16);
    }
    ck_assert_double_eq_tol(mean, 0, 0.03);
    ck_assert_double_eq_tol(square, 1, 0.04);
    ck_assert_double_eq_tol(beyond, 0.05, 0.01);
    for (size_t i = 900 * 16; i < set->count; i++)
        ck_assert_float_eq(set->master[i], 0);
    ql_adapters_destroy(set);
}
END_TEST

START_TEST(refuses)
{
    start_case c;
    if (!open_case(&c, "none", false))
        return;
    ql_lora_options options = options_of(QL_INIT_LOFTQ, 8);
    ck_assert_fails(ql_model_attach(c.model, &options, &err), QL_ERR_UNSUPPORTED, &err, "loftq needs a base");
    close_case(&c);
    ck_assert(open_case(&c, "nf4", true));
    options.rank = 40;
    ck_assert_fails(ql_model_attach(c.model, &options, &err), QL_ERR_ARG, &err, "v_proj has but 32");
    options.rank = 4;
    options.use_dora = true;
    ck_assert_fails(ql_model_attach(c.model, &options, &err), QL_ERR_UNSUPPORTED, &err, "DoRA");
    options.use_dora = false;
    options.loftq_steps = 0;
    ck_assert_fails(ql_model_attach(c.model, &options, &err), QL_ERR_ARG, &err, "LoftQ of 0 steps");
    ck_assert_fails(ql_lora_init_parse(&options.init, "olora", &err), QL_ERR_ARG, &err, "pissa");
    close_case(&c);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("start");
    TCase *tc = tcase_create("start");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, known_singular_values, 0, 3);
    tcase_add_test(tc, few_directions);
    tcase_add_test(tc, pissa_as_peft);
    tcase_add_test(tc, loftq_as_peft);
    tcase_add_test(tc, both_come_nearer_to_the_weights);
    tcase_add_test(tc, saved_for_the_original_model);
    tcase_add_test(tc, gaussian_is_pefts);
    tcase_add_test(tc, refuses);
    suite_add_tcase(suite, tc);
    return test_run(suite);
}
