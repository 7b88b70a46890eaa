/* Values compared, and spelled as Python and JSON spell them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "text/jinja_value.h"
#include "text/utf8.h"

bool ql_jtruth(const ql_jvalue *v)
{
    switch (v->kind) {
    case QL_J_BOOL:
        return v->truth;
    case QL_J_INT:
        return v->integer != 0;
    case QL_J_REAL:
        return v->real != 0;
    case QL_J_TEXT:
        return v->text.length > 0;
    case QL_J_LIST:
        return v->list->form == QL_J_STREAM || v->list->count > 0;
    case QL_J_DICT:
        return v->dict->count > 0;
    case QL_J_LOOP:
    case QL_J_CALLABLE:
    case QL_J_NAMESPACE:
        return true;
    default:
        return false;
    }
}

const char *ql_jkind_name(const ql_jvalue *v)
{
    static const char *const names[] = {
        [QL_J_MISSING] = "nothing",
        [QL_J_UNDEFINED] = "an undefined value",
        [QL_J_NONE] = "none",
        [QL_J_BOOL] = "a boolean",
        [QL_J_INT] = "an integer",
        [QL_J_REAL] = "a float",
        [QL_J_TEXT] = "a string",
        [QL_J_LIST] = "a list",
        [QL_J_DICT] = "a dict",
        [QL_J_CALLABLE] = "a function",
        [QL_J_NAMESPACE] = "a namespace",
        [QL_J_LOOP] = "a loop",
    };
    return names[v->kind];
}

static bool is_number(const ql_jvalue *v)
{
    return v->kind == QL_J_BOOL || v->kind == QL_J_INT || v->kind == QL_J_REAL;
}

static int64_t whole(const ql_jvalue *v)
{
    return v->kind == QL_J_BOOL ? v->truth : v->integer;
}

static int order_numbers(const ql_jvalue *a, const ql_jvalue *b)
{
    if (a->kind == QL_J_REAL || b->kind == QL_J_REAL) {
        double x = a->kind == QL_J_REAL ? a->real : (double)whole(a),
               y = b->kind == QL_J_REAL ? b->real : (double)whole(b);
        return x == y ? 0 : x < y ? -1 : x > y ? 1 : 2; /* 2: not a number among them */
    }
    return (whole(a) > whole(b)) - (whole(a) < whole(b));
}

static bool equal_lists(ql_jrun *run, const ql_jlist *a, const ql_jlist *b)
{
    if (a->count != b->count || a->form != b->form)
        return false;
    for (size_t i = 0; i < a->count; i++)
        if (!ql_jequal(run, &a->at[i], &b->at[i]))
            return false;
    return true;
}

static bool equal_dicts(ql_jrun *run, const ql_jdict *a, const ql_jdict *b)
{
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++) {
        const ql_jvalue *other = ql_jfind(run, b, a->keys[i]);
        if (!other || !ql_jequal(run, &a->values[i], other))
            return false;
    }
    return true;
}

bool ql_jequal(ql_jrun *run, const ql_jvalue *a, const ql_jvalue *b)
{
    bool same = false;
    ql_jenter(run);
    ql_jcharge(run, 1);
    if (is_number(a) && is_number(b))
        same = order_numbers(a, b) == 0;
    else if (a->kind != b->kind)
        same = false;
    else if (a->kind == QL_J_TEXT) {
        ql_jcharge(run, a->text.length / 32);
        same = ql_jsame(a->text, b->text);
    } else if (a->kind == QL_J_LIST)
        same = a->list == b->list || equal_lists(run, a->list, b->list);
    else if (a->kind == QL_J_DICT || a->kind == QL_J_NAMESPACE)
        same = a->dict == b->dict || (a->kind == QL_J_DICT && equal_dicts(run, a->dict, b->dict));
    else if (a->kind == QL_J_CALLABLE)
        same = a->callable == b->callable;
    else
        same = a->kind != QL_J_LOOP || a->loop == b->loop;
    run->depth--;
    return same;
}

int ql_jorder(ql_jrun *run, const ql_jvalue *a, const ql_jvalue *b)
{
    if (is_number(a) && is_number(b))
        return order_numbers(a, b);
    if (a->kind != QL_J_TEXT || b->kind != QL_J_TEXT)
        ql_jfail(run, QL_ERR_ARG, "%s and %s have no order", ql_jkind_name(a), ql_jkind_name(b));
    size_t shorter = a->text.length < b->text.length ? a->text.length : b->text.length;
    ql_jcharge(run, 1 + shorter / 32);
    int order = shorter ? memcmp(a->text.data, b->text.data, shorter) : 0;
    return order ? order < 0 ? -1 : 1 : (a->text.length > b->text.length) - (a->text.length < b->text.length);
}

