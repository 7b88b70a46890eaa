/* Methods of strings, dicts and lists in chat templates. Those that change a value are refused, as in the sandbox that
 * transformers runs templates in. */
#include <string.h>

#include "text/jinja_eval.h"
#include "text/utf8.h"

enum { MOST = 4 }; /* parameters */

typedef ql_jvalue method(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p);

static ql_jvalue split(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    bool spaces = p[0].kind == QL_J_MISSING || p[0].kind == QL_J_NONE;
    ql_jtext between = spaces ? ql_jstring("") : ql_jwords(e->run, &p[0], NULL, "the separator");
    return ql_jsplit(e->run, self->text, spaces ? NULL : &between, ql_jwhole(e->run, &p[1], -1, "maxsplit"),
                     ql_jis(args->name, "rsplit"));
}

static ql_jvalue strip(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    bool spaces = p[0].kind == QL_J_MISSING || p[0].kind == QL_J_NONE;
    ql_jtext characters = spaces ? ql_jstring("") : ql_jwords(e->run, &p[0], NULL, "the characters");
    ql_jside sides = args->name.data[0] == 'l' ? QL_J_LEFT : args->name.data[0] == 'r' ? QL_J_RIGHT : QL_J_BOTH;
    return ql_jtextual(ql_jstrip(e->run, self->text, spaces ? NULL : &characters, sides));
}

static bool stands_at(ql_jtext text, ql_jtext part, bool start)
{
    return part.length <= text.length &&
           ql_jsame(part,
                    start ? ql_jslice(text, 0, part.length) : ql_jslice(text, text.length - part.length, text.length));
}

/* startswith and endswith, of a string or of any of a tuple */
static ql_jvalue stands(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    bool start = args->name.data[0] == 's', found = false;
    if (p[0].kind != QL_J_LIST)
        return ql_jbool(stands_at(self->text, ql_jwords(e->run, &p[0], NULL, "what is looked for"), start));
    for (size_t i = 0; i < p[0].list->count && !found; i++)
        found = stands_at(self->text, ql_jwords(e->run, &p[0].list->at[i], NULL, "what is looked for"), start);
    return ql_jbool(found);
}

static ql_jvalue replace(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    (void)args;
    return ql_jtextual(ql_jreplace(e->run, self->text, ql_jwords(e->run, &p[0], NULL, "what is replaced"),
                                   ql_jwords(e->run, &p[1], NULL, "the replacement"),
                                   ql_jwhole(e->run, &p[2], -1, "the count")));
}

static ql_jvalue cased(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    (void)p;
    return ql_jtextual(ql_jcased(e->run, self->text,
                                 ql_jis(args->name, "upper")   ? QL_J_UPPER
                                 : ql_jis(args->name, "lower") ? QL_J_LOWER
                                 : ql_jis(args->name, "title") ? QL_J_TITLE
                                                               : QL_J_CAPITALIZE));
}

/* find, index and count */
static ql_jvalue find(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    ql_jtext what = ql_jwords(e->run, &p[0], NULL, "what is looked for");
    size_t at = ql_jsearch(e->run, self->text, what, 0);
    int64_t count = 0;
    if (ql_jis(args->name, "count")) {
        if (!what.length)
            return ql_jint((int64_t)ql_jcharacters(e->run, self->text) + 1);
        for (; at != SIZE_MAX; count++)
            at = ql_jsearch(e->run, self->text, what, at + what.length);
        return ql_jint(count);
    }
    if (at == SIZE_MAX && ql_jis(args->name, "index"))
        ql_jfail(e->run, QL_ERR_ARG, "index: the string is not there");
    return ql_jint(at == SIZE_MAX ? -1 : (int64_t)ql_jcharacters(e->run, ql_jslice(self->text, 0, at)));
}

static ql_jvalue join(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    (void)args;
    const ql_jlist *list = ql_jitems(e->run, &p[0]);
    for (size_t i = 0; i < list->count; i++)
        ql_jwords(e->run, &list->at[i], NULL, "what is joined");
    return ql_jtextual(ql_jjoin(e->run, list, self->text));
}

static ql_jvalue lines(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    (void)args;
    return ql_jsplit_lines(e->run, self->text, p[0].kind != QL_J_MISSING && ql_jtruth(&p[0]));
}

/* removeprefix and removesuffix */
static ql_jvalue without(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    ql_jtext part = ql_jwords(e->run, &p[0], NULL, "what is removed"), text = self->text;
    bool start = ql_jis(args->name, "removeprefix");
    if (!stands_at(text, part, start))
        return *self;
    return ql_jtextual(start ? ql_jslice(text, part.length, text.length)
                             : ql_jslice(text, 0, text.length - part.length));
}

/* isdigit and isspace; of digits the ASCII ones */
static ql_jvalue consists(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    bool digits = ql_jis(args->name, "isdigit"), all = self->text.length > 0;
    (void)p;
    for (size_t at = 0; at < self->text.length && all;) {
        ql_utf8 c = ql_utf8_next(self->text.data + at, self->text.length - at);
        if (digits && c.code >= 0x80)
            ql_jfail(e->run, QL_ERR_UNSUPPORTED, "isdigit of other than ASCII is not supported");
        all = digits ? c.code >= '0' && c.code <= '9' : ql_jis_space(c.code);
        at += c.length;
    }
    return ql_jbool(all);
}

static ql_jvalue get(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    const ql_jvalue *found = ql_jfind(e->run, self->dict, p[0]);
    (void)args;
    return found ? *found : p[1].kind == QL_J_MISSING ? ql_jnone() : p[1];
}

