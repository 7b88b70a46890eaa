/* qlora: the command. A new subcommand is one row in the table below and one file. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/args.h"
#include "cli/commands.h"

static const cli_command *const commands[] = {&cli_finetune, &cli_plan,  &cli_eval,
                                              &cli_generate, &cli_merge, &cli_export};
enum { COMMANDS = sizeof commands / sizeof *commands };

static const char *command_name(const void *ctx, size_t index)
{
    (void)ctx;
    return index < COMMANDS ? commands[index]->name : NULL;
}

static void help(FILE *out)
{
    fprintf(out, "Usage: qlora COMMAND [options]\n\nQLoRA fine-tuning of language models on the CPU.\n\nCommands:\n");
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(out, "  %-12s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(out, "\n'qlora COMMAND --help' shows a command's options and examples; 'qlora --version' the version.\n"
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
    free(values);
    return status;
}

/* OpenMP's threads spin while they wait for each other. Beside other programs they then take the processor from the
 * thread that they wait for, and a step takes ten times as long (bench/NOTES.md). The waiting is set by the
 * environment, which the OpenMP library reads when the program starts: so start again. */
static void wait_briefly(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") || getenv("KMP_BLOCKTIME"))
        return;
    setenv("GOMP_SPINCOUNT", "1000", 1); /* some microseconds */
    setenv("KMP_BLOCKTIME", "0", 1);
    execv("/proc/self/exe", argv); /* where that fails all works, slower beside others */
}

int main(int argc, char **argv)
{
    int status = CLI_OK;
    wait_briefly(argv);
    signal(SIGXFSZ, SIG_IGN);        /* a limit of file sizes makes writes fail, as a full disk does */
    setvbuf(stdout, NULL, _IOLBF, 0); /* lines keep their order beside stderr */
    if (argc < 2) {
        help(stderr);
        return CLI_USAGE;
    }
    const cli_command *command = NULL;
    for (size_t i = 0; i < COMMANDS; i++)
        if (strcmp(argv[1], commands[i]->name) == 0)
            command = commands[i];
    if (command)
        status = run(command, argc - 2, argv + 2);
    else if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0)
        help(stdout);
    else if (strcmp(argv[1], "--version") == 0)
        printf("qlora %s\n", QLORA_VERSION);
    else
        status = unknown(argv[1]);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "qlora: error: cannot write to standard output\n");
        return status ? status : CLI_FAILED;
    }
    return status;
}
