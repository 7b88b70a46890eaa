/* Chat templates from their text to what they render. */
#include "text/jinja.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/jinja_run.h"

struct ql_jinja {
    ql_jrun run; /* holds the tree */
    char *name;
    const char *source;
    size_t length;
    const ql_jnode *body;
    bool generation;
};

ql_status ql_jinja_try(ql_jrun *run, void (*body)(ql_jrun *run, void *ctx), void *ctx)
{
    size_t depth = run->depth;
    jmp_buf outer;
    memcpy(&outer, &run->escape, sizeof outer);
    run->status = QL_OK;
    if (setjmp(run->escape) == 0)
        body(run, ctx);
    ql_status status = run->status;
    run->status = QL_OK; /* whoever called goes on */
    run->depth = depth;
    memcpy(&run->escape, &outer, sizeof outer);
    return status;
}

static void parse(ql_jrun *run, void *ctx)
{
    ql_jinja *j = ctx;
    const ql_jtoken *tokens = ql_jlex(run, j->source, j->length);
    j->body = ql_jparse(run, tokens, &j->generation);
}

ql_status ql_jinja_open(ql_jinja **out, const char *name, const char *text, size_t length, ql_error *err)
{
    ql_jinja *j = calloc(1, sizeof *j);
    *out = NULL;
    if (!j || !(j->name = strdup(name))) {
        free(j);
        return ql_fail(err, QL_ERR_MEMORY, "%s: out of memory", name);
    }
    j->source = text;
    j->length = length;
    ql_jrun_start(&j->run, j->name, length, err);
    ql_status status = ql_jinja_try(&j->run, parse, j);
    if (status)
        ql_jinja_close(j);
    else
        *out = j;
    return status;
}

void ql_jinja_close(ql_jinja *j)
{
    if (!j)
        return;
    ql_jrun_end(&j->run);
    free(j->name);
    free(j);
}

const char *ql_jinja_name(const ql_jinja *j)
{
    return j->name;
}

bool ql_jinja_marks_answers(const ql_jinja *j)
{
    return j->generation;
}

ql_jinja_output ql_jinja_render(const ql_jinja *j, ql_jrun *run, const ql_jdict *variables)
{
    ql_jbuild out = {.run = run};
    ql_jscope globals = {0}, top = {&globals, NULL};
    ql_jeval e = {.run = run, .scope = &globals, .out = &out};
    for (size_t i = 0; i < variables->count; i++)
        ql_jbind(&e, variables->keys[i].text, variables->values[i]);
    e.scope = &top;
    ql_jexecute(&e, j->body);
    ql_jinja_output made = {ql_jbuilt(&out).text, ql_janswered(&e)};
    if (!made.text.origin)
        made.text.origin = ql_jalloc(run, made.text.length, sizeof *made.text.origin);
    return made;
}
