/* How libFuzzer changes inputs here: half of the time as it always does, otherwise a JSON value in them becomes another
 * one, so that what comes out is mostly still JSON. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

static const char *const values[] = {
    "0", "-1", "1", "2", "3", "8", "255", "1048576", "4194303", "9223372036854775807", "18446744073709551616", "1e400",
    "0.5", "1.5", "null", "true", "false", "[]", "{}", "\"\"", "\"a\"", "\" \"", "\"\\u0000\"", "[0]", "[[]]", "{\"a\":1}",
};
enum { VALUES = sizeof values / sizeof *values };

typedef struct span {
    size_t begin, end;
} span;

static size_t string_end(const uint8_t *data, size_t size, size_t at)
{
    for (at++; at < size && data[at] != '"'; at++)
        at += data[at] == '\\';
    return at < size ? at + 1 : size;
}

static size_t bracket_end(const uint8_t *data, size_t size, size_t at)
{
    size_t depth = 0;
    while (at < size) {
        if (data[at] == '"') {
            at = string_end(data, size, at);
            continue;
        }
        depth += data[at] == '{' || data[at] == '[';
        depth -= data[at] == '}' || data[at] == ']';
        at++;
        if (!depth)
            return at;
    }
    return size;
}

/* The first value that begins at or after `from`; false: there is none. */
static bool find_value(const uint8_t *data, size_t size, size_t from, span *out)
{
    static const char word[] = "-+.0123456789abcdefghijklmnopqrstuvwxyzE";
    size_t at = from;
    while (at < size && !(data[at] && strchr("\"{[-0123456789tfn", data[at])))
        at++;
    if (at >= size)
        return false;
    out->begin = out->end = at;
    if (data[at] == '"')
        out->end = string_end(data, size, at);
    else if (data[at] == '{' || data[at] == '[')
        out->end = bracket_end(data, size, at);
    else
        while (out->end < size && data[out->end] && strchr(word, data[out->end]))
            out->end++;
    return out->end > out->begin;
}

static size_t replace(uint8_t *data, size_t size, size_t max, span old, const uint8_t *text, size_t length)
{
    size_t rest = size - old.end;
    if (old.begin + length + rest > max)
        return size;
    memmove(data + old.begin + length, data + old.end, rest);
    if (length)
        memcpy(data + old.begin, text, length);
    return old.begin + length + rest;
}

/* Names stay names: another string takes the place of one that a colon follows. */
static bool is_name(const uint8_t *data, size_t size, span s)
{
    return data[s.begin] == '"' && s.end < size && data[s.end] == ':';
}

static size_t change_value(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    unsigned dice = seed >> 20;
    span old, other;
    if (!find_value(data, size, seed % size, &old))
        return size;
    bool copies = dice & 1 && find_value(data, size, (seed / 7) % size, &other) && other.end - other.begin < 4096;
    if (!copies && !is_name(data, size, old)) {
        const char *value = values[dice / 2 % VALUES];
        return replace(data, size, max, old, (const uint8_t *)value, strlen(value));
    }
    if (!copies || (is_name(data, size, old) && data[other.begin] != '"'))
        return size;
    uint8_t copy[4096];
    size_t length = other.end - other.begin;
    memcpy(copy, data + other.begin, length);
    if (dice & 2) /* before it, as one more of a list or an object */
        old.end = old.begin;
    if (dice & 2 && length < sizeof copy)
        copy[length++] = ',';
    return replace(data, size, max, old, copy, length);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    size_t changed = size;
    if (size && seed & 1)
        changed = change_value(data, size, max, seed >> 1);
    return changed == size ? LLVMFuzzerMutate(data, size, max) : changed;
}
