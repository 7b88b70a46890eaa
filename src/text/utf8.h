/* UTF-8, strictly: no overlong forms, no surrogates, nothing above U+10FFFF (RFC 3629). */
#ifndef QL_SRC_TEXT_UTF8_H
#define QL_SRC_TEXT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What stands at the start of some bytes. */
typedef struct ql_utf8 {
    uint32_t code;  /* the character, when whole */
    uint8_t length; /* bytes of it, at least 1 for a non-empty input; of a bad one, the part that was well-formed */
    enum { QL_UTF8_WHOLE, QL_UTF8_CUT, QL_UTF8_BAD } state; /* CUT: the input ends inside a character */
} ql_utf8;

ql_utf8 ql_utf8_next(const char *text, size_t length);

/* Bytes before the first that is not UTF-8; length when all are. */
size_t ql_utf8_valid(const char *text, size_t length);

size_t ql_utf8_put(uint32_t code, char out[4]); /* returns the bytes written */

/* The character in front of text[at]; text is valid and at > 0. */
uint32_t ql_utf8_before(const char *text, size_t at);

bool ql_is_space(uint32_t code); /* Unicode White_Space */
bool ql_is_word(uint32_t code);  /* letters, marks, digits, letter-like numbers, connectors and joiners */

#endif
