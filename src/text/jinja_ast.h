/* A chat template as tokens and as a tree. */
#ifndef QL_SRC_TEXT_JINJA_AST_H
#define QL_SRC_TEXT_JINJA_AST_H

#include "text/jinja_value.h"

typedef enum ql_jtoken_kind {
    QL_JT_END,
    QL_JT_DATA, /* text outside of tags, as it is to be printed */
    QL_JT_PRINT_BEGIN,
    QL_JT_PRINT_END,
    QL_JT_TAG_BEGIN,
    QL_JT_TAG_END,
    QL_JT_NAME,
    QL_JT_STRING,
    QL_JT_NUMBER,
    QL_JT_OPERATOR,
} ql_jtoken_kind;

/* An operator of two characters as one number. */
#define QL_J_TWO(a, b) ((a) << 8 | (b))

typedef struct ql_jtoken {
    ql_jtoken_kind kind;
    size_t line;
    int op;          /* of an operator */
    ql_jtext text;   /* of data, names and strings, escapes undone */
    ql_jvalue value; /* of a number */
} ql_jtoken;

/* The tokens of source[length], ended by QL_JT_END, with white space controlled as transformers sets it (trim_blocks,
 * lstrip_blocks). */
ql_jtoken *ql_jlex(ql_jrun *run, const char *source, size_t length);

typedef enum ql_jtype {
    /* expressions */
    QL_JN_CONST,
    QL_JN_NAME,
    QL_JN_ATTR,   /* a.text */
    QL_JN_INDEX,  /* a[b] */
    QL_JN_SLICE,  /* a[b:c:d], any of them NULL */
    QL_JN_CALL,   /* a(list) */
    QL_JN_FILTER, /* a | text(list) */
    QL_JN_TEST,   /* a is text(list) */
    QL_JN_NOT,
    QL_JN_SIGN, /* -a or +a: op */
    QL_JN_AND,
    QL_JN_OR,
    QL_JN_BINARY,      /* a op b */
    QL_JN_COMPARE,     /* a, then list of operands with their op */
    QL_JN_CONDITIONAL, /* a if b else c; c may be NULL */
    QL_JN_LIST,
    QL_JN_TUPLE,
    QL_JN_DICT, /* list: key, value, key, value, ... */
    /* statements */
    QL_JN_TEXT,
    QL_JN_PRINT,
    QL_JN_IF,         /* a, body, other */
    QL_JN_FOR,        /* for a in b if c: body, other */
    QL_JN_SET,        /* a = b */
    QL_JN_SET_BODY,   /* a = body, as text */
    QL_JN_MACRO,      /* text, list of parameters (b: default), body */
    QL_JN_GENERATION, /* body */
    QL_JN_BREAK,
    QL_JN_CONTINUE,
} ql_jtype;

enum { QL_JOP_IN = 1, QL_JOP_NOT_IN };

typedef struct ql_jnode ql_jnode;
struct ql_jnode {
    ql_jtype type;
    int op;
    size_t line;
    ql_jtext text;
    ql_jtext keyword; /* of an argument; empty: by position */
    ql_jvalue value;
    ql_jnode *a, *b, *c, *d;
    ql_jnode *list, *body, *other;
    ql_jnode *next; /* in the list that holds it */
};

/* The statements of a template; *generation tells whether a {% generation %} is among them. */
ql_jnode *ql_jparse(ql_jrun *run, const ql_jtoken *tokens, bool *generation);

/* What parser and statements share. */
typedef struct ql_jparser {
    ql_jrun *run;
    const ql_jtoken *at;
    bool generation;
    size_t loops; /* around the place */
} ql_jparser;

_Noreturn void ql_jparse_fail(ql_jparser *p, const char *wanted);
ql_jnode *ql_jparse_node(ql_jparser *p, ql_jtype type);
bool ql_jparse_skip(ql_jparser *p, int op); /* the operator, if it comes next */
bool ql_jparse_skip_name(ql_jparser *p, const char *name);
void ql_jparse_need(ql_jparser *p, int op, const char *spelled);
ql_jtext ql_jparse_name(ql_jparser *p);
ql_jnode *ql_jparse_expression(ql_jparser *p);

/* "a, b" is a tuple, "a" is a. Of targets names and tuples of names; unconditional: without "if" at the outside. */
typedef enum ql_jtuple { QL_JTUPLE_PLAIN, QL_JTUPLE_TARGETS, QL_JTUPLE_UNCONDITIONAL } ql_jtuple;
ql_jnode *ql_jparse_tuple(ql_jparser *p, ql_jtuple kind);

#endif
