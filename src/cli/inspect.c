/* qlora inspect: what is in a file, and what is wrong with it. */
#define _GNU_SOURCE
#include "cli/inspect.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/commands.h"

#define FIELD(name) offsetof(inspect_values, name)

static const cli_option own_options[] = {
    {"file", CLI_TEXT, FIELD(file), "FILE", NULL, 0, 0, true, "Input and output",
     "a model's folder, an adapter's, safetensors, GGUF, a checkpoint, config.json, tokenizer.json; or, with --model, "
     "data"},
    {"model", CLI_TEXT, FIELD(common.model), "MODEL", NULL, 0, 0, false, "Input and output",
     "the model whose tokenizer and chat template the data is read with: a folder or a GGUF file"},
    {"samples", CLI_SIZE, FIELD(samples), "N", "3", 0, 1e9, false, "What is shown", "samples of data that are shown"},
    {"tokens", CLI_SIZE, FIELD(tokens), "N", "400", 1, 1e9, false, "What is shown", "tokens that are shown of each"},
    {"tensors", CLI_SIZE, FIELD(tensors), "N", "1000000", 0, 1e9, false, "What is shown", "tensors that are listed"},
    {"values", CLI_FLAG, FIELD(values), NULL, "no", 0, 0, false, "What is shown",
     "read every weight and report those that are not finite numbers"},
    {"color", CLI_CHOICE, FIELD(color), "auto|always|never", "auto", 0, 0, false, "What is shown",
     "auto: on a terminal, unless NO_COLOR is set"},
    {0},
};

bool inspect_color(const inspect_values *v)
{
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
    if (strcmp(v->color, "auto") != 0)
        return strcmp(v->color, "always") == 0;
    return !(no && *no) && isatty(STDOUT_FILENO) && !(term && strcmp(term, "dumb") == 0);
}

void inspect_put(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        bool high = c == 0xc2 && i + 1 < length && (unsigned char)text[i + 1] < 0xa0;
        if (c == '\n')
            fputs("\\n\n", stdout);
        else if (c == '\t')
            fputs("\\t", stdout);
        else if (c < 0x20 || c == 0x7f)
            printf("\\x%02x", c);
        else if (high)
            printf("\\u00%02x", (unsigned char)text[++i]);
        else
            putchar(c);
    }
}

void inspect_tell_findings(const ql_findings *findings, bool color)
{
    for (int fault = 1; fault >= 0; fault--)
        for (size_t i = 0; i < findings->count; i++) {
            if (findings->at[i].fault != fault)
                continue;
            printf("%s%s%s  ", color ? fault ? "\x1b[31m" : "\x1b[33m" : "", fault ? "Wrong     " : "Warning   ",
                   color ? "\x1b[0m" : "");
            inspect_put(findings->at[i].text, strlen(findings->at[i].text));
            putchar('\n');
        }
}

void inspect_json_findings(ql_json *json, const ql_findings *findings)
{
    for (int fault = 1; fault >= 0; fault--) {
        ql_json_array(json, fault ? "faults" : "warnings");
        for (size_t i = 0; i < findings->count; i++)
            if (findings->at[i].fault == fault)
                ql_json_string(json, NULL, findings->at[i].text);
        ql_json_end(json);
    }
}

static int run(const cli_args *args)
{
    const inspect_values *v = args->values;
    bool data = cli_ends_in(v->file, ".jsonl") || cli_ends_in(v->file, ".ndjson") || cli_ends_in(v->file, ".txt");
    if (data && !v->common.model)
        return cli_wrong(args->command, "%s: data is looked at with a tokenizer: --model is missing", v->file);
    return v->common.model ? inspect_data(args) : inspect_file(args);
}

static const char *const examples[] = {
    "qlora inspect train.jsonl --model Qwen2.5-0.5B-Instruct",
    "What of the data is learned, in colour; lengths; what to mind before training.",
    "qlora inspect Qwen2.5-0.5B-Instruct --values",
    "A model's shape and tensors, and whether they fit together and are numbers.",
    "qlora inspect my-adapter --json",
    "An adapter as one JSON object.",
    NULL,
};

static const cli_option *const options[] = {own_options, cli_data_options, cli_run_options, NULL};

const cli_command cli_inspect = {
    .name = "inspect",
    .summary = "what is in a file, and what is wrong with it",
    .about =
        "Shows what any file holds that the other commands read: architecture, tensors, formats, metadata, and what "
        "keeps it from being used. Of data it shows samples as the model will meet them: tokens, what is learned and "
        "what is only read, lengths, and what is suspicious.",
    .examples = examples,
    .notes = "Without colour learned text stands in [[ ]], and a bar stands between tokens. The exit status is 1 when "
             "something is wrong; warnings leave it 0.",
    .options = options,
    .operand = "file",
    .values = sizeof(inspect_values),
    .run = run,
};
