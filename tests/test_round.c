/* An adapter of PEFT's on its way through other formats: the logits of base and adapter stay. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "io/gguf.h"
#include "io/map.h"
#include "io/path.h"
#include "qlora/adapter.h"
#include "qlora/convert.h"
#include "qlora/io.h"
#include "qlora/train.h"
#include "support.h"

enum { VOCAB = 512, LAYERS = 5, RANK = 8, MODULES = LAYERS * QL_MODULES, TOKENS = 12 };

/* Two orders of summing fp32 numbers, W x + s B (A x) and (W + s B A) x, through five blocks; logits reach 20. */
#define BOUND 2e-4

static ql_error err;
static const char *const hf_names[QL_MODULES] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                                 "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                                 "mlp.down_proj"};
static const char *const gguf_names[QL_MODULES] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                   "ffn_gate", "ffn_up", "ffn_down"};

typedef struct trip {
    char *folder, *peft, *again, *lora, *back, *file, *merged;
    const char *base;
    ql_workers *workers;
    float want[VOCAB];
} trip;

static void logits_of(const trip *t, const char *model, const char *adapter, float *out)
{
    static const int32_t ids[TOKENS] = {1, 403, 407, 261, 378, 432, 394, 383, 286, 261, 410, 419};
    ql_format stored;
    ql_model *m;
    ql_generator *gen;
    const float *logits;
    ck_assert_ok(ql_format_parse(&stored, "none", 0, false, &err), &err);
    ck_assert_ok(ql_model_open(&m, model, stored, t->workers, &err), &err);
    if (adapter)
        ck_assert_ok(ql_adapter_load(m, adapter, false, &err), &err);
    ck_assert_ok(ql_generator_create(&gen, m, 16, t->workers, &err), &err);
    ck_assert_ok(ql_generator_feed(gen, ids, TOKENS, &logits, &err), &err);
    memcpy(out, logits, VOCAB * sizeof *out);
    ql_generator_destroy(gen);
    ql_model_destroy(m);
}

static double apart(const float *x, const float *y)
{
    double most = 0;
    for (size_t i = 0; i < VOCAB; i++)
        most = fmax(most, fabs((double)x[i] - y[i]));
    return most;
}

static void check(const trip *t, const char *model, const char *adapter, const char *what)
{
    float got[VOCAB];
    logits_of(t, model, adapter, got);
    ck_assert_msg(apart(got, t->want) <= BOUND, "%s: the logits are %g away", what, apart(got, t->want));
}

/* The reference's tensors, rounded to what FP16 holds so that no way rounds them; with rsLoRA an alpha that gives about
 * the same scaling. */
static bool open_trip(trip *t, bool rslora)
{
    const char *peft = test_data("finetune-reference/qlora-nf4-all/adapter_final");
    *t = (trip){.base = test_data("models/stories260K-hf")};
    if (!peft || !t->base)
        return false;
    char text[512];
    ql_map map;
    ql_model *model;
    ql_format stored;
    ck_assert_ok(ql_workers_create(&t->workers, 2, &err), &err);
    t->folder = test_folder();
    char **const names[] = {&t->peft, &t->again, &t->lora, &t->back, &t->file, &t->merged};
    static const char *const last[] = {"peft", "again", "lora.gguf", "back", "model.gguf", "merged.gguf"};
    for (size_t i = 0; i < 6; i++)
        *names[i] = ql_path_join(t->folder, last[i]);
    char *weights = ql_path_join(peft, "adapter_model.safetensors");
    ck_assert_ok(ql_path_make_folder(t->peft, &err), &err);
    ck_assert_ok(ql_map_open(&map, weights, &err), &err);
    test_file(t->peft, "adapter_model.safetensors", map.data, map.size);
    ql_map_close(&map);
    free(weights);
    int length = snprintf(text, sizeof text,
                          "{\"peft_type\": \"LORA\", \"r\": %d, \"lora_alpha\": %s, \"use_rslora\": %s, "
                          "\"target_modules\": \"all-linear\", \"alpha_pattern\": {\"layers.2.mlp.up_proj\": 3}}",
                          RANK, rslora ? "5.5" : "16", rslora ? "true" : "false");
    test_file(t->peft, "adapter_config.json", text, (size_t)length);
    ck_assert_ok(ql_format_parse(&stored, "none", 0, false, &err), &err);
    ck_assert_ok(ql_model_open(&model, t->base, stored, t->workers, &err), &err);
    ck_assert_ok(ql_adapter_load(model, t->peft, true, &err), &err);
    ck_assert_ok(ql_adapter_save(model, t->peft, t->base, &err), &err);
    ql_model_destroy(model);
    float base[VOCAB];
    logits_of(t, t->base, NULL, base);
    logits_of(t, t->base, t->peft, t->want);
    ck_assert_double_gt(apart(base, t->want), 1); /* the adapter says something */
    return true;
}

static void close_trip(trip *t)
{
    char *const names[] = {t->peft, t->again, t->lora, t->back, t->file, t->merged};
    for (size_t i = 0; i < 6; i++)
        free(names[i]);
    ql_workers_destroy(t->workers);
    test_folder_remove(t->folder);
}

