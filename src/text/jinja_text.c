/* What Python's string methods do, over UTF-8 whose bytes keep their origin. */
#include <string.h>
#include <utf8proc.h>

#include "text/jinja_eval.h"
#include "text/utf8.h"

bool ql_jis_space(uint32_t code)
{
    return ql_is_space(code) || (code >= 0x1c && code <= 0x1f);
}

static bool within(ql_jtext characters, const char *one, size_t length)
{
    for (size_t at = 0; at + length <= characters.length;
         at += ql_utf8_next(characters.data + at, characters.length - at).length)
        if (memcmp(characters.data + at, one, length) == 0)
            return true;
    return false;
}

static bool strips(const char *at, size_t length, const ql_jtext *characters)
{
    ql_utf8 c = ql_utf8_next(at, length);
    return characters ? within(*characters, at, c.length) : ql_jis_space(c.code);
}

ql_jtext ql_jstrip(ql_jrun *run, ql_jtext text, const ql_jtext *characters, ql_jside sides)
{
    size_t begin = 0, end = text.length, cost = characters ? 1 + characters->length / 16 : 1;
    while (sides & QL_J_LEFT && begin < end && strips(text.data + begin, end - begin, characters)) {
        begin += ql_utf8_next(text.data + begin, end - begin).length;
        ql_jcharge(run, cost);
    }
    while (sides & QL_J_RIGHT && end > begin) {
        size_t last = end - 1;
        while (last > begin && ((uint8_t)text.data[last] & 0xc0) == 0x80)
            last--;
        if (!strips(text.data + last, end - last, characters))
            break;
        end = last;
        ql_jcharge(run, cost);
    }
    return ql_jslice(text, begin, end);
}

size_t ql_jsearch(ql_jrun *run, ql_jtext text, ql_jtext what, size_t from)
{
    ql_jcharge(run, 1 + (text.length - from) / 64);
    if (what.length > text.length - from)
        return SIZE_MAX;
    for (size_t at = from; at <= text.length - what.length; at++) {
        const char *first =
            what.length ? memchr(text.data + at, what.data[0], text.length - what.length - at + 1) : text.data + at;
        if (!first)
            return SIZE_MAX;
        at = (size_t)(first - text.data);
        ql_jcharge(run, 1 + what.length / 64);
        if (!what.length || memcmp(first, what.data, what.length) == 0)
            return at;
    }
    return SIZE_MAX;
}

ql_jtext ql_jreplace(ql_jrun *run, ql_jtext text, ql_jtext from, ql_jtext to, int64_t most)
{
    ql_jbuild out = {.run = run};
    size_t at = 0;
    if (!from.length)
        ql_jfail(run, QL_ERR_UNSUPPORTED, "replacing an empty string is not supported");
    for (size_t found; most && (found = ql_jsearch(run, text, from, at)) != SIZE_MAX; most--) {
        ql_jadd(&out, ql_jslice(text, at, found));
        ql_jadd(&out, to);
        at = found + from.length;
    }
    ql_jadd(&out, ql_jslice(text, at, text.length));
    return ql_jbuilt(&out).text;
}

/* Characters whose other case is not one character, or depends on those around it. */
static bool has_special_case(uint32_t c, bool upper)
{
    if (!upper)
        return c == 0x130 || c == 0x3a3;
    return c == 0xdf || c == 0x149 || c == 0x1f0 || c == 0x390 || c == 0x3b0 || c == 0x587 ||
           (c >= 0x1e96 && c <= 0x1e9a) || (c >= 0x1f50 && c <= 0x1fff) || (c >= 0xfb00 && c <= 0xfb17);
}

static void add_cased(ql_jbuild *out, ql_jtext text, size_t at, ql_utf8 c, bool upper)
{
    char bytes[4];
    if (has_special_case(c.code, upper))
        ql_jfail(out->run, QL_ERR_UNSUPPORTED, "the other case of U+%04X is not supported", c.code);
    utf8proc_int32_t other =
        upper ? utf8proc_toupper((utf8proc_int32_t)c.code) : utf8proc_tolower((utf8proc_int32_t)c.code);
    ql_jadd_from(out, bytes, ql_utf8_put((uint32_t)other, bytes), text.origin ? text.origin[at] : 0);
}

static bool is_cased(uint32_t code)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)code);
    return c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LL || c == UTF8PROC_CATEGORY_LT;
}

bool ql_jall_case(ql_jtext text, bool upper)
{
    bool letters = false;
    for (size_t at = 0; at < text.length;) {
        ql_utf8 c = ql_utf8_next(text.data + at, text.length - at);
        utf8proc_category_t kind = utf8proc_category((utf8proc_int32_t)c.code);
        if (kind == UTF8PROC_CATEGORY_LT || kind == (upper ? UTF8PROC_CATEGORY_LL : UTF8PROC_CATEGORY_LU))
            return false;
        letters = letters || is_cased(c.code);
        at += c.length;
    }
    return letters;
}

