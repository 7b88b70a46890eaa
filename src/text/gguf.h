/* Tokenizers in GGUF files. */
#ifndef QL_SRC_TEXT_GGUF_H
#define QL_SRC_TEXT_GGUF_H

#include "text/tokenizer.h"

/* tokenizer.ggml.token_type */
enum {
    QL_TOKEN_NORMAL = 1,
    QL_TOKEN_UNKNOWN,
    QL_TOKEN_CONTROL,
    QL_TOKEN_USER_DEFINED,
    QL_TOKEN_UNUSED,
    QL_TOKEN_BYTE
};

/* What a kind of tokenizer fixes. */
typedef struct ql_gguf_kind {
    const char *model, *pre; /* tokenizer.ggml.model, and .pre where that matters */
    bool adds_bos;           /* unless tokenizer.ggml.add_bos_token says otherwise */
    bool ignore_merges;
    const char *steps; /* as tokenizer.json has them */
} ql_gguf_kind;

/* The known kinds in turn; NULL after the last. */
const ql_gguf_kind *ql_gguf_kind_at(size_t index);

/* Fills in a zeroed tokenizer from the metadata of the file: tokenizer.ggml.model "llama" (SentencePiece's BPE, by
 * scores) or "gpt2" (byte-level BPE, by merges) with a known tokenizer.ggml.pre. Others are QL_ERR_UNSUPPORTED. */
ql_status ql_tokenizer_from_gguf(ql_tokenizer *tokenizer, const char *path, ql_error *err);

#endif
