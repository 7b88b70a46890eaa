/* The commands that commands.c lists. */
#ifndef QL_SRC_CLI_COMMANDS_H
#define QL_SRC_CLI_COMMANDS_H

#include "cli/args.h"

extern const cli_command cli_finetune, cli_plan, cli_eval, cli_generate, cli_merge, cli_export, cli_inspect, cli_report,
    cli_man, cli_completion;

#endif
