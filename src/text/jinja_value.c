/* Memory, texts, lists and dicts of chat templates. */
#include "text/jinja_value.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/utf8.h"

typedef struct ql_jblock {
    struct ql_jblock *next;
    size_t used, size;
    max_align_t data[];
} block;

enum { BLOCK = 1 << 16, LIMIT = 48 << 20, STEPS = 4 << 20 };

void ql_jrun_start(ql_jrun *run, const char *name, size_t input, ql_error *err)
{
    run->err = err;
    run->status = QL_OK;
    run->name = name;
    run->line = 0;
    run->blocks = NULL;
    run->held = run->depth = 0;
    run->limit = input < (SIZE_MAX >> 10) ? LIMIT + input * 64 : SIZE_MAX;
    run->steps = STEPS + run->limit / 8;
}

ql_jmark ql_jrun_mark(const ql_jrun *run)
{
    return (ql_jmark){run->blocks, run->blocks ? run->blocks->used : 0, run->held, run->steps};
}

void ql_jrun_release(ql_jrun *run, ql_jmark mark)
{
    while (run->blocks != mark.blocks) {
        block *next = run->blocks->next;
        free(run->blocks);
        run->blocks = next;
    }
    if (run->blocks)
        run->blocks->used = mark.used;
    run->held = mark.held;
    run->steps = mark.steps;
}

void ql_jrun_end(ql_jrun *run)
{
    ql_jrun_release(run, (ql_jmark){0});
}

void ql_jfail(ql_jrun *run, ql_status status, const char *format, ...)
{
    char message[700];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    for (char *at = message; (at = strpbrk(at, "\r\n"));)
        *at = ' ';
    run->status = ql_fail(run->err, status, "%s:%zu: %s", run->name, run->line, message);
    longjmp(run->escape, 1);
}

void ql_jcharge(ql_jrun *run, size_t steps)
{
    if (steps > run->steps)
        ql_jfail(run, QL_ERR_UNSUPPORTED, "the template takes too many steps");
    run->steps -= steps;
}

void ql_jenter(ql_jrun *run)
{
    if (++run->depth > QL_J_DEPTH)
        ql_jfail(run, QL_ERR_UNSUPPORTED, "nested deeper than %d", QL_J_DEPTH);
}

void *ql_jalloc(ql_jrun *run, size_t count, size_t size)
{
    size_t bytes, align = _Alignof(max_align_t);
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > run->limit - run->held)
        ql_jfail(run, QL_ERR_UNSUPPORTED, "the template takes more than %zu MiB of memory", run->limit >> 20);
    bytes = (bytes + align - 1) / align * align;
    if (!run->blocks || bytes > run->blocks->size - run->blocks->used) {
        size_t room = bytes > BLOCK / 4 ? bytes : BLOCK;
        block *b = malloc(sizeof *b + room);
        if (!b)
            ql_jfail(run, QL_ERR_MEMORY, "out of memory");
        *b = (block){run->blocks, 0, room};
        run->blocks = b;
    }
    void *memory = (char *)run->blocks->data + run->blocks->used;
    run->blocks->used += bytes;
    run->held = bytes < run->limit - run->held ? run->held + bytes : run->limit;
    return memset(memory, 0, bytes);
}

ql_jtext ql_jstring(const char *string)
{
    return (ql_jtext){string, NULL, strlen(string)};
}

ql_jtext ql_jslice(ql_jtext text, size_t begin, size_t end)
{
    return (ql_jtext){text.data + begin, text.origin ? text.origin + begin : NULL, end - begin};
}

bool ql_jsame(ql_jtext a, ql_jtext b)
{
    return a.length == b.length && (!a.length || memcmp(a.data, b.data, a.length) == 0);
}

bool ql_jis(ql_jtext text, const char *string)
{
    return ql_jsame(text, ql_jstring(string));
}

