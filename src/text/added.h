/* Added tokens: those that are found in a text before anything else is done to it. */
#ifndef QL_SRC_TEXT_ADDED_H
#define QL_SRC_TEXT_ADDED_H

#include "text/normal.h"
#include "text/vocab.h"

typedef struct ql_added_token {
    int32_t id;
    size_t begin, length; /* what to look for: bytes of the patterns */
    bool special;
    bool normalized;     /* is looked for in the normalized text, and normalized itself */
    bool single_word;    /* only between characters that belong to no word */
    bool lstrip, rstrip; /* swallows the white space on that side */
} ql_added_token;

typedef struct ql_added {
    ql_text patterns;
    ql_added_token *tokens; /* [count] by first byte, the longest first */
    size_t count;
    size_t first[257]; /* tokens that begin with byte b: first[b] .. first[b + 1] */
    uint8_t *kinds;    /* [vocabulary] 0: no added token, 1: added, 2: special */
} ql_added;

/* Highest id among added_tokens, plus one. Wrong types count as nothing: ql_added_load reports them. */
size_t ql_added_reach(const ql_json_at *root);

/* Reads root.added_tokens and puts them into the vocabulary. */
ql_status ql_added_load(ql_added *added, ql_vocab *vocab, const ql_edits *normalizer, const ql_json_at *root,
                        ql_error *err);
void ql_added_free(ql_added *added);

/* Bytes in which special tokens are not recognized. */
typedef struct ql_span {
    size_t begin, end;
} ql_span;

typedef struct ql_literals {
    const ql_span *spans; /* [count], ascending */
    size_t count;
} ql_literals;

typedef struct ql_match {
    size_t begin, end;
    int32_t id;
} ql_match;

/* The first added token in text[from .. length), normalized ones or the others; text before `floor` is spent. The
 * longest of those that begin at the same byte. false: none. */
bool ql_added_find(const ql_added *added, bool normalized, const char *text, size_t length, size_t floor,
                   ql_literals literals, ql_match *match);

#endif
