/* Every architecture against transformers and PEFT: logits, losses and adapters' gradients of the small models of
 * arch_case.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch_case.h"
#include "base/cpu.h"
#include "chain_case.h"
#include "model/pass.h"
#include "quant/weight.h"
#include "support.h"

static const char *const names[] = {"llama", "qwen2", "mistral", "gemma2", "gemma3", "phi3", "phi3-long", "smollm3"};
static const char *const gguf_names[] = {"gguf-llama", "gguf-qwen2", "gguf-qwen3"};
enum { NAMES = sizeof names / sizeof *names, GGUF_NAMES = sizeof gguf_names / sizeof *gguf_names };

static const ql_format none = {.code = QL_CODE_F32, .scale = QL_SCALE_NONE};
static ql_error err;

static double number(const json_t *array, size_t i)
{
    return json_number_value(json_array_get(array, i));
}

/* The last logits, whether the tokens come at once, in pieces or one by one. */
static void check_logits(const arch_case *c)
{
    const json_t *wanted = json_object_get(c->json, "last_logits");
    static const size_t steps[] = {64, 13, 1};
    for (size_t s = 0; s < 3; s++) {
        ql_generator *gen;
        const float *logits;
        double worst = 0, largest = 10;
        ck_assert_ok(ql_generator_create(&gen, c->model, c->count, c->workers, &err), &err);
        for (size_t at = 0; at < c->count; at += steps[s]) {
            size_t m = c->count - at < steps[s] ? c->count - at : steps[s];
            ck_assert_ok(ql_generator_feed(gen, c->ids + at, m, &logits, &err), &err);
        }
        for (size_t i = 0; i < json_array_size(wanted); i++) {
            worst = fmax(worst, fabs((double)logits[i] - number(wanted, i)));
            largest = fmax(largest, fabs(number(wanted, i)));
        }
        printf("logits up to %.3g, %zu tokens at a time: off by %.2g at most\n", largest, steps[s], worst);
        ck_assert_double_lt(worst, 3e-5 * largest);
        ql_generator_destroy(gen);
    }
}

/* One adapter matrix against what is known of its gradient. */
static double gradient_error(const arch_case *c, const char *name, const float *got, size_t count)
{
    const json_t *wanted = json_object_get(json_object_get(c->json, "gradients"), name);
    char text[200];
    double largest = 0, sum = 0, scale = number(wanted, 0);
    ck_assert_msg(wanted && scale > 0, "%s", name);
    snprintf(text, sizeof text, "%s.sign", name);
    for (size_t i = 0; i < count; i++) {
        largest = fmax(largest, fabs((double)got[i]));
        sum += arch_case_bits(text, i) & 1 ? (double)got[i] : -(double)got[i];
    }
    double worst = fmax(fabs(largest - scale), fabs(sum - number(wanted, 1)) / sqrt((double)count));
    snprintf(text, sizeof text, "%s.place", name);
    for (size_t i = 2; i < json_array_size(wanted); i++)
        worst = fmax(worst, fabs((double)got[arch_case_bits(text, i - 2) % count] - number(wanted, i)));
    return worst / scale;
}

static void check_gradients(const arch_case *c, double tolerance)
{
    const ql_model_config *shape = ql_model_shape(c->model);
    double worst = 0;
    size_t next = 0;
    for (size_t i = 0; i < shape->layers * QL_MODULES; i++) {
        ql_module module = (ql_module)(i % QL_MODULES);
        if (!ql_module_present(shape, module))
            continue;
        const ql_adapter *a = &c->model->adapters->layer[next++];
        for (int side = 0; side < 2; side++) {
            char name[160];
            const float *grad = c->model->adapters->grad + a->offset + (side ? a->r * a->k : 0);
            snprintf(name, sizeof name, "model.layers.%zu.%s.%s.lora_%c", i / QL_MODULES, ql_module_path(module),
                     ql_module_name(shape, module), "AB"[side]);
            double error = gradient_error(c, name, grad, side ? a->n * a->r : a->r * a->k);
            ck_assert_msg(error < tolerance, "%s: off by %g of its largest entry", name, error);
            worst = fmax(worst, error);
        }
    }
    ck_assert_uint_eq(2 * next, json_object_size(json_object_get(c->json, "gradients")));
    printf("gradients: off by %.2g of their largest entry at most\n", worst);
}