static void make_room(ql_jbuild *b, size_t more, bool traced)
{
    if (more > b->capacity - b->length) {
        size_t capacity = b->length + more > 64 ? (b->length + more) * 2 : 128;
        char *data = ql_jalloc(b->run, capacity, 1);
        if (b->length)
            memcpy(data, b->data, b->length);
        if (b->origin) {
            uint16_t *origin = ql_jalloc(b->run, capacity, sizeof *origin);
            memcpy(origin, b->origin, b->length * sizeof *origin);
            b->origin = origin;
        }
        b->data = data;
        b->capacity = capacity;
    }
    if (traced && !b->origin)
        b->origin = ql_jalloc(b->run, b->capacity, sizeof *b->origin);
}

void ql_jadd(ql_jbuild *b, ql_jtext text)
{
    if (!text.length)
        return;
    ql_jcharge(b->run, 1 + text.length / 16);
    make_room(b, text.length, text.origin != NULL);
    memcpy(b->data + b->length, text.data, text.length);
    if (text.origin)
        memcpy(b->origin + b->length, text.origin, text.length * sizeof *text.origin);
    b->length += text.length;
}

void ql_jadd_from(ql_jbuild *b, const char *data, size_t length, uint16_t origin)
{
    if (!length)
        return;
    size_t begin = b->length;
    make_room(b, length, origin != 0);
    ql_jadd(b, (ql_jtext){data, NULL, length});
    for (size_t i = 0; origin && i < length; i++)
        b->origin[begin + i] = origin;
}

void ql_jadd_string(ql_jbuild *b, const char *string)
{
    ql_jadd(b, ql_jstring(string));
}

ql_jvalue ql_jbuilt(const ql_jbuild *b)
{
    return ql_jtextual((ql_jtext){b->length ? b->data : "", b->origin, b->length});
}

/* `values` moved to where there is room for one more; *capacity grows. */
static ql_jvalue *grown(ql_jrun *run, ql_jvalue *values, size_t count, size_t capacity)
{
    ql_jvalue *more = ql_jalloc(run, capacity, sizeof *more);
    if (count)
        memcpy(more, values, count * sizeof *more);
    return more;
}

ql_jlist *ql_jlist_new(ql_jrun *run, size_t room)
{
    ql_jlist *list = ql_jalloc(run, 1, sizeof *list);
    list->capacity = room;
    list->at = room ? ql_jalloc(run, room, sizeof *list->at) : NULL;
    return list;
}

void ql_jappend(ql_jrun *run, ql_jlist *list, ql_jvalue value)
{
    if (list->count == list->capacity) {
        list->capacity = list->count < 4 ? 8 : list->count * 2;
        list->at = grown(run, list->at, list->count, list->capacity);
    }
    list->at[list->count++] = value;
}

ql_jvalue ql_jpair(ql_jrun *run, ql_jvalue first, ql_jvalue second)
{
    ql_jlist *list = ql_jlist_new(run, 2);
    list->form = QL_J_TUPLE;
    ql_jappend(run, list, first);
    ql_jappend(run, list, second);
    return ql_jlisted(list);
}

ql_jdict *ql_jdict_new(ql_jrun *run)
{
    return ql_jalloc(run, 1, sizeof(ql_jdict));
}

const ql_jvalue *ql_jfind(ql_jrun *run, const ql_jdict *dict, ql_jvalue key)
{
    if (key.kind == QL_J_LIST && key.list->form != QL_J_TUPLE)
        ql_jfail(run, QL_ERR_ARG, "a list cannot be the key of a dict");
    if (key.kind == QL_J_DICT)
        ql_jfail(run, QL_ERR_ARG, "a dict cannot be the key of a dict");
    ql_jcharge(run, 1 + dict->count / 4);
    for (size_t i = 0; i < dict->count; i++)
        if (ql_jequal(run, &dict->keys[i], &key))
            return &dict->values[i];
    return NULL;
}

const ql_jvalue *ql_jfind_named(ql_jrun *run, const ql_jdict *dict, const char *key)
{
    return ql_jfind(run, dict, ql_jtextual(ql_jstring(key)));
}

