/* Filters over lists in chat templates. */
#include <string.h>

#include "text/jinja_filters.h"

static bool given(const ql_jvalue *p)
{
    return p->kind != QL_J_MISSING && p->kind != QL_J_NONE;
}

/* What a path of attributes leads to: "function.name", "0.text", or a number. */
static ql_jvalue follow(ql_jeval *e, ql_jvalue value, const ql_jvalue *path)
{
    if (path->kind != QL_J_TEXT)
        return ql_jitem(e, &value, path);
    for (size_t at = 0; at <= path->text.length;) {
        const char *dot = memchr(path->text.data + at, '.', path->text.length - at);
        size_t end = dot ? (size_t)(dot - path->text.data) : path->text.length;
        ql_jvalue key = ql_jtextual(ql_jslice(path->text, at, end));
        int64_t number = 0;
        size_t digits = at;
        for (; digits < end && digits < at + 18 && path->text.data[digits] >= '0' && path->text.data[digits] <= '9';
             digits++)
            number = number * 10 + path->text.data[digits] - '0';
        if (digits == end && digits > at)
            key = ql_jint(number);
        value = ql_jitem(e, &value, &key);
        at = end + 1;
    }
    return value;
}

/* What an item is compared by: itself or an attribute, strings in lower case unless `exact`. */
static ql_jvalue key_of(ql_jeval *e, const ql_jvalue *item, const ql_jvalue *attribute, bool exact)
{
    ql_jvalue key = given(attribute) ? follow(e, *item, attribute) : *item;
    return key.kind == QL_J_TEXT && !exact ? ql_jtextual(ql_jcased(e->run, key.text, QL_J_LOWER)) : key;
}

static ql_jlist *keys_of(ql_jeval *e, const ql_jlist *items, const ql_jvalue *attribute, bool exact)
{
    ql_jlist *keys = ql_jlist_new(e->run, items->count);
    for (size_t i = 0; i < items->count; i++)
        ql_jappend(e->run, keys, key_of(e, &items->at[i], attribute, exact));
    return keys;
}

static ql_jlist *stream(ql_jeval *e)
{
    ql_jlist *list = ql_jlist_new(e->run, 0);
    list->form = QL_J_STREAM;
    return list;
}

/* The items in the order of their keys; equal ones keep theirs. */
static ql_jvalue sorted(ql_jeval *e, const ql_jlist *items, const ql_jlist *keys, bool reverse)
{
    ql_jlist *out = ql_jlist_new(e->run, items->count), *order = ql_jlist_new(e->run, items->count);
    for (size_t i = 0; i < items->count; i++) {
        size_t at = i;
        ql_jappend(e->run, out, items->at[i]);
        ql_jappend(e->run, order, keys->at[i]);
        for (; at > 0 && ql_jorder(e->run, &keys->at[i], &order->at[at - 1]) == (reverse ? 1 : -1); at--) {
            out->at[at] = out->at[at - 1];
            order->at[at] = order->at[at - 1];
        }
        out->at[at] = items->at[i];
        order->at[at] = keys->at[i];
    }
    return ql_jlisted(out);
}

ql_jvalue ql_jfilter_sort(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    const ql_jlist *items = ql_jitems(e->run, v);
    (void)args;
    return sorted(e, items, keys_of(e, items, &p[2], ql_jasked(&p[1])), ql_jasked(&p[0]));
}

ql_jvalue ql_jfilter_dictsort(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    ql_jlist *pairs = ql_jlist_new(e->run, 0);
    (void)args;
    if (v->kind != QL_J_DICT)
        ql_jfail(e->run, QL_ERR_ARG, "dictsort of %s", ql_jkind_name(v));
    for (size_t i = 0; i < v->dict->count; i++)
        ql_jappend(e->run, pairs, ql_jpair(e->run, v->dict->keys[i], v->dict->values[i]));
    ql_jvalue by = ql_jint(ql_jis(ql_jwords(e->run, &p[1], "key", "dictsort: by"), "value"));
    return sorted(e, pairs, keys_of(e, pairs, &by, ql_jasked(&p[0])), ql_jasked(&p[2]));
}

ql_jvalue ql_jfilter_unique(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    const ql_jlist *items = ql_jitems(e->run, v), *keys = keys_of(e, items, &p[1], ql_jasked(&p[0]));
    ql_jlist *out = stream(e);
    (void)args;
    for (size_t i = 0; i < items->count; i++) {
        size_t before = 0;
        while (before < i && !ql_jequal(e->run, &keys->at[before], &keys->at[i]))
            before++;
        if (before == i)
            ql_jappend(e->run, out, items->at[i]);
    }
    return ql_jlisted(out);
}

/* min and max */
ql_jvalue ql_jfilter_extreme(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    const ql_jlist *items = ql_jitems(e->run, v), *keys = keys_of(e, items, &p[1], ql_jasked(&p[0]));
    size_t best = 0;
    for (size_t i = 1; i < items->count; i++)
        if (ql_jorder(e->run, &keys->at[i], &keys->at[best]) == (ql_jis(args->name, "max") ? 1 : -1))
            best = i;
    return items->count ? items->at[best] : ql_jundefined(ql_jstring("item of an empty list"));
}

