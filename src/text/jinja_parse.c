/* Statements of chat templates. */
#include "text/jinja_ast.h"

static ql_jnode *parse_body(ql_jparser *p, const char *const *ends);

static void end_tag(ql_jparser *p)
{
    if (p->at->kind != QL_JT_TAG_END)
        ql_jparse_fail(p, "\"%}\"");
    p->at++;
}

/* The statements up to the tag {% end %}, and behind it. */
static ql_jnode *parse_until(ql_jparser *p, const char *end)
{
    const char *const ends[] = {end, NULL};
    end_tag(p);
    ql_jnode *body = parse_body(p, ends);
    p->at++;
    return body;
}

/* The same of a body that becomes one text: no break or continue leaves it. */
static ql_jnode *parse_text(ql_jparser *p, const char *end)
{
    size_t loops = p->loops;
    p->loops = 0;
    ql_jnode *body = parse_until(p, end);
    p->loops = loops;
    return body;
}

static void check_target(ql_jparser *p, const ql_jnode *target, bool attribute)
{
    bool fine =
        target->type == QL_JN_NAME || (attribute && target->type == QL_JN_ATTR && target->a->type == QL_JN_NAME);
    for (const ql_jnode *item = target->list; target->type == QL_JN_TUPLE && item; item = item->next) {
        check_target(p, item, attribute);
        fine = true;
    }
    if (!fine)
        ql_jparse_fail(p, "a name to assign to before this");
}

/* What follows the condition of an "if" or "elif": its body, and what comes instead of it. */
static void parse_branches(ql_jparser *p, ql_jnode *node)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    ql_jenter(p->run);
    node->a = ql_jparse_tuple(p, QL_JTUPLE_PLAIN);
    end_tag(p);
    node->body = parse_body(p, ends);
    if (ql_jparse_skip_name(p, "elif")) {
        node->op = 1; /* an "if" instead */
        node->other = ql_jparse_node(p, QL_JN_IF);
        parse_branches(p, node->other);
    } else if (ql_jparse_skip_name(p, "else")) {
        node->other = parse_until(p, "endif");
    } else {
        p->at++;
    }
    p->run->depth--;
}

static void parse_for(ql_jparser *p, ql_jnode *node)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    node->a = ql_jparse_tuple(p, QL_JTUPLE_TARGETS);
    check_target(p, node->a, false);
    if (!ql_jparse_skip_name(p, "in"))
        ql_jparse_fail(p, "\"in\"");
    node->b = ql_jparse_tuple(p, QL_JTUPLE_UNCONDITIONAL);
    if (ql_jparse_skip_name(p, "if"))
        node->c = ql_jparse_expression(p);
    if (ql_jparse_skip_name(p, "recursive"))
        ql_jfail(p->run, QL_ERR_UNSUPPORTED, "recursive loops are not supported");
    end_tag(p);
    p->loops++;
    node->body = parse_body(p, ends);
    p->loops--;
    if (ql_jparse_skip_name(p, "else"))
        node->other = parse_until(p, "endfor");
    else
        p->at++;
}

static void parse_set(ql_jparser *p, ql_jnode *node)
{
    ql_jnode *tuple = ql_jparse_node(p, QL_JN_TUPLE), **end = &tuple->list;
    bool comma = false;
    do {
        ql_jnode *target = ql_jparse_node(p, QL_JN_NAME);
        target->text = ql_jparse_name(p);
        if (ql_jparse_skip(p, '.')) {
            ql_jnode *attribute = ql_jparse_node(p, QL_JN_ATTR);
            attribute->a = target;
            attribute->text = ql_jparse_name(p);
            target = attribute;
        }
        *end = target;
        end = &target->next;
    } while (ql_jparse_skip(p, ',') && (comma = true));
    node->a = comma ? tuple : tuple->list;
    check_target(p, node->a, true);
    if (ql_jparse_skip(p, '=')) {
        node->b = ql_jparse_tuple(p, QL_JTUPLE_PLAIN);
        return;
    }
    if (ql_jparse_skip(p, '|'))
        ql_jfail(p->run, QL_ERR_UNSUPPORTED, "filters of a block set are not supported");
    node->type = QL_JN_SET_BODY;
    node->body = parse_text(p, "endset");
}

