/* qlora plan: what a fine-tuning run would take, from config.json alone. */
#include <string.h>

#include "cli/commands.h"
#include "cli/finetune.h"

/* Ways to run: activations kept, all of them recomputed, and as many as are asked for or fit. */
enum { KEPT, RECOMPUTED, CHOSEN, WAYS };

typedef struct outlook {
    ql_train_shape data, valid;
    ql_model *model;
    ql_model_bytes base;
    ql_trainer_bytes way[WAYS];
    size_t evaluation;
    ql_step_estimate time; /* took 0: not measured */
} outlook;

static size_t sum(const finetune *f, const outlook *o, int way)
{
    return finetune_total(&o->base, &o->way[way]) + o->evaluation + finetune_process(f);
}

/* The data's shape: as it is, or with samples as long as --seq-len lets them be. */
static int shape(finetune *f, outlook *o)
{
    if (!f->v->data) {
        ql_tokenizer_open(&f->session.tokenizer, f->v->common.model, NULL); /* for its bytes; a config.json may be alone */
        o->data = (ql_train_shape){.samples = f->train.batch_size, .longest = cli_sequence(&f->session) + 1};
        o->valid = f->v->valid || f->v->val_fraction > 0 ? o->data : (ql_train_shape){0};
        return CLI_OK;
    }
    ql_error err = {0};
    if (ql_tokenizer_open(&f->session.tokenizer, f->v->common.model, &err))
        return cli_failed(&err);
    int status = finetune_open_data(f);
    if (status == CLI_OK) {
        o->data = ql_train_shape_of(f->data);
        o->valid = f->valid ? ql_train_shape_of(f->valid) : (ql_train_shape){0};
    }
    return status;
}

static ql_status measure(finetune *f, outlook *o, ql_error *err)
{
    size_t threads = ql_workers_count(f->session.workers);
    ql_status status = QL_OK;
    for (int way = 0; way < WAYS && !status; way++) {
        ql_train_options options = f->train;
        if (way != CHOSEN)
            options.recompute_blocks = way == KEPT ? 0 : SIZE_MAX;
        status = ql_train_plan(&o->way[way], o->model, o->data, &options, threads, err);
    }
    if (o->valid.samples)
        o->evaluation = ql_evaluate_bytes(o->model, o->valid, f->train.batch_size);
    return status;
}

/* From the files where there are weights, else from config.json alone. */
static ql_status build_base(const finetune *f, outlook *o, ql_error *err)
{
    const cli_session *s = &f->session;
    const char *path = s->common->model;
    bool gguf = cli_ends_in(path, ".gguf");
    if (gguf || !s->config.quantized.code) {
        ql_status status = ql_model_plan_files(&o->model, path, s->format, err);
        if (!status || gguf)
            return status;
    }
    return ql_model_plan(&o->model, &s->config, s->format, err);
}

static ql_status build(finetune *f, outlook *o, ql_error *err)
{
    const cli_session *s = &f->session;
    ql_status status = build_base(f, o, err);
    if (!status)
        status = ql_model_quantize_head(o->model, s->head_format, s->workers, err);
    if (status)
        return status;
    f->session.format = ql_model_format(o->model);
    ql_model_allow_bf16(o->model, cli_bf16(&f->v->common));
    o->base = ql_train_model_bytes(o->model, o->data);
    const char *adapter = f->v->common.adapter;
    status = adapter ? ql_adapter_load(o->model, adapter, true, err) : ql_model_attach(o->model, &f->lora, err);
    f->process = cli_resident_memory();
    if (!status && f->v->max_memory)
        status = ql_train_fit(&f->train, o->model, o->data, ql_workers_count(f->session.workers),
                              finetune_others(f, o->model, o->valid), f->v->max_memory, err);
    ql_status measured = measure(f, o, status ? NULL : err); /* what does not fit is shown too */
    if (!status && !measured && f->v->time)
        status = ql_train_estimate(&o->time, o->model, o->data, &f->train, s->workers, err);
    return status ? status : measured;
}

