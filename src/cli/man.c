/* qlora man: manual pages, made of the tables that --help is made of. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/common.h"
#include "cli/output.h"

typedef struct man_values {
    const char *command, *output;
    bool quiet;
} man_values;

enum { LINE = 70 };

#define FIELD(name) offsetof(man_values, name)
#define PAGE_DATE "2026-11-23" /* when the wording that is not in the tables was last changed */

static const cli_option own_options[] = {
    {"command", CLI_TEXT, FIELD(command), "COMMAND", NULL, 0, 0, false, "Input and output",
     "the command to print the page of; without it the page of qlora itself"},
    {"output", CLI_TEXT, FIELD(output), "DIR", NULL, 0, 0, false, "Input and output",
     "write all pages into this folder instead; -o for short"},
    {"quiet", CLI_FLAG, FIELD(quiet), NULL, "no", 0, 0, false, "Running and reporting",
     "say nothing but warnings and errors"},
    {0},
};

/* What roff would take for its own is escaped; with `exact` the dashes are those that are typed. */
static void put_word(FILE *out, const char *text, size_t length, bool exact)
{
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '\\')
            fputs("\\e", out);
        else if (text[i] == '\'' && exact)
            fputs("\\(aq", out);
        else if (text[i] == '-' && exact)
            fputs("\\-", out);
        else
            fputc(text[i], out);
    }
}

static void put_exact(FILE *out, const char *text)
{
    put_word(out, text, strlen(text), true);
}

/* In lines of some length. The words with two dashes are options. */
static void put_text(FILE *out, const char *text)
{
    for (size_t column = 0; *text; text += strspn(text, " ")) {
        size_t length = strcspn(text, " ");
        if (column)
            fputc(column + length < LINE ? ' ' : '\n', out);
        column = column && column + length < LINE ? column + 1 : 0;
        if (column == 0 && (*text == '.' || *text == '\''))
            fputs("\\&", out);
        put_word(out, text, length, memmem(text, length, "--", 2) != NULL);
        column += length;
        text += length;
    }
}

static void put_paragraph(FILE *out, const char *text)
{
    put_text(out, text);
    fputc('\n', out);
}

static void put_name(FILE *out, const cli_command *command, const cli_option *option)
{
    if (cli_is_operand(command, option)) {
        fputs("\\fI", out);
    } else {
        fputs("\\fB\\-\\-", out);
        put_exact(out, cli_on_by_default(option) ? "no-" : "");
        put_exact(out, option->name);
        fputs(option->kind == CLI_FLAG ? "" : " \\fI", out);
    }
    put_exact(out, option->kind == CLI_FLAG ? "" : option->metavar);
    fputs("\\fR", out);
}

static void put_head(FILE *out, const char *name, const char *command, const char *summary)
{
    fprintf(out, ".\\\" Written by 'qlora man'.\n.TH %s 1 %s \"qlora %s\" \"qlora manual\"\n.SH NAME\n", name,
            PAGE_DATE, QLORA_VERSION);
    fprintf(out, command ? "qlora\\-%s \\- " : "qlora \\- ", command);
    put_paragraph(out, summary);
}

static void put_synopsis(FILE *out, const cli_command *command)
{
    const cli_option *option;
    fprintf(out, ".SH SYNOPSIS\n\\fBqlora %s\\fR", command->name);
    for (size_t i = 0; (option = cli_option_at(command, i)) != NULL; i++) {
        bool required = cli_required(command, option);
        if (!required && !cli_is_operand(command, option))
            continue;
        fputs(required ? " " : " [", out);
        put_name(out, command, option);
        fputs(required ? "" : "]", out);
    }
    fputs(" [\\fIoptions\\fR]\n", out);
}

static void put_help(FILE *out, const cli_command *command, const cli_option *option)
{
    char text[1024];
    bool flag = option->kind == CLI_FLAG, required = cli_required(command, option);
    snprintf(text, sizeof text, "%s%s%s%s%s%s.", option->help, !flag && option->fallback ? " (default " : "",
             !flag && option->fallback ? option->fallback : "", !flag && option->fallback ? ")" : "",
             required ? " (required)" : "", option->kind == CLI_LIST ? "; may be given several times" : "");
    put_paragraph(out, text);
}

static void put_options(FILE *out, const cli_command *command)
{
    const cli_option *option;
    const char *group = "";
    fputs(".SH OPTIONS\n", out);
    for (size_t i = 0; (option = cli_option_at(command, i)) != NULL; i++) {
        if (strcmp(group, option->group) != 0)
            fprintf(out, ".SS %s\n", option->group);
        group = option->group;
        fputs(".TP\n", out);
        put_name(out, command, option);
        fputc('\n', out);
        put_help(out, command, option);
    }
}

static void put_examples(FILE *out, const cli_command *command)
{
    fputs(".SH EXAMPLES\n", out);
    for (const char *const *example = command->examples; *example; example += 2) {
        fputs(".TP\n\\fB", out);
        put_exact(out, example[0]);
        fputs("\\fR\n", out);
        put_paragraph(out, example[1]);
    }
}

