/* Parts of the page of a run (page.h). */
#ifndef QL_SRC_CLI_PAGE_PARTS_H
#define QL_SRC_CLI_PAGE_PARTS_H

#include "cli/history.h"

/* Of logs that may lack anything: NaN and NULL stand for what is not there, or is of another type. */
double cli_page_number(const json_t *object, const char *key);
const json_t *cli_page_object(const json_t *object, const char *key);
size_t cli_page_whole(double x);                    /* 0 for what is no count */
void cli_page_text(FILE *out, const json_t *value); /* strings and numbers, escaped */

/* Sections; each writes nothing where the log has nothing for it. */
void cli_page_put_samples(FILE *out, const cli_history *history);
void cli_page_put_memory(FILE *out, const cli_history *history);
void cli_page_put_settings(FILE *out, const cli_history *history);

#endif
