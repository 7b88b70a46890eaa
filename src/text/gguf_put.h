/* Tokenizers written into GGUF files. */
#ifndef QL_SRC_TEXT_GGUF_PUT_H
#define QL_SRC_TEXT_GGUF_PUT_H

#include "io/gguf_write.h"

/* Appends the metadata tokenizer.* of the tokenizer in a Hugging Face folder, for a model with an embedding of `rows`
 * rows (those beyond the vocabulary become unused tokens). SentencePiece's BPE gets scores in the order of its merges;
 * the kind of a byte-level BPE is told by how it splits. QL_ERR_UNSUPPORTED when GGUF cannot say what it does. */
ql_status ql_tokenizer_put_gguf(ql_gguf_meta *meta, const char *folder, size_t rows, ql_error *err);

#endif
