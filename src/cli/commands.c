/* A new command is a row here and a file of its own. */
#include "cli/commands.h"

#include <stddef.h>
#include <string.h>

const cli_command *const cli_commands[] = {
    &cli_finetune, &cli_plan, &cli_eval, &cli_generate, &cli_merge, &cli_export,  &cli_inspect,
    &cli_report,   &cli_man,  &cli_completion, NULL,
};

const cli_command *cli_find_command(const char *name)
{
    for (size_t i = 0; cli_commands[i]; i++)
        if (strcmp(name, cli_commands[i]->name) == 0)
            return cli_commands[i];
    return NULL;
}
