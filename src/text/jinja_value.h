/* Values of chat templates, and the memory and limits of one run over them.
 *
 * Everything lives in the run's pool and goes with it, so nothing is counted or freed one by one. A failure jumps to
 * whoever started the run (ql_jfail does not return), which frees the pool: the code between holds nothing else.
 * Texts remember byte by byte who wrote them, so that words of a chat can be told from the template's own. */
#ifndef QL_SRC_TEXT_JINJA_VALUE_H
#define QL_SRC_TEXT_JINJA_VALUE_H

#include <jansson.h>
#include <setjmp.h>

#include "qlora/base.h"

/* Bytes of UTF-8 and for each its origin: 0 the template, i + 1 message i, QL_J_DATA other data of the chat. */
enum { QL_J_DATA = 0xffff, QL_J_MAX_MESSAGES = 0xfffe };

typedef struct ql_jtext {
    const char *data;
    const uint16_t *origin; /* NULL: all from the template */
    size_t length;
} ql_jtext;

typedef enum ql_jkind {
    QL_J_MISSING, /* an argument that was not given: no value of a template */
    QL_J_UNDEFINED,
    QL_J_NONE,
    QL_J_BOOL,
    QL_J_INT,
    QL_J_REAL,
    QL_J_TEXT,
    QL_J_LIST,
    QL_J_DICT,
    QL_J_CALLABLE,
    QL_J_NAMESPACE,
    QL_J_LOOP,
} ql_jkind;

typedef struct ql_jlist ql_jlist;
typedef struct ql_jdict ql_jdict;
typedef struct ql_jcallable ql_jcallable;
typedef struct ql_jloop ql_jloop;

typedef struct ql_jvalue {
    ql_jkind kind;
    bool markup; /* a text that went through "safe": what is added to it Jinja2 escapes for HTML */
    union {
        bool truth;
        int64_t integer;
        double real;
        ql_jtext text; /* of an undefined value the name that was looked for */
        ql_jlist *list;
        ql_jdict *dict; /* of a namespace too */
        ql_jcallable *callable;
        ql_jloop *loop;
    };
} ql_jvalue;

struct ql_jlist {
    /* a stream is Python's generator: good for one reading; a view is of a dict */
    enum { QL_J_PLAIN, QL_J_TUPLE, QL_J_RANGE, QL_J_STREAM, QL_J_VIEW } form;
    bool spent;
    ql_jvalue *at;
    size_t count, capacity;
};

struct ql_jdict {
    ql_jvalue *keys, *values; /* in the order in which they came */
    size_t count, capacity;
};

/* A loop at work. */
struct ql_jloop {
    const ql_jlist *items;
    size_t index, depth;
};

typedef struct ql_jrun {
    jmp_buf escape;
    ql_error *err;
    ql_status status;
    const char *name; /* of the template, for messages */
    size_t line;
    struct ql_jblock *blocks;
    size_t held, limit; /* bytes */
    size_t steps;       /* left */
    size_t depth;       /* of calls within calls */
} ql_jrun;

enum { QL_J_DEPTH = 256 };

/* The limits of a run over `input` bytes of chat. */
void ql_jrun_start(ql_jrun *run, const char *name, size_t input, ql_error *err);
void ql_jrun_end(ql_jrun *run); /* frees the pool; fine on a zeroed one */

/* What was allocated since a mark can be given back; the steps begin anew. */
typedef struct ql_jmark {
    struct ql_jblock *blocks;
    size_t used, held, steps;
} ql_jmark;

ql_jmark ql_jrun_mark(const ql_jrun *run);
void ql_jrun_release(ql_jrun *run, ql_jmark mark);