void ql_jadd_real(ql_jbuild *b, double real)
{
    char digits[40], out[48];
    if (!isfinite(real)) {
        ql_jadd_string(b, isnan(real) ? "nan" : real < 0 ? "-inf" : "inf");
        return;
    }
    int precision = 1;
    do
        snprintf(digits, sizeof digits, "%.*e", precision - 1, real);
    while (strtod(digits, NULL) != real && ++precision <= 17);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16) { /* 1e-05, 1.5e+16 */
        ql_jadd_string(b, digits);
        return;
    }
    int decimals = precision - 1 - exponent;
    snprintf(out, sizeof out, "%.*f", decimals > 1 ? decimals : 1, real);
    ql_jadd_string(b, out);
}

static bool printable(uint32_t code)
{
    if (code < 0x7f)
        return code >= 0x20;
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)code);
    return c != UTF8PROC_CATEGORY_CN && c < UTF8PROC_CATEGORY_ZS;
}

/* A string as Python's repr spells it. */
static void add_quoted(ql_jbuild *b, ql_jtext t)
{
    bool twice = t.length && memchr(t.data, '\'', t.length) && !memchr(t.data, '"', t.length);
    ql_jadd_string(b, twice ? "\"" : "'");
    for (size_t at = 0; at < t.length;) {
        ql_utf8 c = ql_utf8_next(t.data + at, t.length - at);
        char out[16];
        int size = 0;
        uint16_t origin = t.origin ? t.origin[at] : 0;
        if (c.code == '\\' || (c.code == '\'' && !twice))
            size = sprintf(out, "\\%c", (int)c.code);
        else if (c.code == '\n' || c.code == '\r' || c.code == '\t')
            size = sprintf(out, "\\%c", c.code == '\n' ? 'n' : c.code == '\r' ? 'r' : 't');
        else if (!printable(c.code))
            size = sprintf(out, c.code < 0x100 ? "\\x%02x" : c.code < 0x10000 ? "\\u%04x" : "\\U%08x", c.code);
        if (size)
            ql_jadd_from(b, out, (size_t)size, origin);
        else
            ql_jadd(b, ql_jslice(t, at, at + c.length));
        at += c.length;
    }
    ql_jadd_string(b, twice ? "\"" : "'");
}

static void add_value(ql_jbuild *b, const ql_jvalue *v);

static void add_list(ql_jbuild *b, const ql_jlist *list)
{
    bool tuple = list->form == QL_J_TUPLE;
    if (list->form > QL_J_TUPLE)
        ql_jfail(b->run, QL_ERR_UNSUPPORTED, "a generator has no text: put \"| list\" behind it");
    ql_jadd_string(b, tuple ? "(" : "[");
    for (size_t i = 0; i < list->count; i++) {
        ql_jadd_string(b, i ? ", " : "");
        add_value(b, &list->at[i]);
    }
    ql_jadd_string(b, tuple ? list->count == 1 ? ",)" : ")" : "]");
}

static void add_dict(ql_jbuild *b, const ql_jdict *dict)
{
    ql_jadd_string(b, "{");
    for (size_t i = 0; i < dict->count; i++) {
        ql_jadd_string(b, i ? ", " : "");
        add_value(b, &dict->keys[i]);
        ql_jadd_string(b, ": ");
        add_value(b, &dict->values[i]);
    }
    ql_jadd_string(b, "}");
}

static void add_value(ql_jbuild *b, const ql_jvalue *v)
{
    ql_jenter(b->run);
    if (v->markup)
        ql_jfail(b->run, QL_ERR_UNSUPPORTED, "a list of texts that went through \"safe\" has no text");
    if (v->kind == QL_J_LIST)
        add_list(b, v->list);
    else if (v->kind == QL_J_DICT)
        add_dict(b, v->dict);
    else if (v->kind == QL_J_TEXT)
        add_quoted(b, v->text);
    else if (v->kind == QL_J_UNDEFINED)
        ql_jadd_string(b, "Undefined");
    else
        ql_jadd(b, ql_jstr(b->run, v));
    b->run->depth--;
}

ql_jtext ql_jstr(ql_jrun *run, const ql_jvalue *v)
{
    ql_jbuild b = {.run = run};
    char digits[24];
    switch (v->kind) {
    case QL_J_TEXT:
        return v->text;
    case QL_J_UNDEFINED:
        return ql_jstring("");
    case QL_J_NONE:
        return ql_jstring("None");
    case QL_J_BOOL:
        return ql_jstring(v->truth ? "True" : "False");
    case QL_J_INT:
        snprintf(digits, sizeof digits, "%lld", (long long)v->integer);
        ql_jadd_string(&b, digits);
        break;
    case QL_J_REAL:
        ql_jadd_real(&b, v->real);
        break;
    case QL_J_LIST:
    case QL_J_DICT:
        add_value(&b, v);
        break;
    default:
        ql_jfail(run, QL_ERR_UNSUPPORTED, "%s has no text", ql_jkind_name(v));
    }
    return ql_jbuilt(&b).text;
}

