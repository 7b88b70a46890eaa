/* Line charts as inline SVG in HTML: lines stretch with the page, words keep their size. */
#ifndef QL_SRC_CLI_CHART_H
#define QL_SRC_CLI_CHART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* Points that are NaN make a gap. */
typedef struct cli_series {
    const char *name, *style; /* style: a class of the page's style sheet */
    const double *x, *y;
    size_t count;
    bool dots; /* a mark at each point, besides the line */
} cli_series;

typedef struct cli_chart {
    const char *title, *note; /* note: what stands below; or NULL */
    const char *x_name;
    unsigned decimals; /* significant digits of values */
    bool from_zero;    /* the axis of the values begins at 0 */
    bool wide;
    const cli_series *series;
    size_t count;
} cli_chart;

/* Writes a <figure>, or nothing when there is no finite point. */
void cli_chart_put(FILE *out, const cli_chart *chart);

/* Writes text[length] as HTML; bytes that HTML has no place for become U+FFFD. */
void cli_html_text(FILE *out, const char *text, size_t length);

#endif
