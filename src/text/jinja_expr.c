/* Expressions of chat templates: precedence as in Jinja2's own parser. */
#include <string.h>

#include "text/jinja_ast.h"

void ql_jparse_fail(ql_jparser *p, const char *wanted)
{
    const ql_jtoken *t = p->at;
    p->run->line = t->line;
    ql_jtext text = t->text.length < 60 ? t->text : ql_jslice(t->text, 0, 60);
    char op[3] = {(char)(t->op < 256 ? t->op : t->op >> 8), (char)(t->op < 256 ? 0 : t->op & 0xff), 0};
    if (t->kind == QL_JT_NAME || t->kind == QL_JT_STRING)
        ql_jfail(p->run, QL_ERR_FORMAT, "expected %s, not \"%.*s\"", wanted, (int)text.length, text.data);
    ql_jfail(p->run, QL_ERR_FORMAT, "expected %s, not %s", wanted,
             t->kind == QL_JT_OPERATOR                                ? op
             : t->kind == QL_JT_NUMBER                                ? "a number"
             : t->kind == QL_JT_PRINT_END || t->kind == QL_JT_TAG_END ? "the end of the tag"
                                                                      : "the end of the template");
}

ql_jnode *ql_jparse_node(ql_jparser *p, ql_jtype type)
{
    ql_jnode *node = ql_jalloc(p->run, 1, sizeof *node);
    node->type = type;
    node->line = p->at->line;
    p->run->line = p->at->line;
    return node;
}

static bool is_op(const ql_jparser *p, int op)
{
    return p->at->kind == QL_JT_OPERATOR && p->at->op == op;
}

static bool is_name(const ql_jtoken *t, const char *name)
{
    return t->kind == QL_JT_NAME && ql_jis(t->text, name);
}

bool ql_jparse_skip(ql_jparser *p, int op)
{
    bool there = is_op(p, op);
    p->at += there;
    return there;
}

bool ql_jparse_skip_name(ql_jparser *p, const char *name)
{
    bool there = is_name(p->at, name);
    p->at += there;
    return there;
}

void ql_jparse_need(ql_jparser *p, int op, const char *spelled)
{
    if (!ql_jparse_skip(p, op))
        ql_jparse_fail(p, spelled);
}

ql_jtext ql_jparse_name(ql_jparser *p)
{
    if (p->at->kind != QL_JT_NAME)
        ql_jparse_fail(p, "a name");
    return p->at++->text;
}

static ql_jnode *two(ql_jparser *p, ql_jtype type, ql_jnode *a, ql_jnode *b)
{
    ql_jnode *node = ql_jparse_node(p, type);
    node->a = a;
    node->b = b;
    return node;
}

static ql_jnode *constant(ql_jparser *p, ql_jvalue value)
{
    ql_jnode *node = ql_jparse_node(p, QL_JN_CONST);
    node->value = value;
    return node;
}

static ql_jnode *parse_word(ql_jparser *p)
{
    ql_jtext name = p->at->text;
    ql_jnode *node = ql_jparse_node(p, QL_JN_NAME);
    node->text = name;
    p->at++;
    if (ql_jis(name, "true") || ql_jis(name, "True") || ql_jis(name, "false") || ql_jis(name, "False"))
        return constant(p, ql_jbool(name.length == 4));
    if (ql_jis(name, "none") || ql_jis(name, "None"))
        return constant(p, ql_jnone());
    return node;
}

/* [a, b] and {a: b}: `step` expressions an item. */
static ql_jnode *parse_items(ql_jparser *p, ql_jtype type, int close, int step)
{
    ql_jnode *node = ql_jparse_node(p, type), **end = &node->list;
    p->at++;
    while (!is_op(p, close)) {
        if (node->list)
            ql_jparse_need(p, ',', "\",\"");
        if (is_op(p, close))
            break;
        for (int i = 0; i < step; i++) {
            if (i)
                ql_jparse_need(p, ':', "\":\"");
            *end = ql_jparse_expression(p);
            end = &(*end)->next;
        }
    }
    p->at++;
    return node;
}

static ql_jnode *parse_strings(ql_jparser *p)
{
    ql_jnode *node = ql_jparse_node(p, QL_JN_CONST);
    ql_jbuild text = {.run = p->run};
    for (; p->at->kind == QL_JT_STRING; p->at++)
        ql_jadd(&text, p->at->text);
    node->value = ql_jbuilt(&text);
    return node;
}

