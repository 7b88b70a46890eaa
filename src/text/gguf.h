/* Tokenizers in GGUF files. */
#ifndef QL_SRC_TEXT_GGUF_H
#define QL_SRC_TEXT_GGUF_H

#include "text/tokenizer.h"

/* Fills in a zeroed tokenizer from the metadata of the file: tokenizer.ggml.model "llama" (SentencePiece's BPE, by
 * scores) or "gpt2" (byte-level BPE, by merges) with a known tokenizer.ggml.pre. Others are QL_ERR_UNSUPPORTED. */
ql_status ql_tokenizer_from_gguf(ql_tokenizer *tokenizer, const char *path, ql_error *err);

#endif