/* "name:line: message"; ends the run. */
_Noreturn void ql_jfail(ql_jrun *run, ql_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

void ql_jcharge(ql_jrun *run, size_t steps); /* fails when the run has taken too many */
void ql_jenter(ql_jrun *run);                /* one deeper; fails when that is too deep */
void *ql_jalloc(ql_jrun *run, size_t count, size_t size);

/* A text being put together. */
typedef struct ql_jbuild {
    ql_jrun *run;
    char *data;
    uint16_t *origin; /* NULL while all is the template's */
    size_t length, capacity;
} ql_jbuild;

void ql_jadd(ql_jbuild *build, ql_jtext text);
void ql_jadd_from(ql_jbuild *build, const char *data, size_t length, uint16_t origin);
void ql_jadd_string(ql_jbuild *build, const char *string);
ql_jvalue ql_jbuilt(const ql_jbuild *build);

ql_jtext ql_jstring(const char *string); /* borrowed, the template's */
ql_jtext ql_jslice(ql_jtext text, size_t begin, size_t end);
bool ql_jis(ql_jtext text, const char *string);
bool ql_jsame(ql_jtext a, ql_jtext b);

static inline ql_jvalue ql_jnone(void)
{
    return (ql_jvalue){.kind = QL_J_NONE};
}
static inline ql_jvalue ql_jbool(bool truth)
{
    return (ql_jvalue){.kind = QL_J_BOOL, .truth = truth};
}
static inline ql_jvalue ql_jint(int64_t integer)
{
    return (ql_jvalue){.kind = QL_J_INT, .integer = integer};
}
static inline ql_jvalue ql_jreal(double real)
{
    return (ql_jvalue){.kind = QL_J_REAL, .real = real};
}
static inline ql_jvalue ql_jtextual(ql_jtext text)
{
    return (ql_jvalue){.kind = QL_J_TEXT, .text = text};
}
static inline ql_jvalue ql_jundefined(ql_jtext name)
{
    return (ql_jvalue){.kind = QL_J_UNDEFINED, .text = name};
}
static inline ql_jvalue ql_jlisted(ql_jlist *list)
{
    return (ql_jvalue){.kind = QL_J_LIST, .list = list};
}

ql_jlist *ql_jlist_new(ql_jrun *run, size_t room);
void ql_jappend(ql_jrun *run, ql_jlist *list, ql_jvalue value);
ql_jvalue ql_jpair(ql_jrun *run, ql_jvalue first, ql_jvalue second); /* a tuple */

ql_jdict *ql_jdict_new(ql_jrun *run);
void ql_jput(ql_jrun *run, ql_jdict *dict, ql_jvalue key, ql_jvalue value);
const ql_jvalue *ql_jfind(ql_jrun *run, const ql_jdict *dict, ql_jvalue key); /* NULL: not there */
const ql_jvalue *ql_jfind_named(ql_jrun *run, const ql_jdict *dict, const char *key);

/* JSON as values; its strings come from `origin`. */
ql_jvalue ql_jvalue_of_json(ql_jrun *run, const json_t *json, uint16_t origin);

bool ql_jtruth(const ql_jvalue *value);
bool ql_jequal(ql_jrun *run, const ql_jvalue *a, const ql_jvalue *b);
int ql_jorder(ql_jrun *run, const ql_jvalue *a, const ql_jvalue *b); /* as of Python's <; fails where that does */
const char *ql_jkind_name(const ql_jvalue *value);                   /* "a string" */

/* The items that a loop would see: a list or tuple itself, a dict's keys, a string's characters. */
const ql_jlist *ql_jitems(ql_jrun *run, const ql_jvalue *value);

ql_jtext ql_jstr(ql_jrun *run, const ql_jvalue *value); /* as Python's str() */
size_t ql_jcharacters(ql_jrun *run, ql_jtext text);     /* code points */

/* Python's json.dumps. */
typedef struct ql_jdump {
    bool ascii, sorted;
    int64_t indent; /* -1: on one line */
    ql_jtext between, colon;
} ql_jdump;

ql_jtext ql_jdumps(ql_jrun *run, const ql_jvalue *value, const ql_jdump *how);

/* Adds the shortest digits that read back as the number, as Python spells it. */
void ql_jadd_real(ql_jbuild *build, double real);

#endif
