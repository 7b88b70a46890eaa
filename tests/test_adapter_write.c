/* PEFT adapter folders written: what is read back, layers that differ, and writes that fail. */
#include <math.h>
#include <stdio.h>

#include "adapter_case.h"
#include "base/half.h"
#include "qlora/model.h"
#include "qlora/train.h"

START_TEST(writes_what_it_reads)
{
    const reference_case *c = &references[_i];
    const char *dir = test_data(c->folder);
    if (!dir)
        return;
    ql_error err = {0};
    char *folder = test_folder();
    ql_adapters *set = load(dir, stories(), MODULES, true), *again;
    const char *names[MODULES], *targets[PARTS];
    size_t used = 0, target = 0;
    for (size_t i = 0; i < MODULES; i++)
        if (c->parts >> i % PARTS & 1)
            names[used++] = stories()[i].name;
    for (size_t i = 0; i < PARTS; i++)
        if (c->parts >> i & 1)
            targets[target++] = strchr(part_names[i], '.') + 1;
    ql_adapter_config config = {.rank = c->rank, .alpha = c->alpha, .base_model = "stories260K-hf",
                                .target_modules = targets, .targets = target};
    char *out = join(folder, "new/folder");
    ck_assert_ok(ql_adapter_file_write(out, &config, set, names, &err), &err);
    again = load(out, stories(), MODULES, true);
    ck_assert_uint_eq(again->count, set->count);
    ck_assert_mem_eq(again->master, set->master, set->count * sizeof(float));

    /* An inference-only set holds fp16 values: they are written exactly. */
    ql_adapters *values = load(out, stories(), MODULES, false), *back;
    ck_assert_ptr_null(values->master);
    ck_assert_ok(ql_adapter_file_write(out, &config, values, names, &err), &err);
    back = load(out, stories(), MODULES, true);
    for (size_t i = 0; i < set->count; i++)
        ck_assert_float_eq(back->master[i], ql_f16_to_f32(ql_f32_to_f16(set->master[i])));

    /* A number that is not finite: an error, and what was there stays. */
    set->master[3] = NAN;
    ck_assert_fails(ql_adapter_file_write(out, &config, set, names, &err), QL_ERR_VALUE, &err, names[0]);
    ql_adapters_destroy(back);
    back = load(out, stories(), MODULES, false);
    ck_assert_mem_eq(back->value, values->value, values->count * sizeof *values->value);

    /* Tensors of one save beside a config of another are found out. */
    config.alpha *= 2;
    ck_assert_ok(ql_adapter_file_write(join(folder, "other"), &config, values, names, &err), &err);
    ck_assert_int_eq(rename(join(folder, "other/adapter_config.json"), join(out, "adapter_config.json")), 0);
    ql_adapter_file *file;
    ck_assert_fails(ql_adapter_file_open(&file, out, &err), QL_ERR_FORMAT, &err, "not of one save");
    ck_assert_ptr_null(file);

    ql_adapters *const sets[] = {set, again, values, back};
    for (size_t i = 0; i < 4; i++)
        ql_adapters_destroy(sets[i]);
    test_folder_remove(folder);
}
END_TEST

/* Ranks and scalings of single layers come back through PEFT's patterns. */
START_TEST(writes_patterns)
{
    char *dir = test_folder();
    ql_error err = {0};
    ql_adapters *set;
    ql_adapter_shape planned[2];
    const char *names[2] = {small[0].name, small[1].name}, *targets[2] = {"q_proj", "v_proj"};
    const ql_adapter_shape shapes[2] = {{6, 4, 2, 5, false}, {6, 3, 3, 0.25, false}};
    ck_assert_ok(ql_adapters_create(&set, shapes, 2, true, &err), &err);
    ql_adapter_config config = {.rank = 2, .alpha = 10, .target_modules = targets, .targets = 2};
    ck_assert_ok(ql_adapter_file_write(dir, &config, set, names, &err), &err);
    ck_assert_ok(plan_small(dir, planned, &err), &err);
    for (size_t i = 0; i < 2; i++) {
        ck_assert_uint_eq(planned[i].rank, shapes[i].rank);
        ck_assert_double_eq(planned[i].scaling, shapes[i].scaling);
    }
    ql_adapters_destroy(set);
    test_folder_remove(dir);
}
END_TEST

