/* Splitting a text into the words that a byte-pair encoding works on: the pre-tokenizer. */
#ifndef QL_SRC_TEXT_SPLIT_H
#define QL_SRC_TEXT_SPLIT_H

#include "text/normal.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

typedef struct ql_split {
    enum {
        QL_SPLIT_REGEX,  /* at the matches of a regular expression */
        QL_SPLIT_BEFORE, /* in front of each `mark` */
    } kind;
    bool removed; /* matches are left out; else they are words of their own, */
    bool merged;  /* or end the word before them */
    bool invert;  /* matches are what lies between the matches */
    bool runs;    /* marks that follow each other stay together */
    char mark[16];
    pcre2_code *code;
    pcre2_match_data *match;
} ql_split;

typedef struct ql_splits {
    ql_split list[8];
    size_t count;
    bool bytes; /* words are written in the alphabet of byte-level BPE */
} ql_splits;

/* The member "pre_tokenizer": ByteLevel, Split, Digits, Metaspace or a sequence of them; null is none.
 * What changes the text (a prefix, the mark of a space) goes to `edits`. */
ql_status ql_splits_load(ql_splits *splits, ql_edits *edits, const ql_json_at *root, ql_error *err);
void ql_splits_free(ql_splits *splits);

/* Splits in front of each run of marks, after the steps so far. false: there are too many. */
bool ql_splits_add_runs(ql_splits *splits, const char *mark);

typedef ql_status ql_word(void *ctx, const char *word, size_t length, ql_error *err);

/* Calls word() for each word of text[length], valid UTF-8, in order; none is empty. */
ql_status ql_splits_apply(const ql_splits *splits, const char *text, size_t length, ql_word *word, void *ctx,
                          ql_error *err);

#endif