static void put_exit_status(FILE *out)
{
    fputs(".SH EXIT STATUS\n.TP\n0\nDone.\n.TP\n1\nFailed; the message on standard error says what and why.\n"
          ".TP\n2\nWrong usage: nothing was begun.\n",
          out);
}

static void put_see_also(FILE *out, const cli_command *self)
{
    fputs(".SH SEE ALSO\n", out);
    if (self)
        fprintf(out, ".BR qlora (1)%s\n", cli_commands[0] ? "," : "");
    for (size_t i = 0, left = 0; cli_commands[i]; i++) {
        if (cli_commands[i] == self)
            continue;
        for (left = i + 1; cli_commands[left] == self && self; left++)
            ;
        fprintf(out, ".BR qlora\\-%s (1)%s\n", cli_commands[i]->name, cli_commands[left] ? "," : "");
    }
}

static void put_command(FILE *out, const cli_command *command)
{
    char name[64];
    snprintf(name, sizeof name, "QLORA\\-%s", command->name);
    for (char *at = name; *at; at++)
        if (*at >= 'a' && *at <= 'z')
            *at = (char)(*at - 'a' + 'A');
    put_head(out, name, command->name, command->summary);
    put_synopsis(out, command);
    fputs(".SH DESCRIPTION\n", out);
    put_paragraph(out, command->about);
    put_options(out, command);
    put_exit_status(out);
    if (command->notes) {
        fputs(".SH NOTES\n", out);
        put_paragraph(out, command->notes);
    }
    put_examples(out, command);
    put_see_also(out, command);
}

static void put_overview(FILE *out)
{
    put_head(out, "QLORA", NULL, "QLoRA fine-tuning of language models on the CPU");
    fputs(
        ".SH SYNOPSIS\n\\fBqlora\\fR \\fICOMMAND\\fR [\\fIoptions\\fR]\n.br\n\\fBqlora help\\fR \\fICOMMAND\\fR\n.br\n"
        "\\fBqlora \\-\\-version\\fR\n.SH DESCRIPTION\n"
        "Quantizes the weights of a language model to 4 or 8 bits and trains a small\nLoRA adapter over them, measures "
        "the model, generates text, and writes adapters\nand models for other programs.\n.SH COMMANDS\n",
        out);
    for (size_t i = 0; cli_commands[i]; i++) {
        fprintf(out, ".TP\n.BR qlora\\-%s (1)\n", cli_commands[i]->name);
        put_paragraph(out, cli_commands[i]->summary);
    }
    put_exit_status(out);
    fputs(
        ".SH ENVIRONMENT\n.TP\n.B QLORA_ISA\nUse no instructions beyond these: scalar, avx2, avx512, avx512\\-bf16 or "
        "amx.\n.SH FILES\n.TP\n.I run.yaml\nWritten beside each adapter: the options, "
        "versions and files of the run, for\n.BR \"qlora finetune \\-\\-config\" .\n",
        out);
    put_see_also(out, NULL);
}

static int write_page(const man_values *v, const cli_command *command)
{
    ql_error err = {0};
    char path[4096], *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    snprintf(path, sizeof path, "%s/qlora%s%s.1", v->output, command ? "-" : "", command ? command->name : "");
    if (out && command)
        put_command(out, command);
    else if (out)
        put_overview(out);
    int status = !out || fclose(out) != 0                  ? cli_failed_with("out of memory")
                 : ql_file_write(path, text, length, &err) ? cli_failed(&err)
                                                           : CLI_OK;
    free(text);
    return status;
}

static int write_pages(const man_values *v)
{
    bool made;
    size_t count = 0;
    int status = cli_output_make(v->output, &made);
    if (status == CLI_OK)
        status = write_page(v, NULL);
    for (; status == CLI_OK && cli_commands[count]; count++)
        status = write_page(v, cli_commands[count]);
    if (status == CLI_OK && !v->quiet)
        printf("%zu pages in %s\n", count + 1, v->output);
    return status;
}

static int run(const cli_args *args)
{
    const man_values *v = args->values;
    if (v->output && v->command)
        return cli_wrong(args->command, "%s: --output writes the pages of all commands", v->command);
    if (v->output)
        return write_pages(v);
    const cli_command *command = v->command ? cli_find_command(v->command) : NULL;
    if (v->command && !command)
        return cli_wrong(args->command, "%s: no such command", v->command);
    if (command)
        put_command(stdout, command);
    else
        put_overview(stdout);
    return CLI_OK;
}

static const char *const examples[] = {
    "qlora man finetune | man -l -",
    "Shows the page of a command.",
    "qlora man --output ~/.local/share/man/man1",
    "Installs them all for one user; 'meson install' does it for everybody.",
    NULL,
};

static const cli_option *const options[] = {own_options, NULL};

const cli_command cli_man = {
    .name = "man",
    .summary = "manual pages",
    .about = "Prints the manual page of a command, or of qlora itself, for man(1) to show.",
    .examples = examples,
    .options = options,
    .operand = "command",
    .values = sizeof(man_values),
    .run = run,
};
