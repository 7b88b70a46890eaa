/* Help pages, from the tables. */
#include <stdio.h>
#include <string.h>

#include "cli/args.h"

enum { WIDTH = 80, INDENT = 28 };

/* Prints words from column `at`, wrapped at WIDTH, continued at column `indent`; ends the line. */
static void print_wrapped(const char *text, size_t at, size_t indent)
{
    bool first = true;
    while (*text) {
        size_t word = strcspn(text, " ");
        if (!first && at + 1 + word > WIDTH) {
            printf("\n%*s", (int)indent, "");
            at = indent;
            first = true;
        }
        at += word + !first;
        printf("%s%.*s", first ? "" : " ", (int)word, text);
        first = false;
        text += word;
        text += strspn(text, " ");
    }
    putchar('\n');
}

static void print_option(const cli_command *command, const cli_option *option)
{
    char left[128], right[512];
    bool flag = option->kind == CLI_FLAG;
    int used = cli_is_operand(command, option)
                   ? snprintf(left, sizeof left, "  %s", option->metavar)
                   : snprintf(left, sizeof left, "  --%s%s%s%s", cli_on_by_default(option) ? "no-" : "", option->name,
                              flag ? "" : " ", flag ? "" : option->metavar);
    int more = snprintf(right, sizeof right, "%s", option->help);
    if (!flag && option->fallback)
        snprintf(right + more, sizeof right - (size_t)more, " (default %s)", option->fallback);
    else if (cli_required(command, option))
        snprintf(right + more, sizeof right - (size_t)more, " (required)");
    if (used >= INDENT)
        printf("%s\n%*s", left, INDENT, "");
    else
        printf("%-*s", INDENT, left);
    print_wrapped(right, INDENT, INDENT);
}

void cli_help(const cli_command *command)
{
    const cli_option *option;
    printf("Usage: qlora %s", command->name);
    for (size_t i = 0; (option = cli_option_at(command, i)) != NULL; i++)
        if (cli_is_operand(command, option))
            printf(cli_required(command, option) ? " %s" : " [%s]", option->metavar);
        else if (cli_required(command, option))
            printf(" --%s %s", option->name, option->metavar);
    printf(" [options]\n\n");
    print_wrapped(command->about, 0, 0);
    printf("\nExamples:\n");
    for (const char *const *example = command->examples; *example; example += 2) {
        printf("  %s\n%*s", example[0], 6, "");
        print_wrapped(example[1], 6, 6);
    }
    const char *group = "";
    for (size_t i = 0; (option = cli_option_at(command, i)) != NULL; i++) {
        if (strcmp(group, option->group) != 0)
            printf("\n%s:\n", option->group);
        group = option->group;
        print_option(command, option);
    }
    printf("\nExit status: 0 done, 1 failed, 2 wrong usage.\n");
    if (command->notes)
        print_wrapped(command->notes, 0, 0);
}
