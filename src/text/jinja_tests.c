/* Tests of chat templates: {{ x is defined }}. */
#include <string.h>

#include "text/jinja_eval.h"

typedef bool test(ql_jeval *e, const ql_jvalue *v, const ql_jvalue *other);

#define TEST(name, expression)                                                                                         \
    static bool name(ql_jeval *e, const ql_jvalue *v, const ql_jvalue *other)                                          \
    {                                                                                                                  \
        (void)e, (void)v, (void)other;                                                                                 \
        return expression;                                                                                             \
    }

static bool is_number(const ql_jvalue *v)
{
    return v->kind == QL_J_INT || v->kind == QL_J_REAL || v->kind == QL_J_BOOL;
}

/* Python's "is", where that does not depend on what its interpreter shares. */
static bool same_value(ql_jrun *run, const ql_jvalue *a, const ql_jvalue *b)
{
    if (a->kind != b->kind)
        return false;
    if (a->kind == QL_J_INT || a->kind == QL_J_REAL || a->kind == QL_J_TEXT)
        ql_jfail(run, QL_ERR_UNSUPPORTED, "the test \"sameas\" of numbers and strings is not supported: use ==");
    return a->kind == QL_J_BOOL                                ? a->truth == b->truth
           : a->kind == QL_J_LIST                              ? a->list == b->list
           : a->kind == QL_J_DICT || a->kind == QL_J_NAMESPACE ? a->dict == b->dict
                                                               : a->kind == QL_J_NONE;
}

static int64_t rest(ql_jeval *e, const ql_jvalue *v, const ql_jvalue *other)
{
    int64_t by = ql_jwhole(e->run, other, 2, "the divisor"), value = ql_jwhole(e->run, v, 0, "the value");
    if (!by)
        ql_jfail(e->run, QL_ERR_ARG, "division by zero");
    return by == -1 ? 0 : value % by;
}

static int order(ql_jeval *e, const ql_jvalue *v, const ql_jvalue *other)
{
    return ql_jorder(e->run, v, other);
}

TEST(is_boolean, v->kind == QL_J_BOOL)
TEST(is_callable, v->kind == QL_J_CALLABLE || v->kind == QL_J_UNDEFINED)
TEST(is_defined, v->kind != QL_J_UNDEFINED)
TEST(is_divisible, rest(e, v, other) == 0)
TEST(is_equal, ql_jequal(e->run, v, other))
TEST(is_even, rest(e, v, other) == 0)
TEST(is_false, v->kind == QL_J_BOOL && !v->truth)
TEST(is_float, v->kind == QL_J_REAL)
TEST(is_greater, order(e, v, other) == 1)
TEST(is_greater_equal, order(e, v, other) == 1 || order(e, v, other) == 0)
TEST(is_in, ql_jcontains(e->run, other, v))
TEST(is_integer, v->kind == QL_J_INT)
TEST(is_iterable, v->kind == QL_J_LIST || v->kind == QL_J_DICT || v->kind == QL_J_TEXT || v->kind == QL_J_UNDEFINED)
TEST(is_less, order(e, v, other) == -1)
TEST(is_less_equal, order(e, v, other) <= 0)
TEST(is_lower, ql_jall_case(ql_jstr(e->run, v), false))
TEST(is_mapping, v->kind == QL_J_DICT)
TEST(is_none, v->kind == QL_J_NONE)
TEST(is_different, !ql_jequal(e->run, v, other))
TEST(is_numeric, is_number(v))
TEST(is_odd, rest(e, v, other) != 0)
TEST(is_same, same_value(e->run, v, other))
TEST(is_sequence, (v->kind == QL_J_LIST && v->list->form <= QL_J_RANGE) || v->kind == QL_J_DICT ||
                      v->kind == QL_J_TEXT || v->kind == QL_J_UNDEFINED)
TEST(is_string, v->kind == QL_J_TEXT)
TEST(is_true, v->kind == QL_J_BOOL && v->truth)
TEST(is_undefined, v->kind == QL_J_UNDEFINED)
TEST(is_upper, ql_jall_case(ql_jstr(e->run, v), true))

static const struct {
    const char *name;
    size_t arguments;
    test *run;
} tests[] = {
    {"boolean", 0, is_boolean},
    {"callable", 0, is_callable},
    {"defined", 0, is_defined},
    {"divisibleby", 1, is_divisible},
    {"eq", 1, is_equal},
    {"equalto", 1, is_equal},
    {"==", 1, is_equal},
    {"even", 0, is_even},
    {"false", 0, is_false},
    {"float", 0, is_float},
    {"ge", 1, is_greater_equal},
    {">=", 1, is_greater_equal},
    {"gt", 1, is_greater},
    {"greaterthan", 1, is_greater},
    {">", 1, is_greater},
    {"in", 1, is_in},
    {"integer", 0, is_integer},
    {"iterable", 0, is_iterable},
    {"le", 1, is_less_equal},
    {"<=", 1, is_less_equal},
    {"lt", 1, is_less},
    {"lessthan", 1, is_less},
    {"<", 1, is_less},
    {"lower", 0, is_lower},
    {"mapping", 0, is_mapping},
    {"ne", 1, is_different},
    {"!=", 1, is_different},
    {"none", 0, is_none},
    {"number", 0, is_numeric},
    {"odd", 0, is_odd},
    {"sameas", 1, is_same},
    {"sequence", 0, is_sequence},
    {"string", 0, is_string},
    {"true", 0, is_true},
    {"undefined", 0, is_undefined},
    {"upper", 0, is_upper},
};

bool ql_jtest(ql_jeval *e, const ql_jvalue *value, const ql_jargs *args)
{
    ql_jvalue other;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (ql_jis(args->name, tests[i].name)) {
            ql_jarrange(e->run, args, tests[i].arguments ? "other" : "", tests[i].arguments, &other);
            if (!tests[i].arguments)
                other = (ql_jvalue){.kind = QL_J_MISSING};
            return tests[i].run(e, value, &other);
        }
    ql_jfail(e->run, QL_ERR_UNSUPPORTED, "the test \"%.*s\" is not supported",
             args->name.length < 60 ? (int)args->name.length : 60, args->name.data);
}