/* A model keeps what differs from layer to layer: which are adapted, their ranks and scalings. */
START_TEST(models_keep_uneven_adapters)
{
    enum { USED = 3 };
    static const size_t used[USED] = {0, 3 * PARTS + 2, 4 * PARTS + 6}; /* q of block 0, v of 3, down of 4 */
    static const size_t ranks[USED] = {2, 3, 2};
    static const double scalings[USED] = {5, 0.25, 7};
    char *dir = test_folder();
    ql_error err = {0};
    ql_adapters *set, *back;
    ql_adapter_shape shapes[USED];
    const char *names[USED];
    for (size_t i = 0; i < USED; i++) {
        const ql_adapter_module *m = &stories()[used[i]];
        shapes[i] = (ql_adapter_shape){m->in_features, m->out_features, ranks[i], scalings[i], false};
        names[i] = m->name;
    }
    ck_assert_ok(ql_adapters_create(&set, shapes, USED, true, &err), &err);
    ql_adapters_init(set, 5);
    ql_adapter_config config = {.rank = 2, .alpha = 10, .target_modules = names, .targets = USED};
    ck_assert_ok(ql_adapter_file_write(join(dir, "in"), &config, set, names, &err), &err);

    ql_model_config shape = {.vocab_size = 64, .hidden_size = 64, .intermediate_size = 172, .layers = LAYERS,
                             .heads = 8, .kv_heads = 4, .head_dim = 8, .max_positions = 64,
                             .rms_norm_eps = 1e-5, .rope_theta = 1e4, .tied = true};
    ql_workers *workers;
    ql_model *model;
    ck_assert_ok(ql_workers_create(&workers, 1, &err), &err);
    ck_assert_ok(ql_model_random(&model, &shape, ql_format_default(), 1, workers, &err), &err);
    ck_assert_ok(ql_adapter_load(model, join(dir, "in"), true, &err), &err);
    ck_assert_uint_eq(ql_model_adapter_parameters(model), set->count);
    ck_assert_ok(ql_adapter_save(model, join(dir, "out"), "base", &err), &err);
    ql_model_destroy(model);
    ql_workers_destroy(workers);

    back = load(join(dir, "out"), stories(), MODULES, true);
    ck_assert_uint_eq(back->layers, USED);
    ck_assert_uint_eq(back->count, set->count);
    for (size_t i = 0; i < set->count; i++) /* what the products used */
        ck_assert_float_eq(back->master[i], ql_f16_to_f32(set->value[i]));
    for (size_t i = 0; i < USED; i++) {
        ck_assert_uint_eq(back->layer[i].r, ranks[i]);
        ck_assert_float_eq_tol(back->layer[i].scaling, (float)scalings[i], 1e-6f);
    }
    ql_adapters_destroy(back);
    ql_adapters_destroy(set);
    test_folder_remove(dir);
}
END_TEST

/* A folder that cannot be written keeps its adapter. */
START_TEST(failed_write_keeps_the_old)
{
    char *dir = test_folder();
    ql_error err = {0};
    ql_adapters *set;
    const char *names[2] = {small[0].name, small[1].name}, *targets[2] = {"q_proj", "v_proj"};
    const ql_adapter_shape shapes[2] = {{6, 4, 2, 1, false}, {6, 3, 2, 1, false}};
    ck_assert_ok(ql_adapters_create(&set, shapes, 2, true, &err), &err);
    ql_adapters_init(set, 1);
    ql_adapter_config config = {.rank = 2, .alpha = 2, .target_modules = targets, .targets = 2};
    ck_assert_ok(ql_adapter_file_write(dir, &config, set, names, &err), &err);
    ck_assert_fails(ql_adapter_file_write(join(dir, "adapter_config.json/sub"), &config, set, names, &err), QL_ERR_IO,
                    &err, "adapter_config.json");
    ql_adapters *back = load(dir, small, 2, true);
    ck_assert_mem_eq(back->master, set->master, set->count * sizeof(float));
    ql_adapters_destroy(back);
    ql_adapters_destroy(set);
    test_folder_remove(dir);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("adapter_write");
    TCase *tc = tcase_create("adapter_write");
    suite_add_tcase(suite, tc);
    tcase_add_loop_test(tc, writes_what_it_reads, 0, REFERENCES);
    tcase_add_test(tc, writes_patterns);
    tcase_add_test(tc, models_keep_uneven_adapters);
    tcase_add_test(tc, failed_write_keeps_the_old);
    return test_run(suite);
}
