/* Functions of chat templates, and how arguments find their parameters. */
#include <string.h>
#include <stdlib.h>
#include <time.h>

#include "text/jinja_eval.h"

void ql_jarrange(ql_jrun *run, const ql_jargs *args, const char *parameters, size_t required, ql_jvalue *out)
{
    size_t count = 0, used = 0;
    ql_jtext name = args->name;
    for (const char *at = parameters; *at; count++) {
        size_t length = strcspn(at, " ");
        out[count] = (ql_jvalue){.kind = QL_J_MISSING};
        if (count < args->count)
            out[count] = args->at[count];
        for (size_t k = 0; k < args->named; k++)
            if (ql_jsame(args->keywords[k], (ql_jtext){at, NULL, length}) && out[count].kind == QL_J_MISSING) {
                out[count] = args->values[k];
                used++;
            }
        if (count < required && out[count].kind == QL_J_MISSING)
            ql_jfail(run, QL_ERR_ARG, "%s \"%.*s\": its argument \"%.*s\" is missing", args->what, (int)name.length,
                     name.data, (int)length, at);
        at += length + strspn(at + length, " ");
    }
    if (args->count > count || used < args->named)
        ql_jfail(run, QL_ERR_UNSUPPORTED, "%s \"%.*s\": an argument that is not supported", args->what,
                 (int)name.length, name.data);
}

int64_t ql_jwhole(ql_jrun *run, const ql_jvalue *value, int64_t standard, const char *what)
{
    if (value->kind == QL_J_MISSING)
        return standard;
    if (value->kind != QL_J_INT && value->kind != QL_J_BOOL)
        ql_jfail(run, QL_ERR_ARG, "%s: an integer is wanted, not %s", what, ql_jkind_name(value));
    return value->kind == QL_J_BOOL ? value->truth : value->integer;
}

ql_jtext ql_jwords(ql_jrun *run, const ql_jvalue *value, const char *standard, const char *what)
{
    if (value->kind == QL_J_MISSING && standard)
        return ql_jstring(standard);
    if (value->kind != QL_J_TEXT)
        ql_jfail(run, QL_ERR_ARG, "%s: a string is wanted, not %s", what, ql_jkind_name(value));
    return value->text;
}

static ql_jvalue make_dict(ql_jeval *e, const ql_jargs *args, ql_jkind kind)
{
    ql_jdict *dict = ql_jdict_new(e->run);
    if (args->count > 1 || (args->count && args->at[0].kind != QL_J_DICT))
        ql_jfail(e->run, QL_ERR_UNSUPPORTED, "function \"%.*s\": of arguments by position only one dict is supported",
                 (int)args->name.length, args->name.data);
    for (size_t i = 0; args->count && i < args->at[0].dict->count; i++)
        ql_jput(e->run, dict, args->at[0].dict->keys[i], args->at[0].dict->values[i]);
    for (size_t i = 0; i < args->named; i++)
        ql_jput(e->run, dict, ql_jtextual(args->keywords[i]), args->values[i]);
    return (ql_jvalue){.kind = kind, .dict = dict};
}

static ql_jvalue range(ql_jeval *e, const ql_jargs *args)
{
    ql_jvalue p[3];
    ql_jarrange(e->run, args, "start stop step", 1, p);
    bool alone = p[1].kind == QL_J_MISSING;
    int64_t from = alone ? 0 : ql_jwhole(e->run, &p[0], 0, "range"), to = ql_jwhole(e->run, &p[!alone], 0, "range");
    int64_t step = ql_jwhole(e->run, &p[2], 1, "range");
    ql_jlist *list = ql_jlist_new(e->run, 0);
    list->form = QL_J_RANGE;
    if (!step)
        ql_jfail(e->run, QL_ERR_ARG, "range: a step of 0");
    while (step > 0 ? from < to : from > to) {
        ql_jappend(e->run, list, ql_jint(from));
        if (list->count > 100000) /* the limit of the sandbox that transformers uses */
            ql_jfail(e->run, QL_ERR_UNSUPPORTED, "range: more than 100000 numbers");
        if (__builtin_add_overflow(from, step, &from))
            break;
    }
    return ql_jlisted(list);
}

/* Without a clock, so that a run can be repeated: SOURCE_DATE_EPOCH, or 26 July 2024, on which the templates of Llama 3
 * fall back. */
static ql_jvalue strftime_now(ql_jeval *e, const ql_jargs *args)
{
    ql_jvalue format;
    char text[256], wanted[256];
    const char *given = getenv("SOURCE_DATE_EPOCH");
    time_t now = given ? (time_t)strtoll(given, NULL, 10) : 1721952000;
    struct tm date;
    ql_jarrange(e->run, args, "format", 1, &format);
    ql_jtext words = ql_jwords(e->run, &format, NULL, "strftime_now");
    if (words.length >= sizeof wanted)
        ql_jfail(e->run, QL_ERR_UNSUPPORTED, "strftime_now: a format of %zu bytes", words.length);
    memcpy(wanted, words.data, words.length);
    wanted[words.length] = 0;
    if (!gmtime_r(&now, &date))
        ql_jfail(e->run, QL_ERR_ARG, "SOURCE_DATE_EPOCH: no date");
    size_t length = strftime(text, sizeof text, wanted, &date);
    ql_jbuild out = {.run = e->run};
    if (!length && words.length)
        ql_jfail(e->run, QL_ERR_UNSUPPORTED, "strftime_now: a date of more than %zu bytes", sizeof text);
    ql_jadd_from(&out, text, length, 0);
    return ql_jbuilt(&out);
}

static const char *const functions[] = {"namespace", "dict", "range", "raise_exception", "strftime_now"};

bool ql_jis_function(ql_jtext name)
{
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (ql_jis(name, functions[i]))
            return true;
    return false;
}

ql_jvalue ql_jfunction(ql_jeval *e, const ql_jargs *args)
{
    ql_jvalue message;
    if (ql_jis(args->name, "namespace"))
        return make_dict(e, args, QL_J_NAMESPACE);
    if (ql_jis(args->name, "dict"))
        return make_dict(e, args, QL_J_DICT);
    if (ql_jis(args->name, "range"))
        return range(e, args);
    if (ql_jis(args->name, "strftime_now"))
        return strftime_now(e, args);
    ql_jarrange(e->run, args, "message", 1, &message);
    ql_jtext words = ql_jstr(e->run, &message);
    ql_jfail(e->run, QL_ERR_ARG, "the template refuses this chat: %.*s", words.length < 500 ? (int)words.length : 500,
             words.data);
}
