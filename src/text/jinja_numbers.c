/* Arithmetic of chat templates, and strings and lists put together. */
#include <math.h>
#include <string.h>

#include "text/jinja_eval.h"

bool ql_jis_number(const ql_jvalue *v)
{
    return v->kind == QL_J_INT || v->kind == QL_J_BOOL || v->kind == QL_J_REAL;
}

static double real_of(const ql_jvalue *v)
{
    return v->kind == QL_J_REAL ? v->real : v->kind == QL_J_BOOL ? v->truth : (double)v->integer;
}

static ql_jvalue power(ql_jrun *run, int64_t a, int64_t b)
{
    int64_t result = 1;
    for (; b > 0; b--) {
        ql_jcharge(run, 1);
        if (__builtin_mul_overflow(result, a, &result))
            ql_jfail(run, QL_ERR_UNSUPPORTED, "a number beyond 64 bits");
        if (result == 0 || (result == 1 && a == 1))
            break;
    }
    return ql_jint(result);
}

static ql_jvalue whole_arithmetic(ql_jrun *run, int op, int64_t a, int64_t b)
{
    int64_t result = 0;
    bool over = false;
    bool divides = op == '%' || op == QL_J_TWO('/', '/');
    if (divides && !b)
        ql_jfail(run, QL_ERR_ARG, "division by zero");
    if (op == '+')
        over = __builtin_add_overflow(a, b, &result);
    else if (op == '-')
        over = __builtin_sub_overflow(a, b, &result);
    else if (op == '*')
        over = __builtin_mul_overflow(a, b, &result);
    else if (op == QL_J_TWO('*', '*') && b >= 0)
        return power(run, a, b);
    else if (op == QL_J_TWO('*', '*'))
        return ql_jreal(pow((double)a, (double)b));
    else if (b == -1 && op == '%')
        result = 0;
    else if (b == -1)
        over = __builtin_sub_overflow(0, a, &result);
    else if (op == '%')
        result = a % b + (a % b && (a < 0) != (b < 0) ? b : 0);
    else
        result = a / b - (a % b && (a < 0) != (b < 0));
    if (over)
        ql_jfail(run, QL_ERR_UNSUPPORTED, "a number beyond 64 bits");
    return ql_jint(result);
}

static ql_jvalue real_arithmetic(ql_jrun *run, int op, double a, double b)
{
    if ((op == '/' || op == '%' || op == QL_J_TWO('/', '/')) && b == 0)
        ql_jfail(run, QL_ERR_ARG, "division by zero");
    double rest = op == '%' || op == QL_J_TWO('/', '/') ? fmod(a, b) : 0;
    rest += rest != 0 && (rest < 0) != (b < 0) ? b : 0;
    double result = op == '+'                  ? a + b
                    : op == '-'                ? a - b
                    : op == '*'                ? a * b
                    : op == '/'                ? a / b
                    : op == '%'                ? rest
                    : op == QL_J_TWO('/', '/') ? floor((a - rest) / b + 0.5)
                                               : pow(a, b);
    if (op == QL_J_TWO('*', '*') && !isfinite(result) && isfinite(a) && isfinite(b))
        ql_jfail(run, QL_ERR_ARG, "a power that is no number");
    return ql_jreal(result);
}

static ql_jvalue repeated(ql_jrun *run, const ql_jvalue *value, int64_t times)
{
    ql_jbuild text = {.run = run};
    ql_jlist *list = ql_jlist_new(run, 0);
    size_t size = value->kind == QL_J_TEXT ? value->text.length : value->list->count;
    for (int64_t i = 0; i < times && size; i++) {
        if (value->kind == QL_J_TEXT)
            ql_jadd(&text, value->text);
        for (size_t k = 0; value->kind == QL_J_LIST && k < size; k++)
            ql_jappend(run, list, value->list->at[k]);
    }
    return value->kind == QL_J_TEXT ? ql_jbuilt(&text) : ql_jlisted(list);
}

/* A text beside one that went through "safe" must not need HTML's escapes. */
static void check_markup(ql_jrun *run, const ql_jvalue *a, const ql_jvalue *b)
{
    ql_jtext plain = a->markup ? ql_jstr(run, b) : ql_jstr(run, a);
    for (size_t i = 0; a->markup != b->markup && i < plain.length; i++)
        if (strchr("&<>'\"", plain.data[i]))
            ql_jfail(run, QL_ERR_UNSUPPORTED, "\"| safe\" before adding \"%c\" is not supported", plain.data[i]);
}

static ql_jvalue joined(ql_jrun *run, const ql_jvalue *a, const ql_jvalue *b)
{
    ql_jbuild text = {.run = run};
    if (a->kind == QL_J_TEXT) {
        ql_jadd(&text, a->text);
        ql_jadd(&text, b->text);
        return ql_jbuilt(&text);
    }
    ql_jlist *list = ql_jlist_new(run, a->list->count + b->list->count);
    list->form = a->list->form;
    for (size_t i = 0; i < a->list->count; i++)
        ql_jappend(run, list, a->list->at[i]);
    for (size_t i = 0; i < b->list->count; i++)
        ql_jappend(run, list, b->list->at[i]);
    return ql_jlisted(list);
}

static ql_jvalue concatenated(ql_jrun *run, const ql_jvalue *a, const ql_jvalue *b)
{
    ql_jbuild text = {.run = run};
    ql_jadd(&text, ql_jstr(run, a));
    ql_jadd(&text, ql_jstr(run, b));
    return ql_jbuilt(&text);
}

ql_jvalue ql_jarithmetic(ql_jrun *run, int op, const ql_jvalue *a, const ql_jvalue *b)
{
    char spelled[3] = {(char)(op < 256 ? op : op >> 8), (char)(op < 256 ? 0 : op & 0xff), 0};
    bool lists =
        a->kind == QL_J_LIST && b->kind == QL_J_LIST && a->list->form == b->list->form && a->list->form <= QL_J_TUPLE;
    if (op == '~')
        return concatenated(run, a, b);
    if (op == '+' && (a->markup || b->markup))
        check_markup(run, a, b);
    if (a->kind == QL_J_UNDEFINED || b->kind == QL_J_UNDEFINED)
        ql_jfail_undefined(run, a->kind == QL_J_UNDEFINED ? a : b);
    if (ql_jis_number(a) && ql_jis_number(b)) {
        bool real = a->kind == QL_J_REAL || b->kind == QL_J_REAL || op == '/';
        return real ? real_arithmetic(run, op, real_of(a), real_of(b))
                    : whole_arithmetic(run, op, ql_jwhole(run, a, 0, ""), ql_jwhole(run, b, 0, ""));
    }
    if (op == '+' && ((a->kind == QL_J_TEXT && b->kind == QL_J_TEXT) || lists))
        return joined(run, a, b);
    if (op == '*' && a->kind == QL_J_INT && b->kind != QL_J_INT)
        return ql_jarithmetic(run, op, b, a);
    if (op == '*' && (a->kind == QL_J_TEXT || (a->kind == QL_J_LIST && !a->list->form)) && b->kind == QL_J_INT)
        return repeated(run, a, b->integer);
    if (op == '%' && a->kind == QL_J_TEXT)
        ql_jfail(run, QL_ERR_UNSUPPORTED, "formatting a string with \"%%\" is not supported");
    ql_jfail(run, QL_ERR_ARG, "\"%s\" of %s and %s", spelled, ql_jkind_name(a), ql_jkind_name(b));
}
