/* qlora eval: the loss of a model on a file. */
#include "cli/commands.h"
#include "cli/common.h"

typedef struct eval_values {
    cli_common common;
    const char *data;
    size_t batch_size;
} eval_values;

#define FIELD(name) offsetof(eval_values, name)

static const cli_option own_options[] = {
    {"data", CLI_TEXT, FIELD(data), "FILE", NULL, 0, 0, true, "Input and output",
     "plain text (.txt), or JSON lines with \"text\", \"prompt\" and \"completion\", or \"messages\""},
    {"adapter", CLI_TEXT, FIELD(common.adapter), "DIR", NULL, 0, 0, false, "Input and output",
     "PEFT adapter folder to put on the model"},
    {"batch-size", CLI_SIZE, FIELD(batch_size), "N", "4", 1, 65536, false, "Input and output",
     "samples computed at a time"},
    {0},
};

static void tell(const cli_session *s, const ql_eval_report *r)
{
    char format[48];
    cli_text samples, tokens, learned, peak;
    cli_say(s, "Model       %s, %s%s%s%s\n", s->common->model, ql_format_describe(s->format, format),
            s->stored ? " as stored" : "",
            s->common->adapter ? ", adapter " : "", s->common->adapter ? s->common->adapter : "");
    cli_say(s, "Data        %s samples, %s tokens, %s of them counted\n", cli_count(r->samples, samples),
            cli_count(r->tokens, tokens), cli_count(r->learned, learned));
    cli_say(s, "Loss        %.4f\nPerplexity  %.3f\n", r->loss, r->perplexity);
    cli_say(s, "Time        %.1f s, %.0f tokens/s; peak resident memory %s\n", r->seconds,
            r->seconds > 0 ? (double)r->tokens / r->seconds : 0, cli_bytes(cli_peak_memory(), peak));
}

static int tell_json(const cli_session *s, const char *data, const ql_eval_report *r)
{
    char format[48];
    ql_json json = {.pretty = false};
    ql_json_object(&json, NULL);
    ql_json_string(&json, "command", "eval");
    ql_json_string(&json, "model", s->common->model);
    ql_json_string(&json, "adapter", s->common->adapter);
    ql_json_string(&json, "data", data);
    ql_json_string(&json, "format", ql_format_describe(s->format, format));
    cli_json_eval(&json, r);
    ql_json_integer(&json, "peak_resident", (int64_t)cli_peak_memory());
    return cli_json_print(&json);
}

static int evaluate(cli_session *s, const eval_values *v, const ql_dataset *data)
{
    ql_error err = {0};
    ql_eval_report report;
    int status = cli_session_load(s);
    if (status != CLI_OK)
        return status;
    if ((v->common.adapter && ql_adapter_load(s->model, v->common.adapter, false, &err)) ||
        ql_evaluate(&report, s->model, data, v->batch_size, s->workers, &err))
        return cli_failed(&err);
    tell(s, &report);
    return v->common.json ? tell_json(s, v->data, &report) : CLI_OK;
}

static int run(const cli_args *args)
{
    cli_session session = {0};
    ql_dataset *data = NULL;
    const eval_values *v = args->values;
    int status = cli_session_open(&session, args);
    if (status == CLI_OK)
        status = cli_open_data(&data, &session, v->data);
    if (status == CLI_OK)
        status = evaluate(&session, v, data);
    ql_dataset_close(data);
    cli_session_close(&session);
    return status;
}

static const char *const examples[] = {
    "qlora eval --model Qwen2.5-0.5B --data valid.jsonl",
    "Loss and perplexity of the quantized model.",
    "qlora eval --model Qwen2.5-0.5B --data valid.jsonl --adapter my-adapter",
    "The same with an adapter on it.",
    "qlora eval --model Qwen2.5-0.5B --data valid.jsonl --format none",
    "With the weights as stored: the difference is what quantization costs.",
    NULL,
};

static const cli_option *const options[] = {cli_model_options, own_options, cli_format_options, cli_inference_options,
                                            cli_data_options, cli_run_options, NULL};

const cli_command cli_eval = {
    .name = "eval",
    .summary = "loss and perplexity on a file",
    .about = "Measures the mean loss, in nats a token, and its exponential, the perplexity. The same tokens count as "
             "in fine-tuning: completions and the assistant's turns, or all of a text.",
    .examples = examples,
    .options = options,
    .values = sizeof(eval_values),
    .run = run,
};
