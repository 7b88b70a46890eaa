/* qlora merge: an adapter made part of its model. */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/common.h"
#include "cli/output.h"
#include "qlora/convert.h"

typedef struct merge_values {
    cli_common common;
    const char *output, *dtype, *from, *data;
    size_t batch_size;
} merge_values;

#define FIELD(name) offsetof(merge_values, name)

static const cli_option own_options[] = {
    {"adapter", CLI_TEXT, FIELD(common.adapter), "DIR", NULL, 0, 0, true, "Input and output",
     "PEFT adapter folder to merge"},
    {"output", CLI_TEXT, FIELD(output), "PATH", NULL, 0, 0, true, "Input and output",
     "folder for the merged model, or a GGUF file: a name that ends in .gguf, or the model is one; what is there is "
     "replaced"},
    {"dtype", CLI_CHOICE, FIELD(dtype), "bf16|f16|f32|q8_0|q4_0|q4_1", NULL, 0, 0, false, "Input and output",
     "type of the weights written (as stored in the model if not given); q8_0, q4_0 and q4_1 in GGUF files"},
    {"from", CLI_CHOICE, FIELD(from), "original|quantized", "original", 0, 0, false, "Input and output",
     "add to the weights as stored, or to what quantization to --format leaves of them, as in training"},
    {"data", CLI_TEXT, FIELD(data), "FILE", NULL, 0, 0, false, "Input and output",
     "text or JSON lines to measure the loss on: of the model, with the adapter, and merged"},
    {"batch-size", CLI_SIZE, FIELD(batch_size), "N", "4", 1, 65536, false, "Input and output",
     "samples computed at a time"},
    {0},
};

typedef struct merge_run {
    cli_session session;
    ql_dataset *data; /* NULL: no losses */
    ql_merge_options options;
    ql_merge_report report;
    ql_eval_report base, before, after; /* of the model, with its adapter, merged */
} merge_run;

static const struct {
    const char *name;
    ql_code type;
} types[] = {{"bf16", QL_CODE_BF16}, {"f16", QL_CODE_F16}, {"f32", QL_CODE_F32}, {"q8_0", QL_CODE_Q8_0},
             {"q4_0", QL_CODE_Q4_0}, {"q4_1", QL_CODE_Q4_1}};

static bool from_quantized(const merge_values *v)
{
    return strcmp(v->from, "quantized") == 0;
}

/* Whether the result is a GGUF file: the model is one, or the name of the output says so. */
static bool into_file(const merge_values *v)
{
    struct stat info;
    return cli_ends_in(v->output, ".gguf") || (stat(v->common.model, &info) == 0 && S_ISREG(info.st_mode));
}

/* Everything before the weights are read. */
static int prepare(merge_run *r, const cli_args *args)
{
    const merge_values *v = args->values;
    ql_error err = {0};
    const char *const of_format[] = {"format", "group-size", "double-quant"};
    for (size_t i = 0; i < 3 && !from_quantized(v); i++)
        if (cli_given(args, of_format[i]))
            return cli_wrong(args->command, "--%s needs --from quantized", of_format[i]);
    int status = v->data ? cli_session_open(&r->session, args) : cli_session_start(&r->session, args);
    if (status == CLI_OK && v->data)
        status = cli_open_data(&r->data, &r->session, v->data);
    if (status != CLI_OK)
        return status;
    r->options = ql_merge_options_defaults();
    r->options.as_stored = !v->dtype;
    for (size_t i = 0; i < sizeof types / sizeof *types && v->dtype; i++)
        if (strcmp(types[i].name, v->dtype) == 0)
            r->options.type = types[i].type;
    r->options.quantized = from_quantized(v);
    r->options.gguf = into_file(v);
    if (!r->options.quantized && ql_format_parse(&r->session.format, "none", 0, false, &err))
        return cli_failed(&err);
    r->options.format = r->session.format;
    return CLI_OK;
}

/* The loss of the model in `dir`, with an adapter unless it is NULL. */
static int measure(merge_run *r, ql_eval_report *report, const char *dir, ql_format format, const char *adapter,
                   size_t batch_size)
{
    ql_error err = {0};
    ql_model *model = NULL;
    ql_status status = ql_model_open(&model, dir, format, r->session.workers, &err);
    if (!status)
        status = ql_model_quantize_head(model, r->session.head_format, r->session.workers, &err);
    if (!status)
        ql_model_allow_bf16(model, cli_bf16(r->session.common));
    if (!status && adapter)
        status = ql_adapter_load(model, adapter, false, &err);
    if (!status)
        status = ql_evaluate(report, model, r->data, batch_size, r->session.workers, &err);
    ql_model_destroy(model);
    return status ? cli_failed(&err) : CLI_OK;
}

static int merge(merge_run *r, const merge_values *v)
{
    ql_error err = {0};
    ql_format as_stored;
    int status = CLI_OK;
    if (r->data)
        status = measure(r, &r->base, v->common.model, r->session.format, NULL, v->batch_size);
    if (r->data && status == CLI_OK)
        status = measure(r, &r->before, v->common.model, r->session.format, v->common.adapter, v->batch_size);
    if (status != CLI_OK)
        return status;
    if (ql_merge(&r->report, v->common.model, v->common.adapter, v->output, &r->options, r->session.workers, &err) ||
        ql_format_parse(&as_stored, "none", 0, false, &err))
        return cli_failed(&err);
    return r->data ? measure(r, &r->after, v->output, as_stored, NULL, v->batch_size) : CLI_OK;
}

