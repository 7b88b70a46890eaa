/* The run of a chat template: expressions, filters, tests and methods. */
#ifndef QL_SRC_TEXT_JINJA_EVAL_H
#define QL_SRC_TEXT_JINJA_EVAL_H

#include "text/jinja_ast.h"

typedef struct ql_jbinding {
    ql_jtext name;
    ql_jvalue value;
    struct ql_jbinding *next;
} ql_jbinding;

typedef struct ql_jscope {
    struct ql_jscope *parent;
    ql_jbinding *names;
} ql_jscope;

/* Something that can be called. */
struct ql_jcallable {
    enum { QL_J_FUNCTION, QL_J_METHOD, QL_J_MACRO } form;
    ql_jtext name;
    ql_jvalue self;        /* of a method */
    const ql_jnode *macro; /* and where it was defined */
    ql_jscope *scope;
};

/* The arguments of a call. */
typedef struct ql_jargs {
    const char *what; /* what is called: "filter", "test", "method", "function", "macro" */
    ql_jtext name;
    const ql_jvalue *at; /* by position [count] */
    size_t count;
    const ql_jtext *keywords; /* by name [named] */
    const ql_jvalue *values;
    size_t named;
} ql_jargs;

typedef struct ql_jeval {
    ql_jrun *run;
    ql_jscope *scope;
    ql_jbuild *out;
    uint8_t *answer; /* of each byte of the outermost output whether a {% generation %} wrote it */
    size_t answered, answer_capacity;
    size_t loops, captured; /* loops, and macros and sets, around the place */
} ql_jeval;

ql_jvalue ql_jevaluate(ql_jeval *e, const ql_jnode *node);
ql_jvalue ql_jcall(ql_jeval *e, const ql_jvalue *callable, const ql_jargs *args);
ql_jvalue ql_jattribute(ql_jeval *e, const ql_jvalue *of, ql_jtext name);   /* of.name */
ql_jvalue ql_jitem(ql_jeval *e, const ql_jvalue *of, const ql_jvalue *key); /* of[key] */

_Noreturn void ql_jfail_undefined(ql_jrun *run, const ql_jvalue *value);
bool ql_jis_number(const ql_jvalue *value);                                             /* booleans too */
ql_jvalue ql_jarithmetic(ql_jrun *run, int op, const ql_jvalue *a, const ql_jvalue *b); /* and "~" */

ql_jvalue ql_jfilter(ql_jeval *e, const ql_jvalue *value, const ql_jargs *args);
bool ql_jtest(ql_jeval *e, const ql_jvalue *value, const ql_jargs *args);
bool ql_jcontains(ql_jrun *run, const ql_jvalue *all, const ql_jvalue *one); /* one in all */

/* Whether values of that kind have such a method; those that Python has and this evaluator lacks are errors. */
bool ql_jhas_method(ql_jrun *run, const ql_jvalue *value, ql_jtext name);
ql_jvalue ql_jmethod(ql_jeval *e, const ql_jvalue *self, const ql_jargs *args);
bool ql_jis_function(ql_jtext name);
ql_jvalue ql_jfunction(ql_jeval *e, const ql_jargs *args);

void ql_jbind(ql_jeval *e, ql_jtext name, ql_jvalue value); /* in the scope at hand */
ql_jvalue ql_jmacro(ql_jeval *e, const ql_jcallable *macro, const ql_jargs *args);

/* Puts the arguments in the order of `parameters`, names with a space between; those not given are QL_J_MISSING. */
void ql_jarrange(ql_jrun *run, const ql_jargs *args, const char *parameters, size_t required, ql_jvalue *out);

/* Arguments of a kind; a missing one gives the standard. */
int64_t ql_jwhole(ql_jrun *run, const ql_jvalue *value, int64_t standard, const char *what);
ql_jtext ql_jwords(ql_jrun *run, const ql_jvalue *value, const char *standard, const char *what);

/* Texts as Python's string methods treat them. */
typedef enum ql_jside { QL_J_LEFT = 1, QL_J_RIGHT = 2, QL_J_BOTH = 3 } ql_jside;

bool ql_jis_space(uint32_t code);                                                            /* str.isspace */
ql_jtext ql_jstrip(ql_jrun *run, ql_jtext text, const ql_jtext *characters, ql_jside sides); /* NULL: white space */
size_t ql_jsearch(ql_jrun *run, ql_jtext text, ql_jtext what, size_t from);                  /* SIZE_MAX: not there */
ql_jtext ql_jreplace(ql_jrun *run, ql_jtext text, ql_jtext from, ql_jtext to, int64_t most); /* most < 0: all */
typedef enum ql_jcase { QL_J_LOWER, QL_J_UPPER, QL_J_CAPITALIZE, QL_J_TITLE, QL_J_FILTER_TITLE } ql_jcase;
bool ql_jall_case(ql_jtext text, bool upper); /* letters, and all of that case */
ql_jtext ql_jcased(ql_jrun *run, ql_jtext text, ql_jcase how);
ql_jtext ql_jjoin(ql_jrun *run, const ql_jlist *list, ql_jtext between);
ql_jvalue ql_jsplit(ql_jrun *run, ql_jtext text, const ql_jtext *between, int64_t most, bool from_right);
ql_jvalue ql_jsplit_lines(ql_jrun *run, ql_jtext text, bool keep_ends);

#endif