static void dump_text(ql_jbuild *b, ql_jtext t, bool ascii)
{
    static const char named[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    ql_jadd_string(b, "\"");
    for (size_t at = 0; at < t.length;) {
        ql_utf8 c = ql_utf8_next(t.data + at, t.length - at);
        char out[16];
        int size = 0;
        const char *found = c.code && c.code < 0x80 ? strchr(named, (int)c.code) : NULL;
        if (found)
            size = sprintf(out, "\\%c", letters[found - named]);
        else if (c.code >= 0x10000 && ascii)
            size = sprintf(out, "\\u%04x\\u%04x", 0xd800 + ((c.code - 0x10000) >> 10), 0xdc00 + (c.code & 0x3ff));
        else if (c.code < 0x20 || (c.code > 0x7e && ascii))
            size = sprintf(out, "\\u%04x", c.code);
        if (size)
            ql_jadd_from(b, out, (size_t)size, t.origin ? t.origin[at] : 0);
        else
            ql_jadd(b, ql_jslice(t, at, at + c.length));
        at += c.length;
    }
    ql_jadd_string(b, "\"");
}

static void dump(ql_jbuild *b, const ql_jvalue *v, const ql_jdump *how, size_t level);

static void new_line(ql_jbuild *b, const ql_jdump *how, size_t level)
{
    if (how->indent < 0)
        return;
    ql_jadd_string(b, "\n");
    for (size_t i = 0; i < level * (size_t)how->indent; i++)
        ql_jadd_string(b, " ");
}

static void dump_list(ql_jbuild *b, const ql_jlist *list, const ql_jdump *how, size_t level)
{
    if (list->form > QL_J_TUPLE)
        ql_jfail(b->run, QL_ERR_ARG, "a generator cannot be written as JSON: put \"| list\" behind it");
    ql_jadd_string(b, "[");
    for (size_t i = 0; i < list->count; i++) {
        if (i)
            ql_jadd(b, how->between);
        new_line(b, how, level + 1);
        dump(b, &list->at[i], how, level + 1);
    }
    if (list->count)
        new_line(b, how, level);
    ql_jadd_string(b, "]");
}

/* The place of the key that comes after `last` others in order; the order they came in unless it is to be sorted. */
static size_t next_key(ql_jrun *run, const ql_jdict *dict, const ql_jdump *how, size_t index, size_t last)
{
    size_t best = SIZE_MAX;
    if (!how->sorted)
        return index;
    for (size_t i = 0; i < dict->count; i++) {
        if (index && ql_jorder(run, &dict->keys[i], &dict->keys[last]) <= 0)
            continue;
        if (best == SIZE_MAX || ql_jorder(run, &dict->keys[i], &dict->keys[best]) < 0)
            best = i;
    }
    return best == SIZE_MAX ? 0 : best;
}

static void dump_dict(ql_jbuild *b, const ql_jdict *dict, const ql_jdump *how, size_t level)
{
    ql_jadd_string(b, "{");
    for (size_t i = 0, at = 0; i < dict->count; i++) {
        at = next_key(b->run, dict, how, i, at);
        const ql_jvalue *key = &dict->keys[at];
        if (key->kind != QL_J_TEXT)
            ql_jfail(b->run, QL_ERR_UNSUPPORTED, "tojson: %s as the key of a dict", ql_jkind_name(key));
        if (i)
            ql_jadd(b, how->between);
        new_line(b, how, level + 1);
        dump_text(b, key->text, how->ascii);
        ql_jadd(b, how->colon);
        dump(b, &dict->values[at], how, level + 1);
    }
    if (dict->count)
        new_line(b, how, level);
    ql_jadd_string(b, "}");
}

static void dump(ql_jbuild *b, const ql_jvalue *v, const ql_jdump *how, size_t level)
{
    ql_jenter(b->run);
    if (v->kind == QL_J_TEXT)
        dump_text(b, v->text, how->ascii);
    else if (v->kind == QL_J_LIST)
        dump_list(b, v->list, how, level);
    else if (v->kind == QL_J_DICT)
        dump_dict(b, v->dict, how, level);
    else if (v->kind == QL_J_NONE)
        ql_jadd_string(b, "null");
    else if (v->kind == QL_J_BOOL)
        ql_jadd_string(b, v->truth ? "true" : "false");
    else if (v->kind == QL_J_REAL && !isfinite(v->real))
        ql_jadd_string(b, isnan(v->real) ? "NaN" : v->real < 0 ? "-Infinity" : "Infinity");
    else if (v->kind == QL_J_INT || v->kind == QL_J_REAL)
        ql_jadd(b, ql_jstr(b->run, v));
    else
        ql_jfail(b->run, QL_ERR_ARG, "%s cannot be written as JSON", ql_jkind_name(v));
    b->run->depth--;
}

ql_jtext ql_jdumps(ql_jrun *run, const ql_jvalue *value, const ql_jdump *how)
{
    ql_jbuild b = {.run = run};
    dump(&b, value, how, 0);
    return ql_jbuilt(&b).text;
}