static void tell(const merge_run *r, const merge_values *v)
{
    const cli_session *s = &r->session;
    const ql_merge_report *m = &r->report;
    char format[48];
    cli_text bytes, peak;
    cli_say(s, "Merged      %zu of %zu tensors, into %s%s%s\n", m->merged, m->tensors,
            r->options.quantized                ? "the weights as quantized to "
            : r->session.config.quantized.code ? "what the codes of bitsandbytes stand for"
                                               : "the original weights",
            r->options.quantized ? ql_format_describe(s->format, format) : "",
            v->dtype ? "" : ", each in the type it had");
    cli_say(s, "Output      %s, %s of weights%s%s\n", v->output, cli_bytes(m->bytes, bytes), v->dtype ? " in " : "",
            v->dtype ? v->dtype : "");
    if (m->max_error > 0)
        cli_say(s, "Rounding    at most %.3g, in %s\n", m->max_error, m->max_error_at);
    else
        cli_say(s, "Rounding    none\n");
    if (r->data) {
        cli_say(s, "Loss        %.6f without the adapter, %.6f before (model and adapter), %.6f after (merged)\n",
                r->base.loss, r->before.loss, r->after.loss);
        cli_say(s, "Cost        %+.2g nats a token, of rounding to %s\n", r->after.loss - r->before.loss,
                v->dtype ? v->dtype : "the types that the tensors had");
    }
    cli_say(s, "Memory      peak resident %s\n", cli_bytes(cli_peak_memory(), peak));
}

static int tell_json(const merge_run *r, const merge_values *v)
{
    char format[48];
    ql_json json = {.pretty = false};
    ql_json_object(&json, NULL);
    ql_json_string(&json, "command", "merge");
    ql_json_string(&json, "model", v->common.model);
    ql_json_string(&json, "adapter", v->common.adapter);
    ql_json_string(&json, "output", v->output);
    ql_json_string(&json, "from", v->from);
    ql_json_string(&json, "format", r->options.quantized ? ql_format_describe(r->session.format, format) : NULL);
    ql_json_string(&json, "dtype", v->dtype);
    ql_json_integer(&json, "tensors", (int64_t)r->report.tensors);
    ql_json_integer(&json, "merged", (int64_t)r->report.merged);
    ql_json_integer(&json, "bytes", (int64_t)r->report.bytes);
    ql_json_number(&json, "max_error", r->report.max_error);
    ql_json_string(&json, "max_error_at", r->report.max_error > 0 ? r->report.max_error_at : NULL);
    const struct {
        const char *name;
        const ql_eval_report *loss;
    } losses[] = {{"base", &r->base}, {"before", &r->before}, {"after", &r->after}};
    for (size_t i = 0; i < 3 && r->data; i++) {
        ql_json_object(&json, losses[i].name);
        cli_json_eval(&json, losses[i].loss);
        ql_json_end(&json);
    }
    if (r->data)
        ql_json_number(&json, "rounding_cost", r->after.loss - r->before.loss);
    ql_json_integer(&json, "peak_resident", (int64_t)cli_peak_memory());
    return cli_json_print(&json);
}

static int run(const cli_args *args)
{
    merge_run r = {0};
    const merge_values *v = args->values;
    bool made = false;
    int status = prepare(&r, args);
    if (status == CLI_OK && !into_file(v))
        status = cli_output_make(v->output, &made);
    if (status == CLI_OK)
        status = merge(&r, v);
    if (status == CLI_OK)
        tell(&r, v);
    if (status == CLI_OK && v->common.json)
        status = tell_json(&r, v);
    if (status != CLI_OK && made)
        rmdir(v->output); /* when nothing is in it */
    ql_dataset_close(r.data);
    cli_session_close(&r.session);
    return status;
}

static const char *const examples[] = {
    "qlora merge --model Qwen2.5-0.5B --adapter my-adapter --output my-model",
    "A model of its own in the types that the base has, for any program that reads Hugging Face folders.",
    "qlora merge --model Qwen2.5-0.5B --adapter my-adapter --output my-model --dtype bf16 --data valid.jsonl",
    "The same in BF16, with the loss of model and adapter and of the merged model.",
    "qlora merge --model Qwen2.5-0.5B --adapter my-adapter --output my-model --from quantized",
    "Into the weights that the adapter was trained on, as NF4 left them.",
    "qlora merge --model base.gguf --adapter my-adapter --output my-model.gguf --dtype q8_0",
    "A GGUF file with the adapter in it, with the tokenizer and all else that the base says of itself.",
    "qlora merge --model Qwen2.5-0.5B --adapter my-adapter --output my-model.gguf --dtype q8_0 --data valid.jsonl",
    "A Hugging Face folder into a GGUF file for llama.cpp, tokenizer and chat template included, and what Q8_0 costs.",
    NULL,
};

static const cli_option *const options[] = {cli_model_options, own_options, cli_format_options, cli_compute_options,
                                            cli_data_options, cli_run_options, NULL};

const cli_command cli_merge = {
    .name = "merge",
    .summary = "make an adapter part of its model",
    .about = "Writes the model with the adapter added to its weights, as a Hugging Face folder, or as a GGUF file when "
             "the model is one or the output's name ends in .gguf. Sums are taken in fp32 "
             "and rounded once; memory holds the adapter and one tensor. An adapter that was trained on quantized "
             "weights acts a little differently on the original ones: --from chooses, --data shows the losses.",
    .examples = examples,
    .notes = "Ctrl-C or SIGTERM quits at once (130 in a shell, 143); each file is there whole or as it was before.",
    .options = options,
    .values = sizeof(merge_values),
    .run = run,
};
