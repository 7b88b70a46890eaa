/* A run as one HTML page that needs nothing else: charts, settings, memory, samples. */
#ifndef QL_SRC_CLI_PAGE_H
#define QL_SRC_CLI_PAGE_H

#include "cli/history.h"

/* Reads a log and writes the page of its last run to `path`, whole or not at all. `name` is the log's. */
ql_status cli_page_write(const char *path, FILE *log, const char *name, ql_error *err);

/* The page's style sheet and script: page.css and page.js. */
extern const char cli_page_css[], cli_page_js[];

#endif
