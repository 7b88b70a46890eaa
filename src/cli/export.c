/* qlora export: an adapter for other programs. */
#include <string.h>

#include "cli/commands.h"
#include "cli/common.h"
#include "qlora/convert.h"

typedef struct export_values {
    cli_common common;
    const char *to, *output;
} export_values;

#define FIELD(name) offsetof(export_values, name)

static const cli_option own_options[] = {
    {"adapter", CLI_TEXT, FIELD(common.adapter), "DIR", NULL, 0, 0, true, "Input and output",
     "PEFT adapter folder to export"},
    {"to", CLI_CHOICE, FIELD(to), "gguf|mlx|peft", NULL, 0, 0, true, "Input and output",
     "gguf: a file for llama.cpp; mlx: a folder for mlx-lm; peft: a folder in PEFT's plainest form"},
    {"output", CLI_TEXT, FIELD(output), "PATH", NULL, 0, 0, true, "Input and output",
     "the file (gguf) or folder to write; what is there is replaced"},
    {"json", CLI_FLAG, FIELD(common.json), NULL, "no", 0, 0, false, "Running and reporting",
     "one JSON object with the result on stdout"},
    {"quiet", CLI_FLAG, FIELD(common.quiet), NULL, "no", 0, 0, false, "Running and reporting",
     "say nothing but warnings and errors"},
    {0},
};

static const struct {
    const char *name;
    ql_export target;
    const char *use; /* how it is used; %s: the output */
} targets[] = {
    {"gguf", QL_EXPORT_GGUF, "llama-cli -m BASE.gguf --lora %s"},
    {"mlx", QL_EXPORT_MLX, "mlx_lm.generate --model BASE --adapter-path %s"},
    {"peft", QL_EXPORT_PEFT, "PeftModel.from_pretrained(base, \"%s\")"},
};

static int tell_json(const export_values *v)
{
    ql_json json = {.pretty = false};
    ql_json_object(&json, NULL);
    ql_json_string(&json, "command", "export");
    ql_json_string(&json, "adapter", v->common.adapter);
    ql_json_string(&json, "model", v->common.model);
    ql_json_string(&json, "to", v->to);
    ql_json_string(&json, "output", v->output);
    return cli_json_print(&json);
}

static int run(const cli_args *args)
{
    ql_error err = {0};
    const export_values *v = args->values;
    size_t i = 0;
    while (strcmp(targets[i].name, v->to) != 0)
        i++;
    if (ql_adapter_export(targets[i].target, v->common.adapter, v->common.model, v->output, &err))
        return cli_failed(&err);
    if (!v->common.quiet && !v->common.json) {
        printf("Adapter     %s, written to %s\nUse it      ", v->common.adapter, v->output);
        const char *at = strstr(targets[i].use, "%s");
        printf("%.*s%s%s\n", (int)(at - targets[i].use), targets[i].use, v->output, at + 2);
    }
    return v->common.json ? tell_json(v) : CLI_OK;
}

static const char *const examples[] = {
    "qlora export --adapter my-adapter --model Llama-3.2-1B --to gguf --output my-adapter.gguf",
    "An adapter that llama.cpp loads over a GGUF of the same model, of any quantization.",
    "qlora export --adapter my-adapter --model Llama-3.2-1B --to mlx --output my-adapter-mlx",
    "One for mlx-lm.",
    NULL,
};

static const cli_option *const options[] = {cli_model_options, own_options, NULL};

const cli_command cli_export = {
    .name = "export",
    .summary = "write an adapter for llama.cpp, mlx-lm or PEFT",
    .about = "Rewrites a PEFT adapter for another program, in fp32. Of the model only config.json is read. Ranks and "
             "scalings that differ between layers, and rank-stabilized scaling, are folded into the matrices where the "
             "other program has no word for them: every layer adds what it added before.",
    .examples = examples,
    .options = options,
    .values = sizeof(export_values),
    .run = run,
};
