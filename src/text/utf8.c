#include "text/utf8.h"

#include <string.h>
#include <utf8proc.h>

ql_utf8 ql_utf8_next(const char *text, size_t length)
{
    const uint8_t *s = (const uint8_t *)text;
    ql_utf8 c = {s[0], 1, QL_UTF8_WHOLE};
    if (s[0] < 0x80)
        return c;
    size_t need = s[0] >= 0xc2 && s[0] < 0xe0   ? 2
                  : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
                  : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                                : 0;
    if (!need) {
        c.state = QL_UTF8_BAD;
        return c;
    }
    c.code = s[0] & (0x7fu >> need);
    while (c.length < need) {
        if (c.length == length) {
            c.state = QL_UTF8_CUT;
            return c;
        }
        uint8_t low = 0x80, high = 0xbf; /* the second byte rules out overlong forms, surrogates and the far end */
        if (c.length == 1) {
            low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : low;
            high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : high;
        }
        if (s[c.length] < low || s[c.length] > high) {
            c.state = QL_UTF8_BAD;
            return c;
        }
        c.code = c.code << 6 | (s[c.length++] & 0x3f);
    }
    return c;
}

size_t ql_utf8_valid(const char *text, size_t length)
{
    size_t at = 0;
    while (at < length) {
        uint64_t eight;
        if (length - at >= sizeof eight) {
            memcpy(&eight, text + at, sizeof eight);
            if (!(eight & 0x8080808080808080u)) {
                at += sizeof eight;
                continue;
            }
        }
        ql_utf8 c = ql_utf8_next(text + at, length - at);
        if (c.state != QL_UTF8_WHOLE)
            return at;
        at += c.length;
    }
    return at;
}

size_t ql_utf8_put(uint32_t code, char out[4])
{
    return (size_t)utf8proc_encode_char((utf8proc_int32_t)code, (utf8proc_uint8_t *)out);
}

uint32_t ql_utf8_before(const char *text, size_t at)
{
    size_t start = at - 1;
    while (start > 0 && ((uint8_t)text[start] & 0xc0) == 0x80)
        start--;
    return ql_utf8_next(text + start, at - start).code;
}

bool ql_is_space(uint32_t code)
{
    return (code >= 9 && code <= 13) || code == ' ' || code == 0x85 || code == 0xa0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f ||
           code == 0x3000;
}

bool ql_is_word(uint32_t code)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL) || category == UTF8PROC_CATEGORY_PC ||
           code == 0x200c || code == 0x200d;
}
