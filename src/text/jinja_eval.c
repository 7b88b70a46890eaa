/* Expressions of chat templates at work. */
#include "text/jinja_eval.h"

#include <string.h>

static const ql_jvalue *look_up(const ql_jeval *e, ql_jtext name)
{
    for (const ql_jscope *scope = e->scope; scope; scope = scope->parent)
        for (const ql_jbinding *b = scope->names; b; b = b->next)
            if (ql_jsame(b->name, name))
                return &b->value;
    return NULL;
}

static ql_jvalue callable(ql_jeval *e, int form, ql_jtext name, ql_jvalue self)
{
    ql_jcallable *c = ql_jalloc(e->run, 1, sizeof *c);
    *c = (ql_jcallable){.form = form, .name = name, .self = self};
    return (ql_jvalue){.kind = QL_J_CALLABLE, .callable = c};
}

static ql_jvalue variable(ql_jeval *e, ql_jtext name)
{
    static const char *const refused[] = {"cycler", "joiner", "lipsum", "caller", "varargs", "kwargs", "self", "super"};
    const ql_jvalue *value = look_up(e, name);
    if (value)
        return *value;
    if (ql_jis_function(name))
        return callable(e, QL_J_FUNCTION, name, ql_jnone());
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (ql_jis(name, refused[i]))
            ql_jfail(e->run, QL_ERR_UNSUPPORTED, "\"%s\" is not supported", refused[i]);
    return ql_jundefined(name);
}

void ql_jfail_undefined(ql_jrun *run, const ql_jvalue *value)
{
    size_t length = value->text.length < 80 ? value->text.length : 80;
    ql_jfail(run, QL_ERR_ARG, "\"%.*s\" is undefined", (int)length, value->text.data);
}

static ql_jvalue loop_attribute(ql_jeval *e, const ql_jloop *loop, ql_jtext name)
{
    size_t i = loop->index, count = loop->items->count;
    const struct {
        const char *name;
        ql_jvalue value;
    } attributes[] = {
        {"index", ql_jint((int64_t)i + 1)},
        {"index0", ql_jint((int64_t)i)},
        {"revindex", ql_jint((int64_t)(count - i))},
        {"revindex0", ql_jint((int64_t)(count - i) - 1)},
        {"first", ql_jbool(i == 0)},
        {"last", ql_jbool(i + 1 == count)},
        {"length", ql_jint((int64_t)count)},
        {"depth", ql_jint((int64_t)loop->depth + 1)},
        {"depth0", ql_jint((int64_t)loop->depth)},
    };
    for (size_t k = 0; k < sizeof attributes / sizeof *attributes; k++)
        if (ql_jis(name, attributes[k].name))
            return attributes[k].value;
    if (ql_jis(name, "previtem"))
        return i ? loop->items->at[i - 1] : ql_jundefined(name);
    if (ql_jis(name, "nextitem"))
        return i + 1 < count ? loop->items->at[i + 1] : ql_jundefined(name);
    ql_jfail(e->run, QL_ERR_UNSUPPORTED, "loop.%.*s is not supported", name.length < 60 ? (int)name.length : 60,
             name.data);
}

ql_jvalue ql_jattribute(ql_jeval *e, const ql_jvalue *of, ql_jtext name)
{
    const ql_jvalue *found = NULL;
    if (of->kind == QL_J_UNDEFINED)
        ql_jfail_undefined(e->run, of);
    if (of->kind == QL_J_LOOP)
        return loop_attribute(e, of->loop, name);
    if (ql_jhas_method(e->run, of, name))
        return callable(e, QL_J_METHOD, name, *of);
    if (of->kind == QL_J_DICT || of->kind == QL_J_NAMESPACE)
        found = ql_jfind(e->run, of->dict, ql_jtextual(name));
    return found ? *found : ql_jundefined(name);
}

