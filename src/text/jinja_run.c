/* Statements of chat templates at work. */
#include "text/jinja_run.h"

#include <string.h>

void ql_jbind(ql_jeval *e, ql_jtext name, ql_jvalue value)
{
    ql_jbinding *b = e->scope->names;
    while (b && !ql_jsame(b->name, name))
        b = b->next;
    if (!b) {
        b = ql_jalloc(e->run, 1, sizeof *b);
        b->name = name;
        b->next = e->scope->names;
        e->scope->names = b;
    }
    b->value = value;
}

static void open_scope(ql_jeval *e, ql_jscope *parent)
{
    ql_jscope *inner = ql_jalloc(e->run, 1, sizeof *inner); /* a macro that is defined in it keeps it */
    inner->parent = parent;
    e->scope = inner;
}

static void assign(ql_jeval *e, const ql_jnode *target, const ql_jvalue *value)
{
    ql_jenter(e->run);
    if (target->type == QL_JN_NAME) {
        ql_jbind(e, target->text, *value);
    } else if (target->type == QL_JN_ATTR) {
        ql_jvalue space = ql_jevaluate(e, target->a);
        if (space.kind != QL_J_NAMESPACE)
            ql_jfail(e->run, QL_ERR_ARG, "attributes can be set on a namespace only, not on %s", ql_jkind_name(&space));
        ql_jput(e->run, space.dict, ql_jtextual(target->text), *value);
    } else {
        const ql_jlist *items = ql_jitems(e->run, value);
        size_t i = 0;
        for (const ql_jnode *part = target->list; part; part = part->next, i++)
            if (i < items->count)
                assign(e, part, &items->at[i]);
        if (i != items->count)
            ql_jfail(e->run, QL_ERR_ARG, "%zu names for %zu values", i, items->count);
    }
    e->run->depth--;
}

/* What the statements print, as a text. */
static ql_jtext capture(ql_jeval *e, const ql_jnode *body)
{
    ql_jbuild text = {.run = e->run}, *outer = e->out;
    ql_jscope *scope = e->scope;
    open_scope(e, scope);
    e->out = &text;
    e->captured++;
    ql_jexecute(e, body);
    e->captured--;
    e->out = outer;
    e->scope = scope;
    return ql_jbuilt(&text).text;
}

const uint8_t *ql_janswered(ql_jeval *e)
{
    size_t length = e->out->length;
    uint8_t *marks = ql_jalloc(e->run, length + 1, 1);
    if (e->answered)
        memcpy(marks, e->answer, e->answered < length ? e->answered : length);
    return marks;
}

/* As in transformers, blocks inside of texts that are captured are marked by nothing. */
static void generate(ql_jeval *e, const ql_jnode *node)
{
    ql_jtext text = capture(e, node->body);
    size_t begin = e->out->length;
    ql_jadd(e->out, text);
    if (e->captured)
        return;
    if (e->out->length > e->answer_capacity) {
        uint8_t *more = ql_jalloc(e->run, e->out->length * 2, 1);
        if (e->answered)
            memcpy(more, e->answer, e->answered);
        e->answer = more;
        e->answer_capacity = e->out->length * 2;
    }
    memset(e->answer + begin, 1, text.length);
    e->answered = e->out->length;
}

static ql_jlist *filtered(ql_jeval *e, const ql_jnode *node, const ql_jlist *items)
{
    ql_jlist *kept = ql_jlist_new(e->run, 0);
    for (size_t i = 0; i < items->count; i++) {
        ql_jscope *outer = e->scope;
        open_scope(e, outer);
        assign(e, node->a, &items->at[i]);
        ql_jvalue keep = ql_jevaluate(e, node->c);
        e->scope = outer;
        if (ql_jtruth(&keep))
            ql_jappend(e->run, kept, items->at[i]);
    }
    return kept;
}

static void loop(ql_jeval *e, const ql_jnode *node)
{
    ql_jvalue over = ql_jevaluate(e, node->b);
    const ql_jlist *items = ql_jitems(e->run, &over);
    if (node->c)
        items = filtered(e, node, items);
    ql_jloop *state = ql_jalloc(e->run, 1, sizeof *state);
    *state = (ql_jloop){items, 0, e->loops++};
    ql_jscope *outer = e->scope;
    for (; state->index < items->count; state->index++) {
        ql_jcharge(e->run, 4);
        open_scope(e, outer);
        ql_jbind(e, ql_jstring("loop"), (ql_jvalue){.kind = QL_J_LOOP, .loop = state});
        assign(e, node->a, &items->at[state->index]);
        if (ql_jexecute(e, node->body) == QL_J_BREAK)
            break;
    }
    e->loops--;
    open_scope(e, outer);
    if (!items->count)
        ql_jexecute(e, node->other);
    e->scope = outer;
}

