/* Options from a YAML file (--config): its keys are the names of the options, without dashes. What stands below the
 * key "record" was written by a run about itself (record.h): of that, "defaults" are the values of options that
 * nobody gave, and the rest is not looked at here. */
#ifndef QL_SRC_CLI_SETTINGS_H
#define QL_SRC_CLI_SETTINGS_H

#include "cli/args.h"

typedef struct cli_settings cli_settings;

/* Where the command line gave --config: reads that file, and fills in the options that the command line left open.
 * Returns the exit status; complaints name file, line and key. The file is kept in args->settings. */
int cli_settings_apply(cli_args *args, void *values);

const char *cli_settings_file(const cli_settings *settings);

/* The value of `key` below "record", keys inside of it with '/' between; NULL when it has none. */
const char *cli_settings_recorded(const cli_settings *settings, const char *key);

void cli_settings_close(cli_settings *settings); /* NULL is fine */

#endif