/* Character number `index` of a text. */
static ql_jvalue character(ql_jeval *e, ql_jtext text, int64_t index)
{
    size_t count = ql_jcharacters(e->run, text), at = 0;
    index += index < 0 ? (int64_t)count : 0;
    if (index < 0 || (size_t)index >= count)
        return ql_jundefined(ql_jstring("character out of range"));
    for (; index || ((uint8_t)text.data[at] & 0xc0) == 0x80; at++)
        index -= at + 1 < text.length && ((uint8_t)text.data[at + 1] & 0xc0) != 0x80;
    size_t end = at + 1;
    while (end < text.length && ((uint8_t)text.data[end] & 0xc0) == 0x80)
        end++;
    return ql_jtextual(ql_jslice(text, at, end));
}

ql_jvalue ql_jitem(ql_jeval *e, const ql_jvalue *of, const ql_jvalue *key)
{
    const ql_jvalue *found = NULL;
    if (of->kind == QL_J_UNDEFINED)
        ql_jfail_undefined(e->run, of);
    if ((of->kind == QL_J_LIST || of->kind == QL_J_TEXT) && (key->kind == QL_J_INT || key->kind == QL_J_BOOL)) {
        int64_t index = key->kind == QL_J_INT ? key->integer : key->truth;
        if (of->kind == QL_J_TEXT)
            return character(e, of->text, index);
        index += index < 0 ? (int64_t)of->list->count : 0;
        bool there = of->list->form <= QL_J_RANGE && index >= 0 && (size_t)index < of->list->count;
        return there ? of->list->at[index] : ql_jundefined(ql_jstring("item out of range"));
    }
    if (of->kind == QL_J_DICT || of->kind == QL_J_NAMESPACE)
        found = ql_jfind(e->run, of->dict, *key);
    if (found)
        return *found;
    return key->kind == QL_J_TEXT ? ql_jattribute(e, of, key->text) : ql_jundefined(ql_jstring("item"));
}

/* A bound of a slice, brought into [low, high]. */
static int64_t bound(ql_jeval *e, const ql_jnode *node, int64_t standard, int64_t count, int64_t low, int64_t high)
{
    ql_jvalue value = node ? ql_jevaluate(e, node) : ql_jnone();
    if (value.kind == QL_J_NONE)
        return standard;
    int64_t at = ql_jwhole(e->run, &value, 0, "a bound of a slice");
    at += at < 0 ? count : 0;
    return at < low ? low : at > high ? high : at;
}

static ql_jvalue slice(ql_jeval *e, const ql_jnode *node)
{
    ql_jvalue of = ql_jevaluate(e, node->a), by = node->d ? ql_jevaluate(e, node->d) : ql_jnone();
    if (of.kind == QL_J_UNDEFINED)
        ql_jfail_undefined(e->run, &of);
    if (of.kind != QL_J_TEXT && (of.kind != QL_J_LIST || of.list->form > QL_J_TUPLE))
        ql_jfail(e->run, QL_ERR_ARG, "%s cannot be sliced", ql_jkind_name(&of));
    const ql_jlist *items = ql_jitems(e->run, &of);
    int64_t step = by.kind == QL_J_NONE ? 1 : ql_jwhole(e->run, &by, 1, "the step of a slice");
    int64_t count = (int64_t)items->count, low = step < 0 ? -1 : 0, high = step < 0 ? count - 1 : count;
    if (!step)
        ql_jfail(e->run, QL_ERR_ARG, "a slice of step 0");
    int64_t from = bound(e, node->b, step < 0 ? high : low, count, low, high);
    int64_t to = bound(e, node->c, step < 0 ? low : high, count, low, high);
    ql_jlist *part = ql_jlist_new(e->run, 0);
    part->form = of.kind == QL_J_LIST ? of.list->form : QL_J_PLAIN;
    for (int64_t i = from; step > 0 ? i < to : i > to;) {
        ql_jappend(e->run, part, items->at[i]);
        if (__builtin_add_overflow(i, step, &i))
            break;
    }
    return of.kind == QL_J_TEXT ? ql_jtextual(ql_jjoin(e->run, part, ql_jstring(""))) : ql_jlisted(part);
}

