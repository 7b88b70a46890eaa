/* The Jinja of chat templates, run as Hugging Face's transformers runs it: Jinja2 with trim_blocks, lstrip_blocks,
 * break and continue, {% generation %}, raise_exception, strftime_now, and its tojson.
 *
 * Statements: if, for, set (of names, namespace attributes and bodies), macro, generation, break, continue.
 * Expressions: all of Jinja2's but *args and **kwargs. Filters, tests, methods and functions: jinja_filters.c,
 * jinja_tests.c, jinja_methods.c and jinja_functions.c list them. What is not there is an error that names it and its
 * line; numbers are of 64 bits. A template that takes too much time, memory or depth ends with an error. */
#ifndef QL_SRC_TEXT_JINJA_H
#define QL_SRC_TEXT_JINJA_H

#include "text/jinja_value.h"

typedef struct ql_jinja ql_jinja;

/* Parses a template; `name` is for messages and is copied. Caller owns *out. */
ql_status ql_jinja_open(ql_jinja **out, const char *name, const char *text, size_t length, ql_error *err);
void ql_jinja_close(ql_jinja *jinja); /* NULL is fine */
const char *ql_jinja_name(const ql_jinja *jinja);

/* Whether {% generation %} says which text is an answer. */
bool ql_jinja_marks_answers(const ql_jinja *jinja);

typedef struct ql_jinja_output {
    ql_jtext text;         /* in the run's pool; origin is never NULL */
    const uint8_t *answer; /* [length] 1 where a {% generation %} wrote it */
} ql_jinja_output;

/* Renders with the variables of a dict, inside of a run (see ql_jinja_try). */
ql_jinja_output ql_jinja_render(const ql_jinja *jinja, ql_jrun *run, const ql_jdict *variables);

/* Runs `body` with failures caught: its status. */
ql_status ql_jinja_try(ql_jrun *run, void (*body)(ql_jrun *run, void *ctx), void *ctx);

#endif
