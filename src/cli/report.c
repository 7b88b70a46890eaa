/* qlora report: the page of a run, from its log. */
#include "cli/commands.h"
#include "cli/common.h"
#include "cli/page.h"

typedef struct report_values {
    const char *log, *output;
    bool json, quiet;
} report_values;

#define FIELD(name) offsetof(report_values, name)

static const cli_option own_options[] = {
    {"log", CLI_TEXT, FIELD(log), "LOG", NULL, 0, 0, true, "Input and output",
     "what 'qlora finetune --log LOG' wrote, also while the run goes on"},
    {"output", CLI_TEXT, FIELD(output), "FILE", NULL, 0, 0, true, "Input and output",
     "the HTML file to write; -o for short; what is there is replaced"},
    {"json", CLI_FLAG, FIELD(json), NULL, "no", 0, 0, false, "Running and reporting",
     "one JSON object with the result on stdout"},
    {"quiet", CLI_FLAG, FIELD(quiet), NULL, "no", 0, 0, false, "Running and reporting",
     "say nothing but warnings and errors"},
    {0},
};

static int tell_json(const report_values *v)
{
    ql_json json = {0};
    ql_json_object(&json, NULL);
    ql_json_string(&json, "command", "report");
    ql_json_string(&json, "log", v->log);
    ql_json_string(&json, "output", v->output);
    return cli_json_print(&json);
}

static int run(const cli_args *args)
{
    ql_error err = {0};
    const report_values *v = args->values;
    FILE *log = fopen(v->log, "re");
    if (!log)
        return cli_failed_with("%s: cannot read it (%m)", v->log);
    ql_status status = cli_page_write(v->output, log, v->log, &err);
    fclose(log);
    if (status)
        return cli_failed(&err);
    if (v->json)
        return tell_json(v);
    if (!v->quiet)
        printf("Report      %s; open it in a browser\n", v->output);
    return CLI_OK;
}

static const char *const examples[] = {
    "qlora report run.jsonl -o report.html",
    "The page of the last run in the log, with the runs that it went on from.",
    NULL,
};

static const cli_option *const options[] = {own_options, NULL};

const cli_command cli_report = {
    .name = "report",
    .summary = "the page of a run, from its log",
    .about = "Writes one HTML file that needs no other: curves of loss, learning rate, gradient norm and speed, memory "
             "as planned and as measured, samples, settings. 'qlora finetune --report FILE' makes the same page while "
             "it runs, and adds texts from before and after training.",
    .examples = examples,
    .options = options,
    .operand = "log",
    .values = sizeof(report_values),
    .run = run,
};