static ql_jnode *parse_primary(ql_jparser *p)
{
    if (p->at->kind == QL_JT_NAME)
        return parse_word(p);
    if (p->at->kind == QL_JT_STRING)
        return parse_strings(p);
    if (p->at->kind == QL_JT_NUMBER)
        return constant(p, p->at++->value);
    if (is_op(p, '['))
        return parse_items(p, QL_JN_LIST, ']', 1);
    if (is_op(p, '{'))
        return parse_items(p, QL_JN_DICT, '}', 2);
    if (!ql_jparse_skip(p, '('))
        ql_jparse_fail(p, "an expression");
    ql_jnode *node = is_op(p, ')') ? ql_jparse_node(p, QL_JN_TUPLE) : ql_jparse_tuple(p, QL_JTUPLE_PLAIN);
    ql_jparse_need(p, ')', "\")\"");
    return node;
}

static ql_jnode *parse_arguments(ql_jparser *p)
{
    ql_jnode *list = NULL, **end = &list;
    ql_jparse_need(p, '(', "\"(\"");
    while (!is_op(p, ')')) {
        if (list)
            ql_jparse_need(p, ',', "\",\"");
        if (is_op(p, ')'))
            break;
        if (is_op(p, '*') || is_op(p, QL_J_TWO('*', '*')))
            ql_jfail(p->run, QL_ERR_UNSUPPORTED, "*args and **kwargs are not supported");
        ql_jtext keyword = {0};
        if (p->at->kind == QL_JT_NAME && p->at[1].kind == QL_JT_OPERATOR && p->at[1].op == '=') {
            keyword = p->at->text;
            p->at += 2;
        }
        *end = ql_jparse_expression(p);
        (*end)->keyword = keyword;
        end = &(*end)->next;
    }
    p->at++;
    return list;
}

static ql_jnode *parse_subscript(ql_jparser *p, ql_jnode *of)
{
    ql_jnode *node = two(p, QL_JN_INDEX, of, NULL), **parts[] = {&node->b, &node->c, &node->d};
    size_t colons = 0;
    p->at++;
    while (!is_op(p, ']')) {
        if (is_op(p, ':') && colons < 2) {
            p->at++;
            colons++;
            node->type = QL_JN_SLICE;
        } else if (!*parts[colons])
            *parts[colons] = ql_jparse_expression(p);
        else
            ql_jparse_fail(p, "\"]\"");
    }
    if (node->type == QL_JN_INDEX && !node->b)
        ql_jparse_fail(p, "an index");
    p->at++;
    return node;
}

static ql_jnode *parse_postfix(ql_jparser *p, ql_jnode *node)
{
    for (;;) {
        ql_jnode *inner = node;
        if (is_op(p, '(')) {
            node = two(p, QL_JN_CALL, inner, NULL);
            node->list = parse_arguments(p);
        } else if (is_op(p, '[')) {
            node = parse_subscript(p, inner);
        } else if (ql_jparse_skip(p, '.')) {
            node = two(p, QL_JN_ATTR, inner, NULL);
            if (p->at->kind == QL_JT_NUMBER && p->at->value.kind == QL_J_INT) {
                node->type = QL_JN_INDEX;
                node->b = constant(p, p->at++->value);
            } else {
                node->text = ql_jparse_name(p);
            }
        } else {
            return node;
        }
    }
}

static ql_jnode *parse_test(ql_jparser *p, ql_jnode *of)
{
    bool negated = ql_jparse_skip_name(p, "not");
    ql_jnode *node = two(p, QL_JN_TEST, of, NULL);
    node->text = ql_jparse_name(p);
    const ql_jtoken *t = p->at;
    if (is_name(t, "is"))
        ql_jparse_fail(p, "no test of a test");
    bool more = is_name(t, "else") || is_name(t, "or") || is_name(t, "and");
    if (is_op(p, '('))
        node->list = parse_arguments(p);
    else if ((t->kind == QL_JT_NAME && !more) || t->kind == QL_JT_STRING || t->kind == QL_JT_NUMBER || is_op(p, '[') ||
             is_op(p, '{'))
        node->list = parse_postfix(p, parse_primary(p));
    return negated ? two(p, QL_JN_NOT, node, NULL) : node;
}

static ql_jnode *parse_filters(ql_jparser *p, ql_jnode *node)
{
    for (;;) {
        ql_jnode *inner = node;
        if (ql_jparse_skip(p, '|')) {
            node = two(p, QL_JN_FILTER, inner, NULL);
            node->text = ql_jparse_name(p);
            if (is_op(p, '('))
                node->list = parse_arguments(p);
        } else if (ql_jparse_skip_name(p, "is")) {
            node = parse_test(p, inner);
        } else if (is_op(p, '(')) {
            node = two(p, QL_JN_CALL, inner, NULL);
            node->list = parse_arguments(p);
        } else {
            return node;
        }
    }
}

static ql_jnode *parse_unary(ql_jparser *p, bool filters)
{
    ql_jnode *node;
    ql_jenter(p->run);
    if (is_op(p, '-') || is_op(p, '+')) {
        node = ql_jparse_node(p, QL_JN_SIGN);
        node->op = p->at++->op;
        node->a = parse_unary(p, false);
    } else {
        node = parse_primary(p);
    }
    node = parse_postfix(p, node);
    p->run->depth--;
    return filters ? parse_filters(p, node) : node;
}

