/* The filters over lists. */
#ifndef QL_SRC_TEXT_JINJA_FILTERS_H
#define QL_SRC_TEXT_JINJA_FILTERS_H

#include "text/jinja_eval.h"

/* A filter at work: its value, its arguments as they were given and in order. */
typedef ql_jvalue ql_jfilter_function(ql_jeval *e, const ql_jvalue *value, const ql_jargs *args, const ql_jvalue *p);

/* Whether an argument was given and is true. */
static inline bool ql_jasked(const ql_jvalue *p)
{
    return p->kind != QL_J_MISSING && ql_jtruth(p);
}

ql_jfilter_function ql_jfilter_dictsort, ql_jfilter_first, ql_jfilter_items, ql_jfilter_join, ql_jfilter_last,
    ql_jfilter_list, ql_jfilter_map, ql_jfilter_extreme, ql_jfilter_reverse, ql_jfilter_select, ql_jfilter_sort,
    ql_jfilter_sum, ql_jfilter_unique;

#endif