ql_jtext ql_jcased(ql_jrun *run, ql_jtext text, ql_jcase how)
{
    ql_jbuild out = {.run = run};
    bool start = true; /* of the text, or of a word */
    for (size_t at = 0; at < text.length;) {
        ql_utf8 c = ql_utf8_next(text.data + at, text.length - at);
        add_cased(&out, text, at, c, how == QL_J_UPPER || (how != QL_J_LOWER && start));
        /* Python's title() starts words behind what has no case, Jinja's filter behind white space, -, ( [ { and < */
        start = how == QL_J_TITLE
                    ? !is_cased(c.code)
                    : how == QL_J_FILTER_TITLE &&
                          (ql_jis_space(c.code) || (c.code && c.code < 0x80 && strchr("-([{<", (int)c.code)));
        at += c.length;
    }
    return ql_jbuilt(&out).text;
}

ql_jtext ql_jjoin(ql_jrun *run, const ql_jlist *list, ql_jtext between)
{
    ql_jbuild out = {.run = run};
    for (size_t i = 0; i < list->count; i++) {
        if (i)
            ql_jadd(&out, between);
        ql_jadd(&out, ql_jstr(run, &list->at[i]));
    }
    return ql_jbuilt(&out).text;
}

static void split_words(ql_jrun *run, ql_jlist *parts, ql_jtext text, int64_t most)
{
    for (text = ql_jstrip(run, text, NULL, QL_J_LEFT); text.length;) {
        size_t end = 0;
        while (end < text.length && !strips(text.data + end, text.length - end, NULL))
            end += ql_utf8_next(text.data + end, text.length - end).length;
        ql_jcharge(run, 1 + end / 16);
        if (most-- == 0)
            end = text.length;
        ql_jtext part = ql_jslice(text, 0, end);
        text = ql_jstrip(run, ql_jslice(text, end, text.length), NULL, QL_J_LEFT);
        ql_jappend(run, parts, ql_jtextual(part));
    }
}

static void split_at(ql_jrun *run, ql_jlist *parts, ql_jtext text, ql_jtext between, int64_t most)
{
    size_t at = 0;
    for (size_t found; most && (found = ql_jsearch(run, text, between, at)) != SIZE_MAX; most--) {
        ql_jappend(run, parts, ql_jtextual(ql_jslice(text, at, found)));
        at = found + between.length;
    }
    ql_jappend(run, parts, ql_jtextual(ql_jslice(text, at, text.length)));
}

/* The last place of a text in another; SIZE_MAX: none. */
static size_t search_back(ql_jrun *run, ql_jtext text, ql_jtext what)
{
    for (size_t at = text.length + 1; at-- > 0;) {
        ql_jcharge(run, 1 + what.length / 64);
        if (what.length <= text.length - at && memcmp(text.data + at, what.data, what.length) == 0)
            return at;
    }
    return SIZE_MAX;
}

static void split_back(ql_jrun *run, ql_jlist *parts, ql_jtext text, ql_jtext between, int64_t most)
{
    for (size_t found; most && (found = search_back(run, text, between)) != SIZE_MAX; most--) {
        ql_jappend(run, parts, ql_jtextual(ql_jslice(text, found + between.length, text.length)));
        text = ql_jslice(text, 0, found);
    }
    ql_jappend(run, parts, ql_jtextual(text));
    for (size_t i = 0, k = parts->count - 1; i < k; i++, k--) {
        ql_jvalue kept = parts->at[i];
        parts->at[i] = parts->at[k];
        parts->at[k] = kept;
    }
}

ql_jvalue ql_jsplit(ql_jrun *run, ql_jtext text, const ql_jtext *between, int64_t most, bool from_right)
{
    ql_jlist *parts = ql_jlist_new(run, 0);
    if (between && !between->length)
        ql_jfail(run, QL_ERR_ARG, "split: an empty separator");
    if (!between && from_right && most >= 0)
        ql_jfail(run, QL_ERR_UNSUPPORTED, "rsplit at white space a number of times is not supported");
    if (!between)
        split_words(run, parts, text, most);
    else if (from_right && most >= 0)
        split_back(run, parts, text, *between, most);
    else
        split_at(run, parts, text, *between, most);
    return ql_jlisted(parts);
}

static bool ends_line(uint32_t code)
{
    return (code >= '\n' && code <= '\r') || (code >= 0x1c && code <= 0x1e) || code == 0x85 || code == 0x2028 ||
           code == 0x2029;
}

ql_jvalue ql_jsplit_lines(ql_jrun *run, ql_jtext text, bool keep_ends)
{
    ql_jlist *lines = ql_jlist_new(run, 0);
    for (size_t begin = 0, at = 0; at < text.length;) {
        ql_utf8 c = ql_utf8_next(text.data + at, text.length - at);
        size_t end = at;
        bool ends = ends_line(c.code);
        at += c.length;
        at += c.code == '\r' && at < text.length && text.data[at] == '\n';
        ql_jcharge(run, 1);
        if (ends || at == text.length)
            ql_jappend(run, lines, ql_jtextual(ql_jslice(text, begin, ends && !keep_ends ? end : at)));
        begin = ends ? at : begin;
    }
    return ql_jlisted(lines);
}