ql_jvalue ql_jfilter_sum(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    const ql_jlist *items = ql_jitems(e->run, v);
    int64_t total = ql_jwhole(e->run, &p[1], 0, "sum");
    (void)args;
    for (size_t i = 0; i < items->count; i++) {
        ql_jvalue item = given(&p[0]) ? follow(e, items->at[i], &p[0]) : items->at[i];
        if (item.kind == QL_J_REAL)
            ql_jfail(e->run, QL_ERR_UNSUPPORTED, "sum of floats is not supported");
        if (__builtin_add_overflow(total, ql_jwhole(e->run, &item, 0, "sum"), &total))
            ql_jfail(e->run, QL_ERR_UNSUPPORTED, "a number beyond 64 bits");
    }
    return ql_jint(total);
}

ql_jvalue ql_jfilter_first(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    const ql_jlist *items = ql_jitems(e->run, v);
    (void)args, (void)p;
    return items->count ? items->at[0] : ql_jundefined(ql_jstring("first item of an empty list"));
}

ql_jvalue ql_jfilter_last(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    (void)args, (void)p;
    if (v->kind == QL_J_LIST && v->list->form == QL_J_STREAM)
        ql_jfail(e->run, QL_ERR_ARG, "a generator has no last item: put \"| list\" in front");
    const ql_jlist *items = ql_jitems(e->run, v);
    return items->count ? items->at[items->count - 1] : ql_jundefined(ql_jstring("last item of an empty list"));
}

ql_jvalue ql_jfilter_items(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    ql_jlist *out = stream(e);
    (void)args, (void)p;
    if (v->kind != QL_J_DICT && v->kind != QL_J_UNDEFINED)
        ql_jfail(e->run, QL_ERR_ARG, "items of %s", ql_jkind_name(v));
    for (size_t i = 0; v->kind == QL_J_DICT && i < v->dict->count; i++)
        ql_jappend(e->run, out, ql_jpair(e->run, v->dict->keys[i], v->dict->values[i]));
    return ql_jlisted(out);
}

ql_jvalue ql_jfilter_join(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    const ql_jlist *items = ql_jitems(e->run, v);
    (void)args;
    if (given(&p[1]))
        items = keys_of(e, items, &p[1], true);
    return ql_jtextual(ql_jjoin(e->run, items, p[0].kind == QL_J_MISSING ? ql_jstring("") : ql_jstr(e->run, &p[0])));
}

ql_jvalue ql_jfilter_list(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    const ql_jlist *items = ql_jitems(e->run, v);
    ql_jlist *out = ql_jlist_new(e->run, items->count);
    (void)args, (void)p;
    for (size_t i = 0; i < items->count; i++)
        ql_jappend(e->run, out, items->at[i]);
    return ql_jlisted(out);
}

ql_jvalue ql_jfilter_reverse(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    const ql_jlist *items = ql_jitems(e->run, v);
    ql_jlist *out = stream(e);
    (void)args, (void)p;
    for (size_t i = items->count; i-- > 0;)
        ql_jappend(e->run, out, items->at[i]);
    return v->kind == QL_J_TEXT ? ql_jtextual(ql_jjoin(e->run, out, ql_jstring(""))) : ql_jlisted(out);
}

/* The filter or test named by argument `index`, with the arguments behind it. */
static ql_jargs inner(ql_jeval *e, const ql_jargs *args, size_t index, const char *what)
{
    ql_jargs in = *args;
    in.what = what;
    in.name = ql_jwords(e->run, &args->at[index], NULL, "the name of a filter or test");
    in.at += index + 1;
    in.count -= index + 1;
    return in;
}

/* map(attribute=..., default=...) and map("filter", ...) */
ql_jvalue ql_jfilter_map(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    ql_jvalue named[2];
    ql_jlist *out = stream(e);
    const ql_jlist *items = ql_jitems(e->run, v);
    (void)p;
    if (!args->count)
        ql_jarrange(e->run, args, "attribute default", 1, named);
    for (size_t i = 0; i < items->count; i++) {
        if (args->count) {
            ql_jargs filter = inner(e, args, 0, "filter");
            ql_jappend(e->run, out, ql_jfilter(e, &items->at[i], &filter));
            continue;
        }
        ql_jvalue value = follow(e, items->at[i], &named[0]);
        ql_jappend(e->run, out, value.kind == QL_J_UNDEFINED && named[1].kind != QL_J_MISSING ? named[1] : value);
    }
    return ql_jlisted(out);
}

/* select, reject, selectattr and rejectattr */
ql_jvalue ql_jfilter_select(ql_jeval *e, const ql_jvalue *v, const ql_jargs *args, const ql_jvalue *p)
{
    ql_jlist *out = stream(e);
    const ql_jlist *items = ql_jitems(e->run, v);
    bool attribute = args->name.length > 6, keep = args->name.data[0] == 's';
    (void)p;
    if (attribute && !args->count)
        ql_jfail(e->run, QL_ERR_ARG, "filter \"%.*s\": the name of an attribute is missing", (int)args->name.length,
                 args->name.data);
    for (size_t i = 0; i < items->count; i++) {
        ql_jvalue value = attribute ? follow(e, items->at[i], &args->at[0]) : items->at[i];
        bool holds = ql_jtruth(&value);
        if (args->count > attribute) {
            ql_jargs test = inner(e, args, attribute, "test");
            holds = ql_jtest(e, &value, &test);
        }
        if (holds == keep)
            ql_jappend(e->run, out, items->at[i]);
    }
    return ql_jlisted(out);
}