/* The values of the arguments of a call, filter or test. */
static ql_jargs arguments(ql_jeval *e, const char *what, ql_jtext name, const ql_jnode *list)
{
    ql_jlist *at = ql_jlist_new(e->run, 0), *values = ql_jlist_new(e->run, 0);
    size_t named = 0, k = 0;
    for (const ql_jnode *a = list; a; a = a->next)
        named += a->keyword.length > 0;
    ql_jtext *keywords = ql_jalloc(e->run, named + 1, sizeof *keywords);
    for (; list; list = list->next) {
        ql_jvalue value = ql_jevaluate(e, list);
        if (list->keyword.length)
            keywords[k++] = list->keyword;
        else if (k)
            ql_jfail(e->run, QL_ERR_FORMAT, "an argument without a name behind one with a name");
        ql_jappend(e->run, list->keyword.length ? values : at, value);
    }
    return (ql_jargs){what, name, at->at, at->count, keywords, values->at, named};
}

ql_jvalue ql_jcall(ql_jeval *e, const ql_jvalue *called, const ql_jargs *args)
{
    if (called->kind == QL_J_UNDEFINED)
        ql_jfail_undefined(e->run, called);
    if (called->kind != QL_J_CALLABLE)
        ql_jfail(e->run, QL_ERR_ARG, "%s cannot be called", ql_jkind_name(called));
    const ql_jcallable *c = called->callable;
    ql_jargs named = *args;
    named.what = c->form == QL_J_METHOD ? "method" : c->form == QL_J_MACRO ? "macro" : "function";
    named.name = c->name;
    return c->form == QL_J_MACRO    ? ql_jmacro(e, c, &named)
           : c->form == QL_J_METHOD ? ql_jmethod(e, &c->self, &named)
                                    : ql_jfunction(e, &named);
}

bool ql_jcontains(ql_jrun *run, const ql_jvalue *all, const ql_jvalue *one)
{
    if (all->kind == QL_J_TEXT) {
        if (one->kind != QL_J_TEXT)
            ql_jfail(run, QL_ERR_ARG, "\"in\" a string looks for strings, not for %s", ql_jkind_name(one));
        return ql_jsearch(run, all->text, one->text, 0) != SIZE_MAX;
    }
    if (all->kind == QL_J_DICT)
        return ql_jfind(run, all->dict, *one);
    const ql_jlist *items = ql_jitems(run, all);
    for (size_t i = 0; i < items->count; i++)
        if (ql_jequal(run, &items->at[i], one))
            return true;
    return false;
}

static ql_jvalue compared(ql_jeval *e, const ql_jnode *node)
{
    ql_jvalue left = ql_jevaluate(e, node->a);
    bool holds = true;
    for (const ql_jnode *operand = node->list; operand && holds; operand = operand->next) {
        ql_jvalue right = ql_jevaluate(e, operand->a);
        int op = operand->op;
        if (op == QL_J_TWO('=', '=') || op == QL_J_TWO('!', '=')) {
            holds = ql_jequal(e->run, &left, &right) == (op == QL_J_TWO('=', '='));
        } else if (op == QL_JOP_IN || op == QL_JOP_NOT_IN) {
            holds = ql_jcontains(e->run, &right, &left) == (op == QL_JOP_IN);
        } else {
            if (left.kind == QL_J_UNDEFINED || right.kind == QL_J_UNDEFINED)
                ql_jfail_undefined(e->run, left.kind == QL_J_UNDEFINED ? &left : &right);
            int order = ql_jorder(e->run, &left, &right);
            holds = op == '<'                  ? order == -1
                    : op == '>'                ? order == 1
                    : op == QL_J_TWO('<', '=') ? order <= 0
                                               : order == 0 || order == 1;
        }
        left = right;
    }
    return ql_jbool(holds);
}

