/* The vocabulary (token text <-> id) and the merges of a byte-pair encoding. */
#ifndef QL_SRC_TEXT_VOCAB_H
#define QL_SRC_TEXT_VOCAB_H

#include "io/json.h"
#include "qlora/text.h"

enum { QL_MAX_ID = (1 << 22) - 1 }; /* no model has so many rows of embedding */

typedef struct ql_token {
    size_t begin, length; /* bytes of the vocabulary's texts, a NUL behind; begin 0: no such id */
} ql_token;

typedef struct ql_vocab {
    ql_text texts;
    ql_token *tokens; /* [count], by id */
    size_t count;
    int32_t *slots; /* [mask + 1] ids by hash, -1: free */
    size_t mask;
} ql_vocab;

/* Makes room for every id in model.vocab (text -> id) and below `least`, and puts the texts in. `added` tokens are put
 * later. QL_ERR_FORMAT when there are many more ids than tokens for them. */
ql_status ql_vocab_load(ql_vocab *vocab, const ql_json_at *model, size_t least, size_t added, ql_error *err);
ql_status ql_vocab_put(ql_vocab *vocab, const char *text, size_t length, int64_t id, ql_error *err);
int32_t ql_vocab_find(const ql_vocab *vocab, const char *text, size_t length); /* -1: not there */
const char *ql_vocab_text(const ql_vocab *vocab, int32_t id, size_t *length);  /* NULL: not there; length may be NULL */
void ql_vocab_free(ql_vocab *vocab);

/* Two neighbours that become one; the lowest rank goes first. */
typedef struct ql_merge {
    int32_t left, right; /* left -1: a free slot */
    int32_t merged;
    uint32_t rank;
} ql_merge;

typedef struct ql_merges {
    ql_merge *slots; /* [mask + 1], by hash of (left, right) */
    size_t mask;
} ql_merges;

/* model.merges in both layouts: "a b" and ["a", "b"]. */
ql_status ql_merges_load(ql_merges *merges, const ql_json_at *model, const ql_vocab *vocab, ql_error *err);
const ql_merge *ql_merges_find(const ql_merges *merges, int32_t left, int32_t right); /* NULL: none */

/* Makes an empty table for `count` merges, and puts one in. */
ql_status ql_merges_reserve(ql_merges *merges, size_t count, ql_error *err);
void ql_merges_put(ql_merges *merges, ql_merge merge);
void ql_merges_free(ql_merges *merges);

#endif