static void parse_macro(ql_jparser *p, ql_jnode *node)
{
    ql_jnode **end = &node->list;
    node->text = ql_jparse_name(p);
    ql_jparse_need(p, '(', "\"(\"");
    while (!ql_jparse_skip(p, ')')) {
        if (node->list)
            ql_jparse_need(p, ',', "\",\"");
        ql_jnode *parameter = ql_jparse_node(p, QL_JN_NAME);
        parameter->text = ql_jparse_name(p);
        if (ql_jparse_skip(p, '='))
            parameter->b = ql_jparse_expression(p);
        *end = parameter;
        end = &parameter->next;
    }
    node->body = parse_text(p, "endmacro");
}

static ql_jnode *parse_statement(ql_jparser *p)
{
    ql_jnode *node = ql_jparse_node(p, QL_JN_IF);
    ql_jtext word = ql_jparse_name(p);
    if (ql_jis(word, "if")) {
        parse_branches(p, node);
    } else if (ql_jis(word, "for")) {
        node->type = QL_JN_FOR;
        parse_for(p, node);
    } else if (ql_jis(word, "set")) {
        node->type = QL_JN_SET;
        parse_set(p, node);
    } else if (ql_jis(word, "macro")) {
        node->type = QL_JN_MACRO;
        parse_macro(p, node);
    } else if (ql_jis(word, "generation")) {
        node->type = QL_JN_GENERATION;
        p->generation = true;
        node->body = parse_text(p, "endgeneration");
    } else if (ql_jis(word, "break") || ql_jis(word, "continue")) {
        node->type = ql_jis(word, "break") ? QL_JN_BREAK : QL_JN_CONTINUE;
        if (!p->loops)
            ql_jfail(p->run, QL_ERR_FORMAT, "\"%.*s\" outside of a loop", (int)word.length, word.data);
    } else {
        ql_jfail(p->run, QL_ERR_UNSUPPORTED, "the tag \"%.*s\" is not supported",
                 word.length < 60 ? (int)word.length : 60, word.data);
    }
    end_tag(p);
    return node;
}

static bool at_end(const ql_jparser *p, const char *const *ends)
{
    for (; ends && *ends; ends++)
        if (p->at[1].kind == QL_JT_NAME && ql_jis(p->at[1].text, *ends))
            return true;
    return false;
}

/* Statements up to one of the tags `ends`; the place is then its name. NULL: up to the end of the template. */
static ql_jnode *parse_body(ql_jparser *p, const char *const *ends)
{
    ql_jnode *first = NULL, **end = &first;
    ql_jenter(p->run);
    for (; p->at->kind != QL_JT_END; end = &(*end)->next) {
        if (p->at->kind == QL_JT_DATA) {
            *end = ql_jparse_node(p, QL_JN_TEXT);
            (*end)->text = p->at++->text;
        } else if (p->at++->kind == QL_JT_PRINT_BEGIN) {
            *end = ql_jparse_node(p, QL_JN_PRINT);
            (*end)->a = ql_jparse_tuple(p, QL_JTUPLE_PLAIN);
            if (p->at++->kind != QL_JT_PRINT_END) {
                p->at--;
                ql_jparse_fail(p, "\"}}\"");
            }
        } else {
            p->at--;
            if (at_end(p, ends)) {
                p->at++;
                break;
            }
            p->at++;
            *end = parse_statement(p);
        }
    }
    if (ends && p->at->kind == QL_JT_END) {
        while (ends[1])
            ends++;
        ql_jparse_fail(p, *ends);
    }
    p->run->depth--;
    return first;
}

ql_jnode *ql_jparse(ql_jrun *run, const ql_jtoken *tokens, bool *generation)
{
    ql_jparser p = {.run = run, .at = tokens};
    ql_jnode *body = parse_body(&p, NULL);
    *generation = p.generation;
    return body;
}
