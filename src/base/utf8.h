#ifndef QL_SRC_BASE_UTF8_H
#define QL_SRC_BASE_UTF8_H

#include <stddef.h>

/* The bytes of the UTF-8 character at NUL-terminated text, 1 to 4; 0 when it is none (a stray or missing
 * continuation byte, an overlong form, a surrogate, beyond U+10FFFF). */
static inline size_t ql_utf8_length(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80)
        return 1;
    size_t length = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    unsigned low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    unsigned high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    if (s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    return length;
}

#endif
