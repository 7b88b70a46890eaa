/* qlora: the command. Its subcommands are the rows of commands.c. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/args.h"
#include "cli/interrupt.h"

static const char *command_name(const void *ctx, size_t index)
{
    (void)ctx;
    return cli_commands[index] ? cli_commands[index]->name : NULL;
}

static void help(FILE *out)
{
    fprintf(out, "Usage: qlora COMMAND [options]\n\nQLoRA fine-tuning of language models on the CPU.\n\nCommands:\n");
    for (size_t i = 0; cli_commands[i]; i++)
        fprintf(out, "  %-12s %s\n", cli_commands[i]->name, cli_commands[i]->summary);
    fprintf(out, "\nA first run:\n"
                 "  qlora plan     --model Qwen2.5-0.5B --data train.jsonl\n"
                 "  qlora finetune --model Qwen2.5-0.5B --data train.jsonl --output my-adapter\n"
                 "  qlora generate --model Qwen2.5-0.5B --adapter my-adapter --prompt 'Once upon'\n"
                 "\n'qlora help COMMAND' shows options, defaults and examples; 'qlora --version' the version.\n"
                 "\nExit status: 0 done, 1 failed, 2 wrong usage.\n");
}

static int unknown(const char *name)
{
    const char *near = cli_nearest(name, command_name, NULL);
    if (near)
        fprintf(stderr, "qlora: unknown command '%s'; did you mean '%s'?\n", name, near);
    else
        fprintf(stderr, "qlora: unknown command '%s'\n", name);
    fprintf(stderr, "See 'qlora --help'.\n");
    return CLI_USAGE;
}

static int run(const cli_command *command, int argc, char **argv)
{
    int status;
    cli_args args;
    void *values = malloc(command->values);
    if (!values) {
        fprintf(stderr, "qlora: error: out of memory\n");
        return CLI_FAILED;
    }
    if (cli_parse(&args, command, argc, argv, values, &status))
        status = command->run(&args);
    cli_args_free(&args);
    free(values);
    return status;
}

static bool is_help(const char *word)
{
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0;
}

/* argv[0] is the command's name; "help finetune" is "finetune --help". */
static int dispatch(int argc, char **argv)
{
    const cli_command *command = cli_find_command(argv[0]);
    if (command)
        return run(command, argc - 1, argv + 1);
    if (is_help(argv[0]) && argc == 1) {
        help(stdout);
    } else if (is_help(argv[0])) {
        command = cli_find_command(argv[1]);
        if (!command)
            return unknown(argv[1]);
        cli_help(command);
    } else if (strcmp(argv[0], "--version") == 0) {
        printf("qlora %s\n", QLORA_VERSION);
    } else {
        return unknown(argv[0]);
    }
    return CLI_OK;
}

int main(int argc, char **argv)
{
    int status = CLI_OK;
    cli_interrupt_tidy();
    signal(SIGXFSZ, SIG_IGN);         /* a limit of file sizes makes writes fail, as a full disk does */
    setvbuf(stdout, NULL, _IOLBF, 0); /* lines keep their order beside stderr */
    if (argc < 2) {
        help(stderr);
        return CLI_USAGE;
    }
    status = dispatch(argc - 1, argv + 1);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "qlora: error: cannot write to standard output\n");
        return status ? status : CLI_FAILED;
    }
    return status;
}
