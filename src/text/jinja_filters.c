/* Filters of chat templates: {{ x | trim }}. Those over lists are in jinja_lists.c. */
#define _GNU_SOURCE
#include "text/jinja_filters.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static ql_jtext words(ql_jeval *e, const ql_jvalue *v)
{
    return ql_jstr(e->run, v);
}

static ql_jvalue trim(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    bool spaces = p[0].kind == QL_J_MISSING || p[0].kind == QL_J_NONE;
    ql_jtext characters = spaces ? ql_jstring("") : ql_jwords(e->run, &p[0], NULL, "trim");
    (void)args;
    return ql_jtextual(ql_jstrip(e->run, words(e, v), spaces ? NULL : &characters, QL_J_BOTH));
}

static ql_jvalue standard(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    (void)e, (void)args;
    bool given = v->kind != QL_J_UNDEFINED && (!ql_jasked(&p[1]) || ql_jtruth(v));
    return given ? *v : p[0].kind == QL_J_MISSING ? ql_jtextual(ql_jstring("")) : p[0];
}

static ql_jvalue cased(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    (void)p;
    return ql_jtextual(ql_jcased(e->run, words(e, v),
                                 ql_jis(args->name, "upper")   ? QL_J_UPPER
                                 : ql_jis(args->name, "lower") ? QL_J_LOWER
                                 : ql_jis(args->name, "title") ? QL_J_FILTER_TITLE
                                                               : QL_J_CAPITALIZE));
}

static ql_jvalue length(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    (void)args, (void)p;
    if (v->kind == QL_J_TEXT)
        return ql_jint((int64_t)ql_jcharacters(e->run, v->text));
    if (v->kind == QL_J_LIST && v->list->form != QL_J_STREAM)
        return ql_jint((int64_t)v->list->count);
    if (v->kind == QL_J_DICT || v->kind == QL_J_UNDEFINED)
        return ql_jint(v->kind == QL_J_DICT ? (int64_t)v->dict->count : 0);
    ql_jfail(e->run, QL_ERR_ARG, "%s has no length", v->kind == QL_J_LIST ? "a generator" : ql_jkind_name(v));
}

static ql_jvalue string(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    ql_jvalue text = ql_jtextual(words(e, v));
    (void)args, (void)p;
    text.markup = v->markup;
    return text;
}

static ql_jvalue safe(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    ql_jvalue text = string(e, v, args, p);
    text.markup = true;
    return text;
}

static ql_jvalue replace(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    (void)args;
    int64_t most = p[2].kind == QL_J_NONE ? -1 : ql_jwhole(e->run, &p[2], -1, "replace");
    return ql_jtextual(ql_jreplace(e->run, words(e, v), ql_jwords(e->run, &p[0], NULL, "replace"),
                                   ql_jwords(e->run, &p[1], NULL, "replace"), most));
}

static ql_jvalue tojson(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    bool pretty = p[1].kind != QL_J_MISSING && p[1].kind != QL_J_NONE;
    ql_jdump how = {ql_jasked(&p[0]), ql_jasked(&p[3]), pretty ? ql_jwhole(e->run, &p[1], 0, "tojson: indent") : -1,
                    ql_jstring(pretty ? "," : ", "), ql_jstring(": ")};
    (void)args;
    if (pretty && (how.indent < 0 || how.indent > 64))
        ql_jfail(e->run, QL_ERR_UNSUPPORTED, "tojson: an indent other than 0 to 64 is not supported");
    if (p[2].kind != QL_J_MISSING && p[2].kind != QL_J_NONE) {
        if (p[2].kind != QL_J_LIST || p[2].list->count != 2)
            ql_jfail(e->run, QL_ERR_ARG, "tojson: separators are two strings");
        how.between = ql_jwords(e->run, &p[2].list->at[0], NULL, "tojson: separators");
        how.colon = ql_jwords(e->run, &p[2].list->at[1], NULL, "tojson: separators");
    }
    return ql_jtextual(ql_jdumps(e->run, v, &how));
}

/* A text as a number; false: it is none. */
static bool number_of(ql_jeval *e, const ql_jvalue *v, bool real, ql_jvalue *out)
{
    char digits[64];
    size_t count = 0;
    ql_jtext text = v->kind == QL_J_TEXT ? ql_jstrip(e->run, v->text, NULL, QL_J_BOTH) : ql_jstring("");
    if (v->kind == QL_J_INT || v->kind == QL_J_BOOL) {
        int64_t whole = ql_jwhole(e->run, v, 0, "");
        *out = real ? ql_jreal((double)whole) : ql_jint(whole);
        return true;
    }
    if (v->kind == QL_J_REAL) {
        *out = *v;
        return real || (isfinite(v->real) && fabs(v->real) < 9e18 && (*out = ql_jint((int64_t)v->real)).kind);
    }
    if (!text.length || text.length >= sizeof digits)
        return false;
    for (size_t i = 0; i < text.length; i++)
        digits[count++] = text.data[i];
    digits[count] = 0;
    if (strspn(digits, "+-0123456789.eE") < count) {
        if (strpbrk(digits, "_") || strcasestr(digits, "inf") || strcasestr(digits, "nan"))
            ql_jfail(e->run, QL_ERR_UNSUPPORTED, "the number \"%s\" is not supported", digits);
        return false;
    }
    char *end;
    double value = strtod(digits, &end);
    if (*end || (!real && fabs(value) >= 9e15))
        return false;
    *out = real ? ql_jreal(value) : ql_jint((int64_t)value);
    return true;
}