typedef struct row {
    const char *key, *words;
    size_t bytes[WAYS];
} row;

enum { ROWS = 12 };

static void list(const finetune *f, const outlook *o, row rows[ROWS])
{
    const ql_model_bytes *b = &o->base;
    for (int way = 0; way < WAYS; way++) {
        const ql_trainer_bytes *t = &o->way[way];
        const struct {
            const char *key, *words;
            size_t bytes;
        } all[ROWS] = {
            {"codes", "base codes", b->codes},
            {"scales", "base scales", b->scales},
            {"dense", "norms and biases", b->dense},
            {"mapped", "embeddings and what else is mapped", b->mapped},
            {"adapters", "adapters (FP16 and masters)", t->adapters},
            {"gradients", "gradients", t->gradients},
            {"optimizer", "optimizer", t->optimizer},
            {"activations", "activations", t->activations},
            {"workspace", "workspace", t->workspace},
            {"evaluation", "evaluation of the held-out data", o->evaluation},
            {"process", "program, tokenizer, data, stacks", finetune_process(f)},
            {"total", "in all", sum(f, o, way)},
        };
        for (size_t i = 0; i < ROWS; i++) {
            rows[i].key = all[i].key;
            rows[i].words = all[i].words;
            rows[i].bytes[way] = all[i].bytes;
        }
    }
}

static double seconds(const outlook *o, int way)
{
    return way == KEPT ? o->time.kept : way == RECOMPUTED ? o->time.recomputed : o->time.asked;
}

/* The table; the way that was chosen is a column of its own where it is neither of the others. */
static void tell_ways(const finetune *f, const outlook *o)
{
    row rows[ROWS];
    cli_text text, heads[WAYS] = {"without", "with --recompute"};
    const cli_session *s = &f->session;
    size_t again = finetune_recomputed(f);
    int ways = again > 0 && again + 1 < s->config.layers ? WAYS : CHOSEN;
    list(f, o, rows);
    snprintf(heads[CHOSEN], sizeof heads[CHOSEN], "--recompute %zu", again);
    cli_say(s, "%-38s", "Bytes");
    for (int way = 0; way < ways; way++)
        cli_say(s, " %17s", heads[way]);
    for (size_t i = 0; i < ROWS; i++) {
        cli_say(s, "\n%-38s", rows[i].words);
        for (int way = 0; way < ways; way++)
            cli_say(s, " %17s", cli_count(rows[i].bytes[way], text));
    }
    if (o->time.took > 0) {
        cli_say(s, "\n%-38s", "A step, about (from two layers)");
        for (int way = 0; way < ways; way++)
            cli_say(s, " %15.2f s", seconds(o, way));
        cli_say(s, "\n%-38s", "Tokens a second, about");
        for (int way = 0; way < ways; way++)
            cli_say(s, " %17.1f", o->time.tokens / seconds(o, way));
    }
    cli_say(s, "\n");
}

static void tell(const finetune *f, const outlook *o, bool fits)
{
    char format[48], again[48] = "";
    cli_text a, b;
    const cli_session *s = &f->session;
    const ql_model_config *c = &s->config;
    cli_say(s, "Model     %s: %s, %zu layers of %zu, %s parameters%s%s\n", s->common->model, ql_arch_name(c->arch),
            c->layers, c->hidden_size, cli_count(ql_model_config_parameters(c), a), s->stored ? "" : ", stored as ",
            s->stored ? "" : ql_dtype_name(c->stored));
    cli_say(s, "Base      %s; adapters of %s parameters\n", ql_format_describe(s->format, format),
            cli_count(ql_model_adapter_parameters(o->model), a));
    cli_say(s, "Run       %zu x %zu samples a step, of up to %zu tokens; %zu threads\n\n", f->train.grad_accum,
            f->train.batch_size, o->data.longest - 1, ql_workers_count(s->workers));
    tell_ways(f, o);
    if (finetune_recomputed(f))
        snprintf(again, sizeof again, " and --recompute %zu", finetune_recomputed(f));
    if (f->v->max_memory && fits)
        cli_say(s, "\nFits into %s with %zu x %zu samples a step%s: %s\n", cli_bytes(f->v->max_memory, a),
                f->train.grad_accum, f->train.batch_size, again, cli_bytes(sum(f, o, CHOSEN), b));
}