static ql_jvalue collected(ql_jeval *e, const ql_jnode *node)
{
    ql_jvalue made = ql_jlisted(ql_jlist_new(e->run, 0));
    if (node->type == QL_JN_DICT)
        made = (ql_jvalue){.kind = QL_J_DICT, .dict = ql_jdict_new(e->run)};
    else
        made.list->form = node->type == QL_JN_TUPLE ? QL_J_TUPLE : QL_J_PLAIN;
    for (const ql_jnode *item = node->list; item; item = item->next) {
        ql_jvalue first = ql_jevaluate(e, item);
        if (node->type != QL_JN_DICT) {
            ql_jappend(e->run, made.list, first);
            continue;
        }
        item = item->next;
        ql_jput(e->run, made.dict, first, ql_jevaluate(e, item));
    }
    return made;
}

static ql_jvalue sign(ql_jeval *e, const ql_jnode *node)
{
    ql_jvalue value = ql_jevaluate(e, node->a), zero = ql_jint(0);
    if (!ql_jis_number(&value))
        ql_jfail(e->run, QL_ERR_ARG, "a sign before %s", ql_jkind_name(&value));
    if (value.kind == QL_J_REAL)
        return ql_jreal(node->op == '-' ? -value.real : value.real);
    return ql_jarithmetic(e->run, node->op, &zero, &value);
}

static ql_jvalue applied(ql_jeval *e, const ql_jnode *node)
{
    ql_jvalue value = ql_jevaluate(e, node->a);
    bool filter = node->type == QL_JN_FILTER;
    ql_jargs args = arguments(e, filter ? "filter" : "test", node->text, node->list);
    e->run->line = node->line;
    return filter ? ql_jfilter(e, &value, &args) : ql_jbool(ql_jtest(e, &value, &args));
}

static ql_jvalue called(ql_jeval *e, const ql_jnode *node)
{
    ql_jvalue function = ql_jevaluate(e, node->a);
    ql_jargs args = arguments(e, "", ql_jstring(""), node->list);
    e->run->line = node->line;
    ql_jvalue result = ql_jcall(e, &function, &args);
    e->run->line = node->line;
    return result;
}

static ql_jvalue evaluate(ql_jeval *e, const ql_jnode *node)
{
    ql_jvalue a, b;
    switch (node->type) {
    case QL_JN_CONST:
        return node->value;
    case QL_JN_NAME:
        return variable(e, node->text);
    case QL_JN_ATTR:
        a = ql_jevaluate(e, node->a);
        e->run->line = node->line;
        return ql_jattribute(e, &a, node->text);
    case QL_JN_INDEX:
        a = ql_jevaluate(e, node->a);
        b = ql_jevaluate(e, node->b);
        return ql_jitem(e, &a, &b);
    case QL_JN_SLICE:
        return slice(e, node);
    case QL_JN_CALL:
        return called(e, node);
    case QL_JN_FILTER:
    case QL_JN_TEST:
        return applied(e, node);
    case QL_JN_NOT:
        a = ql_jevaluate(e, node->a);
        return ql_jbool(!ql_jtruth(&a));
    case QL_JN_SIGN:
        return sign(e, node);
    case QL_JN_AND:
    case QL_JN_OR:
        a = ql_jevaluate(e, node->a);
        return ql_jtruth(&a) == (node->type == QL_JN_OR) ? a : ql_jevaluate(e, node->b);
    case QL_JN_BINARY:
        a = ql_jevaluate(e, node->a);
        b = ql_jevaluate(e, node->b);
        return ql_jarithmetic(e->run, node->op, &a, &b);
    case QL_JN_COMPARE:
        return compared(e, node);
    case QL_JN_CONDITIONAL:
        a = ql_jevaluate(e, node->a);
        if (ql_jtruth(&a))
            return ql_jevaluate(e, node->b);
        return node->c ? ql_jevaluate(e, node->c) : ql_jundefined(ql_jstring("a conditional without else"));
    default:
        return collected(e, node);
    }
}

ql_jvalue ql_jevaluate(ql_jeval *e, const ql_jnode *node)
{
    ql_jenter(e->run);
    ql_jcharge(e->run, 1);
    e->run->line = node->line;
    ql_jvalue value = evaluate(e, node);
    e->run->depth--;
    return value;
}