/* How far losses and gradients may be off: exact, or where activations that wait are rounded to bf16, by 2^-9 of
 * themselves. */
static const double exact[2] = {1e-4, 1e-4}, waiting_rounds[2] = {1e-4, 2e-2};

static void train(const arch_case *c, ql_pass_kind kind, float losses[64])
{
    size_t m = c->count - 1, start[2] = {0, m};
    uint32_t position[64];
    for (size_t i = 0; i < m; i++)
        position[i] = (uint32_t)i;
    ql_batch batch = {.tokens = m, .sequences = 1, .ids = c->ids, .target = c->ids + 1, .position = position,
                      .start = start};
    ql_pass pass = {0};
    ql_loss_sum loss;
    ck_assert_ok(ql_pass_init(&pass, c->model, m, m, kind, c->workers, &err), &err);
    ql_adapters_zero_grad(c->model->adapters, c->workers);
    ck_assert_ok(ql_pass_run(&pass, &batch, 1.0f / (float)m, NULL, losses, &loss, c->workers, &err), &err);
    ql_pass_free(&pass);
}

static void check_training(const arch_case *c, ql_pass_kind kind, const double most[2])
{
    float losses[64];
    double worst = 0;
    const json_t *wanted = json_object_get(c->json, "losses");
    train(c, kind, losses);
    for (size_t i = 0; i + 1 < c->count; i++)
        worst = fmax(worst, fabs((double)losses[i] - number(wanted, i)));
    printf("losses: off by %.2g at most\n", worst);
    ck_assert_double_lt(worst, most[0]);
    if (kind.backward)
        check_gradients(c, most[1]);
}

START_TEST(agrees_with_transformers)
{
    static const char *const styles[] = {"config", "config_as_saved"};
    for (size_t style = 0; style < 2; style++) {
        arch_case c;
        printf("%s, %s\n", names[_i], styles[style]);
        arch_case_open(&c, names[_i], styles[style], none);
        check_logits(&c);
        check_training(&c, (ql_pass_kind){0}, exact);
        check_training(&c, (ql_pass_kind){true, false, 0}, exact);
        check_training(&c, (ql_pass_kind){true, false, SIZE_MAX}, exact);
        check_training(&c, (ql_pass_kind){true, true, 0}, waiting_rounds);
        check_training(&c, (ql_pass_kind){true, true, 1}, waiting_rounds);
        arch_case_close(&c);
    }
}
END_TEST

/* gate: of gate and up. */
static void use_kernels(const arch_case *c, const ql_matmul_kernel *kernel, const ql_matmul_kernel *gate)
{
    for (size_t i = 0; i < ql_model_shape(c->model)->layers * QL_MODULES; i++) {
        ql_weight *base = c->model->blocks[i / QL_MODULES].weight[i % QL_MODULES];
        if (base)
            base->kernel = i % QL_MODULES == QL_GATE || i % QL_MODULES == QL_UP ? gate : kernel;
    }
}

/* Where layers read their inputs in bf16, norms, the MLP's activation and its gradients are made in it: nothing
 * changes, as the layers would round them, but for the gradients of adapters, which not every processor rounds, and,
 * where an instruction rounds (the second half of the tests), for a sigmoid that is off by 3e-6. Gate and up are made in
 * it too, which is what rounding them gives. */
START_TEST(inputs_in_bf16_are_those_rounded)
{
    static const ql_pass_kind kinds_of_pass[] = {
        {0}, {true, false, 0}, {true, false, SIZE_MAX}, {true, true, 0}, {true, true, 1}};
    bool exactly = _i < NAMES;
    arch_case c;
    if (exactly)
        setenv("QLORA_ISA", "avx512", 1);
    arch_case_open(&c, names[_i % NAMES], "config", none);
    if (exactly && (ql_cpu_features() & QL_CPU_AVX512_BF16)) {
        printf("skipped: this process runs with instructions for bf16 already\n");
        exactly = false;
    }
    size_t count = c.model->adapters->count;
    float *grad = malloc(count * sizeof *grad), losses[2][64];
    for (size_t kind = 0; kind < sizeof kinds_of_pass / sizeof *kinds_of_pass; kind++) {
        use_kernels(&c, &chain_rounds_kernel, &chain_rounds_both_kernel);
        train(&c, kinds_of_pass[kind], losses[0]);
        memcpy(grad, c.model->adapters->grad, count * sizeof *grad);
        use_kernels(&c, &chain_reads_kernel, &chain_reads_kernel);
        train(&c, kinds_of_pass[kind], losses[1]);
        if (exactly)
            ck_assert_mem_eq(losses[0], losses[1], (c.count - 1) * sizeof(float));
        for (size_t i = 0; i + 1 < c.count; i++)
            ck_assert(fabsf(losses[0][i] - losses[1][i]) <= 0.03f);
        float largest = 0;
        for (size_t i = 0; i < count; i++)
            largest = fmaxf(largest, fabsf(grad[i]));
        ck_assert(!kinds_of_pass[kind].backward || largest > 0);
        for (size_t i = 0; i < count; i++)
            ck_assert(fabsf(c.model->adapters->grad[i] - grad[i]) <= (exactly ? 0.005f : 0.02f) * largest);
    }
    free(grad);
    arch_case_close(&c);
}
END_TEST