static void define(ql_jeval *e, const ql_jnode *node)
{
    ql_jcallable *macro = ql_jalloc(e->run, 1, sizeof *macro);
    *macro = (ql_jcallable){.form = QL_J_MACRO, .name = node->text, .macro = node, .scope = e->scope};
    ql_jbind(e, node->text, (ql_jvalue){.kind = QL_J_CALLABLE, .callable = macro});
}

static bool is_parameter(const ql_jnode *parameters, ql_jtext name)
{
    while (parameters && !ql_jsame(parameters->text, name))
        parameters = parameters->next;
    return parameters;
}

static void bind_parameters(ql_jeval *e, const ql_jcallable *macro, const ql_jargs *args)
{
    size_t i = 0;
    for (const ql_jnode *p = macro->macro->list; p; p = p->next, i++) {
        const ql_jvalue *given = i < args->count ? &args->at[i] : NULL;
        for (size_t k = 0; k < args->named; k++)
            if (ql_jsame(args->keywords[k], p->text)) {
                if (given)
                    ql_jfail(e->run, QL_ERR_ARG, "macro %.*s: an argument given twice", (int)macro->name.length,
                             macro->name.data);
                given = &args->values[k];
            }
        ql_jbind(e, p->text, given ? *given : p->b ? ql_jevaluate(e, p->b) : ql_jundefined(p->text));
    }
    bool known = args->count <= i;
    for (size_t k = 0; k < args->named; k++)
        known = known && is_parameter(macro->macro->list, args->keywords[k]);
    if (!known)
        ql_jfail(e->run, QL_ERR_ARG, "macro %.*s: an argument that it does not take", (int)macro->name.length,
                 macro->name.data);
}

ql_jvalue ql_jmacro(ql_jeval *e, const ql_jcallable *macro, const ql_jargs *args)
{
    ql_jscope *outer = e->scope;
    size_t loops = e->loops;
    ql_jenter(e->run);
    open_scope(e, macro->scope);
    bind_parameters(e, macro, args);
    e->loops = 0;
    ql_jtext text = capture(e, macro->macro->body);
    e->loops = loops;
    e->scope = outer;
    e->run->depth--;
    return ql_jtextual(text);
}

static ql_jflow choose(ql_jeval *e, const ql_jnode *node)
{
    for (; node; node = node->other) {
        ql_jvalue condition = ql_jevaluate(e, node->a);
        if (ql_jtruth(&condition))
            return ql_jexecute(e, node->body);
        if (!node->op) /* what comes instead is no "elif" */
            return ql_jexecute(e, node->other);
    }
    return QL_J_ON;
}

static void set_body(ql_jeval *e, const ql_jnode *node)
{
    ql_jvalue text = ql_jtextual(capture(e, node->body));
    assign(e, node->a, &text);
}

static ql_jflow step(ql_jeval *e, const ql_jnode *node)
{
    ql_jvalue value;
    switch (node->type) {
    case QL_JN_TEXT:
        ql_jadd(e->out, node->text);
        break;
    case QL_JN_PRINT:
        value = ql_jevaluate(e, node->a);
        ql_jadd(e->out, ql_jstr(e->run, &value));
        break;
    case QL_JN_IF:
        return choose(e, node);
    case QL_JN_FOR:
        loop(e, node);
        break;
    case QL_JN_SET:
        value = ql_jevaluate(e, node->b);
        assign(e, node->a, &value);
        break;
    case QL_JN_SET_BODY:
        set_body(e, node);
        break;
    case QL_JN_MACRO:
        define(e, node);
        break;
    case QL_JN_GENERATION:
        generate(e, node);
        break;
    default:
        return node->type == QL_JN_BREAK ? QL_J_BREAK : QL_J_CONTINUE;
    }
    return QL_J_ON;
}

ql_jflow ql_jexecute(ql_jeval *e, const ql_jnode *body)
{
    ql_jflow flow = QL_J_ON;
    ql_jenter(e->run);
    for (; body && flow == QL_J_ON; body = body->next) {
        ql_jcharge(e->run, 1);
        e->run->line = body->line;
        flow = step(e, body);
    }
    e->run->depth--;
    return flow;
}
