/* A new command is a row here and a file of its own. */
#include "cli/commands.h"

#include <stddef.h>

const cli_command *const cli_commands[] = {
    &cli_finetune, &cli_plan, &cli_eval, &cli_generate, &cli_merge, &cli_export, &cli_report, NULL,
};