static int tell_json(const finetune *f, const outlook *o, bool fits)
{
    static const char *const ways[WAYS] = {"kept", "recomputed", "chosen"};
    char format[48];
    row rows[ROWS];
    ql_json json = {0};
    list(f, o, rows);
    ql_json_object(&json, NULL);
    ql_json_string(&json, "command", "plan");
    ql_json_string(&json, "model", f->v->common.model);
    ql_json_string(&json, "format", ql_format_describe(f->session.format, format));
    ql_json_integer(&json, "parameters", (int64_t)ql_model_config_parameters(&f->session.config));
    ql_json_integer(&json, "trainable_parameters", (int64_t)ql_model_adapter_parameters(o->model));
    ql_json_integer(&json, "batch_size", (int64_t)f->train.batch_size);
    ql_json_integer(&json, "grad_accum", (int64_t)f->train.grad_accum);
    ql_json_integer(&json, "recompute", (int64_t)finetune_recomputed(f));
    ql_json_bool(&json, "fits", fits);
    for (int way = 0; way < WAYS; way++) {
        ql_json_object(&json, ways[way]);
        for (size_t i = 0; i < ROWS; i++)
            ql_json_integer(&json, rows[i].key, (int64_t)rows[i].bytes[way]);
        if (o->time.took > 0) {
            ql_json_number(&json, "seconds_per_step", seconds(o, way));
            ql_json_number(&json, "tokens_per_second", o->time.tokens / seconds(o, way));
        }
        ql_json_end(&json);
    }
    return cli_json_print(&json);
}

static int plan(finetune *f, const cli_args *args)
{
    ql_error err = {0};
    outlook o = {0};
    int status = finetune_read_options(f, args);
    if (status == CLI_OK)
        status = cli_session_start(&f->session, args);
    if (status == CLI_OK)
        status = shape(f, &o);
    if (status != CLI_OK)
        return status;
    ql_status built = build(f, &o, &err);
    if (o.way[CHOSEN].activations) { /* it could be measured */
        tell(f, &o, !built);
        if (f->v->common.json)
            status = tell_json(f, &o, !built);
    }
    ql_model_destroy(o.model);
    return built ? cli_failed(&err) : status;
}

static int run(const cli_args *args)
{
    finetune f = {0};
    int status = plan(&f, args);
    finetune_close(&f);
    return status;
}

static const cli_option time_options[] = {
    {"time", CLI_FLAG, offsetof(finetune_values, time), NULL, "yes", 0, 0, false, "Running and reporting",
     "leave out the estimate of a step's time, for which two layers of that shape take a few steps"},
    {0},
};

static const cli_option *const plan_options[] = {cli_model_options, finetune_file_options, cli_format_options,
                                                 cli_compute_options, cli_data_options, finetune_train_options,
                                                 cli_run_options, time_options, NULL};

static const char *const examples[] = {
    "qlora plan --model Qwen2.5-0.5B --batch-size 8 --seq-len 1024",
    "What such a run would take, with and without recomputation.",
    "qlora plan --model Qwen2.5-0.5B/config.json --rank 32 --max-memory 2G",
    "Nothing but the configuration is needed; how the run would be made to fit.",
    "qlora plan --model Qwen2.5-0.5B --data train.jsonl",
    "The samples as long as they are, not as long as they may be.",
    NULL,
};

const cli_command cli_plan = {
    .name = "plan",
    .summary = "the memory that a fine-tuning run would take",
    .about = "Prints, before anything is loaded and without weights from config.json alone, the exact bytes that `qlora finetune` with "
             "the same options would hold. Options that do not change memory are taken and not looked at.",
    .examples = examples,
    .notes = "With --max-memory the status is 1 when the run cannot be made to fit.",
    .options = plan_options,
    .sketch = true,
    .values = sizeof(finetune_values),
    .run = run,
};