START_TEST(gguf_blocks_agree_with_transformers)
{
    arch_case c;
    printf("%s\n", gguf_names[_i]);
    arch_case_open(&c, gguf_names[_i], "config", none);
    ck_assert_uint_gt(ql_model_memory(c.model).mapped, 0); /* multiplied as they are */
    check_logits(&c);
    check_training(&c, (ql_pass_kind){0}, exact);
    check_training(&c, (ql_pass_kind){true, false, 0}, exact);
    arch_case_close(&c);
}
END_TEST

/* The plan of a model is what the model takes, and a quantized one runs. */
START_TEST(plans_are_exact)
{
    arch_case c;
    arch_case_open(&c, names[_i], "config", ql_format_default());
    ql_model *planned;
    ck_assert_ok(ql_model_plan(&planned, ql_model_shape(c.model), ql_format_default(), &err), &err);
    ql_model_bytes a = ql_model_memory(planned), b = ql_model_memory(c.model);
    ck_assert_uint_eq(a.codes, b.codes);
    ck_assert_uint_eq(a.scales, b.scales);
    ck_assert_uint_eq(a.dense, b.dense);
    ck_assert_uint_eq(a.mapped, b.mapped);
    ql_lora_options lora = ql_lora_options_defaults();
    ck_assert_ok(ql_model_attach(planned, &lora, &err), &err);
    ck_assert_ok(ql_model_attach(c.model, &lora, &err), &err);
    ck_assert_uint_eq(ql_model_adapter_parameters(planned), ql_model_adapter_parameters(c.model));
    ql_pass pass = {0};
    ql_scratch need;
    ck_assert_ok(ql_pass_init(&pass, c.model, 20, 20, (ql_pass_kind){true, _i % 2, 0}, c.workers, &err), &err);
    ck_assert_uint_eq(ql_pass_measure(planned, 20, 20, (ql_pass_kind){true, _i % 2, 0}, 2, &need), pass.bytes);
    ql_pass_free(&pass);
    ql_model_destroy(planned);
    arch_case_close(&c);
}
END_TEST

START_TEST(parts_of_fused_layers_are_no_targets)
{
    arch_case c;
    arch_case_open(&c, "phi3", "config", none);
    ql_lora_options lora = ql_lora_options_defaults();
    ck_assert_ok(ql_modules_parse(&lora.modules, "q_proj,v_proj", &err), &err);
    ck_assert_fails(ql_model_attach(c.model, &lora, &err), QL_ERR_ARG, &err, "qkv_proj");
    ck_assert_ok(ql_modules_parse(&lora.modules, "gate_up_proj,o_proj", &err), &err);
    ck_assert_ok(ql_model_attach(c.model, &lora, &err), &err);
    ck_assert_uint_eq(c.model->adapters->layers, 8);
    arch_case_close(&c);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("arch");
    TCase *tests = tcase_create("arch");
    tcase_set_timeout(tests, 120);
    tcase_add_loop_test(tests, agrees_with_transformers, 0, NAMES);
    tcase_add_loop_test(tests, inputs_in_bf16_are_those_rounded, 0, 2 * NAMES);
    tcase_add_loop_test(tests, gguf_blocks_agree_with_transformers, 0, GGUF_NAMES);
    tcase_add_loop_test(tests, plans_are_exact, 0, NAMES);
    tcase_add_test(tests, parts_of_fused_layers_are_no_targets);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