void ql_jput(ql_jrun *run, ql_jdict *dict, ql_jvalue key, ql_jvalue value)
{
    const ql_jvalue *there = ql_jfind(run, dict, key);
    if (there) {
        dict->values[there - dict->values] = value;
        return;
    }
    if (dict->count == dict->capacity) {
        dict->capacity = dict->count < 4 ? 8 : dict->count * 2;
        dict->keys = grown(run, dict->keys, dict->count, dict->capacity);
        dict->values = grown(run, dict->values, dict->count, dict->capacity);
    }
    dict->keys[dict->count] = key;
    dict->values[dict->count++] = value;
}

static ql_jvalue text_from(ql_jrun *run, const char *data, size_t length, uint16_t origin)
{
    ql_jbuild b = {.run = run};
    ql_jadd_from(&b, data, length, origin);
    return ql_jbuilt(&b);
}

/* The keys of an object are found as they came: a chat's objects are its own, so no key is there twice. */
static ql_jvalue dict_of_json(ql_jrun *run, const json_t *json, uint16_t origin)
{
    ql_jdict *dict = ql_jdict_new(run);
    json_t *member;
    void *at = json_object_iter((json_t *)json);
    dict->capacity = json_object_size(json);
    dict->keys = ql_jalloc(run, dict->capacity, sizeof *dict->keys);
    dict->values = ql_jalloc(run, dict->capacity, sizeof *dict->values);
    for (; at; at = json_object_iter_next((json_t *)json, at)) {
        const char *key = json_object_iter_key(at);
        member = json_object_iter_value(at);
        dict->keys[dict->count] = text_from(run, key, json_object_iter_key_len(at), origin);
        dict->values[dict->count++] = ql_jvalue_of_json(run, member, origin);
    }
    return (ql_jvalue){.kind = QL_J_DICT, .dict = dict};
}

ql_jvalue ql_jvalue_of_json(ql_jrun *run, const json_t *json, uint16_t origin)
{
    ql_jvalue value = ql_jnone();
    ql_jenter(run);
    if (json_is_object(json))
        value = dict_of_json(run, json, origin);
    else if (json_is_string(json))
        value = text_from(run, json_string_value(json), json_string_length(json), origin);
    else if (json_is_boolean(json))
        value = ql_jbool(json_is_true(json));
    else if (json_is_integer(json))
        value = ql_jint(json_integer_value(json));
    else if (json_is_real(json))
        value = ql_jreal(json_real_value(json));
    else if (json_is_array(json)) {
        value = ql_jlisted(ql_jlist_new(run, json_array_size(json)));
        for (size_t i = 0; i < json_array_size(json); i++)
            ql_jappend(run, value.list, ql_jvalue_of_json(run, json_array_get(json, i), origin));
    }
    run->depth--;
    return value;
}

size_t ql_jcharacters(ql_jrun *run, ql_jtext text)
{
    size_t count = 0;
    ql_jcharge(run, text.length / 16);
    for (size_t i = 0; i < text.length; i++)
        count += ((uint8_t)text.data[i] & 0xc0) != 0x80;
    return count;
}

const ql_jlist *ql_jitems(ql_jrun *run, const ql_jvalue *v)
{
    ql_jlist *list = ql_jlist_new(run, 0);
    switch (v->kind) {
    case QL_J_LIST:
        if (v->list->spent)
            ql_jfail(run, QL_ERR_UNSUPPORTED, "a generator is read a second time: put \"| list\" behind it");
        v->list->spent = v->list->form == QL_J_STREAM;
        return v->list;
    case QL_J_DICT:
        list->at = v->dict->keys;
        list->count = v->dict->count;
        return list;
    case QL_J_TEXT:
        for (size_t at = 0; at < v->text.length;) {
            size_t length = ql_utf8_next(v->text.data + at, v->text.length - at).length;
            ql_jappend(run, list, ql_jtextual(ql_jslice(v->text, at, at + length)));
            at += length;
        }
        return list;
    case QL_J_UNDEFINED:
        return list;
    default:
        ql_jfail(run, QL_ERR_ARG, "%s cannot be iterated", ql_jkind_name(v));
    }
}