static void merge_into(const trip *t, const char *model, const char *adapter, const char *output)
{
    const ql_merge_options options = {.type = QL_CODE_F32, .format = ql_format_default(), .gguf = true};
    ql_merge_report report;
    ck_assert_ok(ql_merge(&report, model, adapter, output, &options, t->workers, &err), &err);
}

/* What an engine makes of the GGUF adapter, as a PEFT folder: scaling alpha / r; rows of q and k from their pairs. */
static void read_lora(const trip *t)
{
    static char names[MODULES][64];
    const char *list[MODULES];
    ql_adapter_shape shapes[MODULES];
    ql_tensors *file;
    ql_adapters *set;
    double alpha;
    ck_assert_ok(ql_tensors_open(&file, t->lora, &err), &err);
    ck_assert_ok(ql_gguf_get_double(ql_tensors_gguf(file), "adapter.lora.alpha", 1e-6, 1e6, &alpha, &err), &err);
    const ql_tensor *sides[MODULES][2];
    for (size_t i = 0; i < MODULES; i++) {
        char name[96];
        for (int side = 0; side < 2; side++) {
            snprintf(name, sizeof name, "blk.%zu.%s.weight.lora_%c", i / QL_MODULES, gguf_names[i % QL_MODULES],
                     "ab"[side]);
            ck_assert_ok(ql_tensors_need(&sides[i][side], file, name, 2, NULL, &err), &err);
        }
        snprintf(names[i], sizeof names[i], "model.layers.%zu.%s", i / QL_MODULES, hf_names[i % QL_MODULES]);
        list[i] = names[i];
        shapes[i] = (ql_adapter_shape){sides[i][0]->shape[1], sides[i][1]->shape[0], RANK, alpha / RANK, false};
    }
    ck_assert_ok(ql_adapters_create(&set, shapes, MODULES, true, &err), &err);
    for (size_t i = 0; i < MODULES; i++) {
        const ql_adapter *a = &set->layer[i];
        enum { DIM = 8 };
        ck_assert_ok(ql_tensor_read_f32(sides[i][0], 0, RANK * a->k, a->master_a, &err), &err);
        for (size_t row = 0; row < a->n; row++) {
            size_t in_head = row % DIM, pair = row - in_head + in_head % (DIM / 2) * 2 + in_head / (DIM / 2);
            size_t from = i % QL_MODULES < 2 ? pair : row;
            ck_assert_ok(ql_tensor_read_f32(sides[i][1], from * RANK, RANK, a->master_b + row * RANK, &err), &err);
        }
    }
    const ql_adapter_config config = {.rank = RANK, .alpha = alpha, .target_modules = list, .targets = MODULES};
    ck_assert_ok(ql_adapter_file_write(t->back, &config, set, list, &err), &err);
    ql_adapters_destroy(set);
    ql_tensors_close(file);
}

/* _i: rsLoRA, whose alpha GGUF has no word for. */
START_TEST(logits_stay)
{
    trip t;
    if (!open_trip(&t, _i))
        return;
    ck_assert_ok(ql_adapter_export(QL_EXPORT_PEFT, t.peft, t.base, t.again, &err), &err);
    check(&t, t.base, t.again, "PEFT again");
    merge_into(&t, t.base, t.again, t.merged);
    check(&t, t.merged, NULL, "a folder merged into a GGUF file");

    ck_assert_ok(ql_adapter_export(QL_EXPORT_GGUF, t.again, t.base, t.lora, &err), &err);
    read_lora(&t);
    check(&t, t.base, t.back, "the GGUF adapter over the folder");
    merge_into(&t, t.base, t.back, t.file);
    check(&t, t.file, NULL, "the GGUF adapter merged into a GGUF file");
    close_trip(&t);
}
END_TEST

/* A GGUF file with nothing merged into it is the folder: the same logits bit by bit, and the adapter fits it. */
START_TEST(the_file_is_the_folder)
{
    trip t;
    if (!open_trip(&t, false))
        return;
    float folder[VOCAB], file[VOCAB];
    ql_model *model;
    ql_format stored;
    ql_lora_options lora = ql_lora_options_defaults();
    ck_assert_ok(ql_format_parse(&stored, "none", 0, false, &err), &err);
    ck_assert_ok(ql_model_open(&model, t.base, stored, t.workers, &err), &err);
    ck_assert_ok(ql_model_attach(model, &lora, &err), &err);
    ck_assert_ok(ql_adapter_save(model, t.again, t.base, &err), &err); /* B = 0 */
    ql_model_destroy(model);
    merge_into(&t, t.base, t.again, t.file);
    logits_of(&t, t.base, NULL, folder);
    logits_of(&t, t.file, NULL, file);
    ck_assert_mem_eq(folder, file, sizeof folder);
    check(&t, t.file, t.peft, "the adapter over the file");
    merge_into(&t, t.file, t.peft, t.merged);
    check(&t, t.merged, NULL, "the adapter merged into the file");
    close_trip(&t);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("round");
    TCase *tc = tcase_create("round");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, logits_stay, 0, 2);
    tcase_add_test(tc, the_file_is_the_folder);
    suite_add_tcase(suite, tc);
    return test_run(suite);
}
