/* The parts of a tokenizer, for the files of this room. */
#ifndef QL_SRC_TEXT_TOKENIZER_H
#define QL_SRC_TEXT_TOKENIZER_H

#include "text/added.h"
#include "text/bpe.h"
#include "text/normal.h"
#include "text/split.h"
#include "text/vocab.h"

/* How the texts of tokens become text again: the decoder of tokenizer.json. */
typedef struct ql_spelling {
    bool bytes;            /* byte-level alphabet */
    bool fallback;         /* <0x0A> is a byte */
    size_t strip;          /* spaces taken from the front of the whole */
    char from[16], to[16]; /* replaced in each token; from empty: nothing */
} ql_spelling;

/* A chat template that was parsed: the model's own, or the one of that name. */
typedef struct ql_parsed_template {
    char *name;
    struct ql_jinja *jinja; /* NULL: none yet */
} ql_parsed_template;

struct ql_tokenizer {
    ql_vocab vocab;
    ql_added added;
    ql_edits normalizer, prefixes; /* before and after normalized added tokens are looked for */
    ql_splits splits;
    ql_bpe bpe;
    ql_spelling spelling;
    ql_ids before, after; /* what QL_ENCODE_SPECIALS puts around a text */
    int32_t bos, eos, pad, unk;
    ql_ids ends;
    char *chat_template, *tool_template;  /* Jinja text, or NULL; the second for chats with tools */
    ql_parsed_template parsed[2];         /* the last one asked for, without and with tools */
    char *folder;
    ql_text normal[2], prefixed[2]; /* workspaces of encode */
};

/* The member "decoder". */
ql_status ql_spelling_load(ql_spelling *spelling, bool bytes, const ql_json_at *root, ql_error *err);

/* All that a tokenizer.json says: everything but the special tokens and the chat template. */
ql_status ql_tokenizer_load(ql_tokenizer *tokenizer, const ql_json_at *root, ql_error *err);

/* bos .. unk, ends, chat_template, and add_bos_token's say on `before`, from the files beside tokenizer.json. */
ql_status ql_specials_load(ql_tokenizer *tokenizer, ql_error *err);

/* The same from a tokenizer_config.json and a generation_config.json in memory; `file` is for messages. */
ql_status ql_specials_set(ql_tokenizer *tokenizer, const char *file, json_t *tokenizer_config, json_t *generation,
                          ql_error *err);

/* As ql_tokenizer_encode, for text whose place is known and in parts of which special tokens are not recognized. */
ql_status ql_encode_at(ql_tokenizer *tokenizer, ql_place place, const char *text, size_t length, ql_literals literals,
                       ql_ids *ids, ql_error *err);

#endif