/* items, keys and values */
static ql_jvalue view(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    const ql_jdict *dict = self->dict;
    ql_jlist *list = ql_jlist_new(e->run, dict->count);
    (void)p;
    list->form = QL_J_VIEW;
    for (size_t i = 0; i < dict->count; i++)
        ql_jappend(e->run, list,
                   ql_jis(args->name, "items")  ? ql_jpair(e->run, dict->keys[i], dict->values[i])
                   : ql_jis(args->name, "keys") ? dict->keys[i]
                                                : dict->values[i]);
    return ql_jlisted(list);
}

static ql_jvalue copy(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    (void)e, (void)args, (void)p; /* values do not change */
    return *self;
}

/* count and index of a list */
static ql_jvalue place(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args, const ql_jvalue *p)
{
    int64_t count = 0, first = -1;
    for (size_t i = 0; i < self->list->count; i++)
        if (ql_jequal(e->run, &self->list->at[i], &p[0])) {
            first = first < 0 ? (int64_t)i : first;
            count++;
        }
    if (ql_jis(args->name, "index") && first < 0)
        ql_jfail(e->run, QL_ERR_ARG, "index: the item is not there");
    return ql_jint(ql_jis(args->name, "index") ? first : count);
}

static const struct {
    ql_jkind of;
    const char *name, *parameters;
    size_t required;
    method *run;
} methods[] = {
    {QL_J_TEXT, "split", "sep maxsplit", 0, split},
    {QL_J_TEXT, "rsplit", "sep maxsplit", 0, split},
    {QL_J_TEXT, "strip", "chars", 0, strip},
    {QL_J_TEXT, "lstrip", "chars", 0, strip},
    {QL_J_TEXT, "rstrip", "chars", 0, strip},
    {QL_J_TEXT, "startswith", "prefix", 1, stands},
    {QL_J_TEXT, "endswith", "suffix", 1, stands},
    {QL_J_TEXT, "replace", "old new count", 2, replace},
    {QL_J_TEXT, "upper", "", 0, cased},
    {QL_J_TEXT, "lower", "", 0, cased},
    {QL_J_TEXT, "title", "", 0, cased},
    {QL_J_TEXT, "capitalize", "", 0, cased},
    {QL_J_TEXT, "find", "sub", 1, find},
    {QL_J_TEXT, "index", "sub", 1, find},
    {QL_J_TEXT, "count", "sub", 1, find},
    {QL_J_TEXT, "join", "iterable", 1, join},
    {QL_J_TEXT, "splitlines", "keepends", 0, lines},
    {QL_J_TEXT, "removeprefix", "prefix", 1, without},
    {QL_J_TEXT, "removesuffix", "suffix", 1, without},
    {QL_J_TEXT, "isdigit", "", 0, consists},
    {QL_J_TEXT, "isspace", "", 0, consists},
    {QL_J_DICT, "get", "key default", 1, get},
    {QL_J_DICT, "items", "", 0, view},
    {QL_J_DICT, "keys", "", 0, view},
    {QL_J_DICT, "values", "", 0, view},
    {QL_J_DICT, "copy", "", 0, copy},
    {QL_J_LIST, "copy", "", 0, copy},
    {QL_J_LIST, "count", "value", 1, place},
    {QL_J_LIST, "index", "value", 1, place},
};
enum { METHODS = sizeof methods / sizeof *methods };

/* What Python has besides. */
static const char *const lacking[] = {
    [QL_J_INT] = " real imag numerator denominator bit_length bit_count conjugate as_integer_ratio to_bytes ",
    [QL_J_BOOL] = " real imag numerator denominator bit_length bit_count conjugate as_integer_ratio to_bytes ",
    [QL_J_REAL] = " real imag is_integer hex conjugate as_integer_ratio ",
    [QL_J_TEXT] =
        " casefold center encode expandtabs format format_map isalnum isalpha isascii isdecimal isidentifier islower "
        "isnumeric isprintable istitle isupper ljust maketrans partition rfind rindex rjust rpartition swapcase "
        "translate zfill ",
    [QL_J_LIST] = " append clear extend insert pop remove reverse sort ",
    [QL_J_DICT] = " clear fromkeys pop popitem setdefault update ",
    [QL_J_LOOP] = NULL,
};

static bool lacks(const ql_jvalue *value, ql_jtext name)
{
    char word[40];
    const char *list = lacking[value->kind];
    if (!list || !name.length || name.length > sizeof word - 3 || memchr(name.data, ' ', name.length))
        return false;
    word[0] = ' ';
    memcpy(word + 1, name.data, name.length);
    memcpy(word + 1 + name.length, " ", 2);
    return strstr(list, word);
}

static size_t find_method(const ql_jvalue *value, ql_jtext name)
{
    size_t i = 0;
    while (i < METHODS && !(methods[i].of == value->kind && ql_jis(name, methods[i].name)))
        i++;
    return i;
}

bool ql_jhas_method(ql_jrun *run, const ql_jvalue *value, ql_jtext name)
{
    if (name.length >= 2 && memcmp(name.data, "__", 2) == 0)
        ql_jfail(run, QL_ERR_UNSUPPORTED, "names that begin with \"__\" are not supported");
    if (value->markup)
        ql_jfail(run, QL_ERR_UNSUPPORTED, "methods of a text that went through \"safe\" are not supported");
    if (lacks(value, name))
        ql_jfail(run, QL_ERR_UNSUPPORTED, "the method \"%.*s\" of %s is not supported", (int)name.length, name.data,
                 ql_jkind_name(value));
    return find_method(value, name) < METHODS;
}

ql_jvalue ql_jmethod(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args)
{
    ql_jvalue parameters[MOST];
    size_t i = find_method(self, args->name);
    ql_jarrange(e->run, args, methods[i].parameters, methods[i].required, parameters);
    return methods[i].run(e, self, args, parameters);
}