/* int and float */
static ql_jvalue number(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    bool real = ql_jis(args->name, "float");
    ql_jvalue out;
    if (v->kind == QL_J_UNDEFINED)
        ql_jfail(e->run, QL_ERR_ARG, "an undefined value is no number");
    if (number_of(e, v, real, &out))
        return out;
    return p[0].kind != QL_J_MISSING ? p[0] : real ? ql_jreal(0) : ql_jint(0);
}

static ql_jvalue absolute(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    (void)args, (void)p;
    if (v->kind == QL_J_REAL)
        return ql_jreal(fabs(v->real));
    int64_t whole = ql_jwhole(e->run, v, 0, "abs");
    if (whole == INT64_MIN)
        ql_jfail(e->run, QL_ERR_UNSUPPORTED, "a number beyond 64 bits");
    return ql_jint(whole < 0 ? -whole : whole);
}

static ql_jvalue indent(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    ql_jbuild out = {.run = e->run}, margin = {.run = e->run};
    int64_t width = p[0].kind == QL_J_TEXT ? 0 : ql_jwhole(e->run, &p[0], 4, "indent");
    (void)args;
    for (int64_t i = 0; i < width; i++)
        ql_jadd_string(&margin, " ");
    ql_jtext before = p[0].kind == QL_J_TEXT ? p[0].text : ql_jbuilt(&margin).text;
    ql_jadd(&out, ql_jwords(e->run, v, NULL, "indent"));
    ql_jadd_string(&out, "\n"); /* as Jinja2 does, so that a last empty line is one */
    ql_jvalue lines = ql_jsplit_lines(e->run, ql_jbuilt(&out).text, false);
    out = (ql_jbuild){.run = e->run};
    for (size_t i = 0; i < lines.list->count; i++) {
        ql_jtext line = lines.list->at[i].text;
        ql_jadd_string(&out, i ? "\n" : "");
        if (i ? line.length || ql_jasked(&p[2]) : ql_jasked(&p[1]))
            ql_jadd(&out, before);
        ql_jadd(&out, line);
    }
    return ql_jbuilt(&out);
}

static const struct {
    const char *name, *parameters;
    size_t required;
    ql_jfilter_function *run;
} filters[] = {
    {"abs", "", 0, absolute},
    {"capitalize", "", 0, cased},
    {"count", "", 0, length},
    {"d", "default_value boolean", 0, standard},
    {"default", "default_value boolean", 0, standard},
    {"dictsort", "case_sensitive by reverse", 0, ql_jfilter_dictsort},
    {"first", "", 0, ql_jfilter_first},
    {"float", "default", 0, number},
    {"indent", "width first blank", 0, indent},
    {"int", "default", 0, number},
    {"items", "", 0, ql_jfilter_items},
    {"join", "d attribute", 0, ql_jfilter_join},
    {"last", "", 0, ql_jfilter_last},
    {"length", "", 0, length},
    {"list", "", 0, ql_jfilter_list},
    {"lower", "", 0, cased},
    {"map", NULL, 0, ql_jfilter_map},
    {"max", "case_sensitive attribute", 0, ql_jfilter_extreme},
    {"min", "case_sensitive attribute", 0, ql_jfilter_extreme},
    {"reject", NULL, 0, ql_jfilter_select},
    {"rejectattr", NULL, 0, ql_jfilter_select},
    {"replace", "old new count", 2, replace},
    {"reverse", "", 0, ql_jfilter_reverse},
    {"safe", "", 0, safe},
    {"select", NULL, 0, ql_jfilter_select},
    {"selectattr", NULL, 0, ql_jfilter_select},
    {"sort", "reverse case_sensitive attribute", 0, ql_jfilter_sort},
    {"string", "", 0, string},
    {"sum", "attribute start", 0, ql_jfilter_sum},
    {"title", "", 0, cased},
    {"tojson", "ensure_ascii indent separators sort_keys", 0, tojson},
    {"trim", "chars", 0, trim},
    {"unique", "case_sensitive attribute", 0, ql_jfilter_unique},
    {"upper", "", 0, cased},
};

ql_jvalue ql_jfilter(ql_jeval *e, const ql_jvalue *value, const ql_jargs *args)
{
    ql_jvalue parameters[4] = {{0}};
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (ql_jis(args->name, filters[i].name)) {
            if (filters[i].parameters)
                ql_jarrange(e->run, args, filters[i].parameters, filters[i].required, parameters);
            return filters[i].run(e, value, args, parameters);
        }
    ql_jfail(e->run, QL_ERR_UNSUPPORTED, "the filter \"%.*s\" is not supported",
             args->name.length < 60 ? (int)args->name.length : 60, args->name.data);
}
