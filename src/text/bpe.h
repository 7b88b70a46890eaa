/* Byte-pair encoding of one word: merges in the order of their ranks (Sennrich et al. 2016), with a
 * heap, so that a word of n characters costs n log n. */
#ifndef QL_SRC_TEXT_BPE_H
#define QL_SRC_TEXT_BPE_H

#include "text/vocab.h"

typedef struct ql_bpe_symbol {
    int32_t id; /* -1: merged into the one before */
    uint32_t previous, next;
} ql_bpe_symbol;

typedef struct ql_bpe_cached ql_bpe_cached;

typedef struct ql_bpe {
    const ql_vocab *vocab;
    ql_merges merges;
    bool bytes;         /* byte-level: every byte is a symbol */
    bool fallback;      /* a character without a token becomes its bytes <0x00> .. <0xFF> */
    bool fuse_unk;      /* unknown characters in a row are one unknown token */
    bool ignore_merges; /* a word that is a token is that token */
    int32_t unk;        /* -1: none */
    int32_t byte_ids[256];
    ql_bpe_cached *cache;
    ql_bpe_symbol *symbols; /* workspace of the word at hand */
    size_t symbol_count, symbol_capacity;
    uint64_t *heap; /* rank << 32 | position */
    size_t heap_count, heap_capacity;
    ql_text spelled;
} ql_bpe;

/* Reads the model of type BPE; `bytes` says that the pre-tokenizer is byte-level. The vocabulary is loaded already. */
ql_status ql_bpe_load(ql_bpe *bpe, const ql_vocab *vocab, bool bytes, const ql_json_at *model, ql_error *err);
void ql_bpe_free(ql_bpe *bpe);

/* Appends the ids of word[length]. */
ql_status ql_bpe_encode(ql_bpe *bpe, const char *word, size_t length, ql_ids *ids, ql_error *err);

/* The alphabet of byte-level BPE (GPT-2): the character that stands for a byte, and back (-1: none). */
uint32_t ql_byte_to_char(uint8_t byte);
int ql_char_to_byte(uint32_t code);

#endif