/* The binary operators, the loosest first. */
enum { SUMS, CONCATENATION, PRODUCTS, POWERS, LEVELS };

static bool belongs(int op, int level)
{
    static const int ops[LEVELS][4] = {
        [SUMS] = {'+', '-'},
        [CONCATENATION] = {'~'},
        [PRODUCTS] = {'*', '/', QL_J_TWO('/', '/'), '%'},
        [POWERS] = {QL_J_TWO('*', '*')},
    };
    for (int i = 0; i < 4; i++)
        if (op && ops[level][i] == op)
            return true;
    return false;
}

static ql_jnode *parse_binary(ql_jparser *p, int level)
{
    if (level == LEVELS)
        return parse_unary(p, true);
    ql_jnode *node = parse_binary(p, level + 1);
    while (p->at->kind == QL_JT_OPERATOR && belongs(p->at->op, level)) {
        node = two(p, QL_JN_BINARY, node, NULL);
        node->op = p->at++->op;
        node->b = parse_binary(p, level + 1);
    }
    return node;
}

/* The comparison that comes next, skipped; 0: none. */
static int skip_comparison(ql_jparser *p)
{
    static const int ops[] = {QL_J_TWO('=', '='), QL_J_TWO('!', '='), '<', '>', QL_J_TWO('<', '='), QL_J_TWO('>', '=')};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (ql_jparse_skip(p, ops[i]))
            return ops[i];
    if (ql_jparse_skip_name(p, "in"))
        return QL_JOP_IN;
    bool not_in = is_name(p->at, "not") && is_name(p->at + 1, "in");
    p->at += not_in ? 2 : 0;
    return not_in ? QL_JOP_NOT_IN : 0;
}

static ql_jnode *parse_compare(ql_jparser *p)
{
    ql_jnode *first = parse_binary(p, SUMS), *node = NULL, **end = NULL;
    for (int op; (op = skip_comparison(p));) {
        if (!node) {
            node = two(p, QL_JN_COMPARE, first, NULL);
            end = &node->list;
        }
        *end = two(p, QL_JN_COMPARE, parse_binary(p, SUMS), NULL);
        (*end)->op = op;
        end = &(*end)->next;
    }
    return node ? node : first;
}

static ql_jnode *parse_not(ql_jparser *p)
{
    if (!is_name(p->at, "not"))
        return parse_compare(p);
    ql_jnode *node = ql_jparse_node(p, QL_JN_NOT);
    p->at++;
    ql_jenter(p->run);
    node->a = parse_not(p);
    p->run->depth--;
    return node;
}

static ql_jnode *parse_and(ql_jparser *p)
{
    ql_jnode *node = parse_not(p);
    while (ql_jparse_skip_name(p, "and")) {
        ql_jnode *left = node;
        node = two(p, QL_JN_AND, left, NULL);
        node->b = parse_not(p);
    }
    return node;
}

static ql_jnode *parse_or(ql_jparser *p)
{
    ql_jnode *node = parse_and(p);
    while (ql_jparse_skip_name(p, "or")) {
        ql_jnode *left = node;
        node = two(p, QL_JN_OR, left, NULL);
        node->b = parse_and(p);
    }
    return node;
}

ql_jnode *ql_jparse_expression(ql_jparser *p)
{
    ql_jenter(p->run);
    ql_jnode *node = parse_or(p);
    while (ql_jparse_skip_name(p, "if")) {
        ql_jnode *value = node;
        node = ql_jparse_node(p, QL_JN_CONDITIONAL);
        node->b = value;
        node->a = parse_or(p);
        node->c = ql_jparse_skip_name(p, "else") ? ql_jparse_expression(p) : NULL;
    }
    p->run->depth--;
    return node;
}

static bool ends_tuple(const ql_jparser *p)
{
    return p->at->kind == QL_JT_PRINT_END || p->at->kind == QL_JT_TAG_END || is_op(p, ')') || is_op(p, '=') ||
           is_name(p->at, "in");
}

ql_jnode *ql_jparse_tuple(ql_jparser *p, ql_jtuple kind)
{
    ql_jnode *tuple = ql_jparse_node(p, QL_JN_TUPLE), **end = &tuple->list;
    bool comma = false;
    do {
        if (comma && ends_tuple(p))
            break;
        *end = kind == QL_JTUPLE_TARGETS ? parse_primary(p)
               : kind == QL_JTUPLE_PLAIN ? ql_jparse_expression(p)
                                         : parse_or(p);
        end = &(*end)->next;
    } while (ql_jparse_skip(p, ',') && (comma = true));
    return comma ? tuple : tuple->list;
}
