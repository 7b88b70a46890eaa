/* Text to token ids and back, and chat messages to text: Hugging Face's tokenizer.json and the
 * common chat templates. What callers need not know: merges, regular expressions, Unicode. */
#ifndef QLORA_TEXT_H
#define QLORA_TEXT_H

#include "qlora/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A growing array of token ids. Zeroed is empty; the owner frees it with ql_ids_free. */
typedef struct ql_ids {
    int32_t *data;
    size_t count, capacity;
} ql_ids;

QL_API void ql_ids_free(ql_ids *ids); /* leaves it empty */

/* A growing string, always ending in a NUL that length does not count once anything was put in.
 * Zeroed is empty; the owner frees it with ql_text_free. */
typedef struct ql_text {
    char *data;
    size_t length, capacity;
} ql_text;

QL_API void ql_text_free(ql_text *text); /* leaves it empty */

/* A tokenizer. It caches words while it encodes: one thread at a time. */
typedef struct ql_tokenizer ql_tokenizer;

/* Reads MODEL/tokenizer.json, and where they are there tokenizer_config.json,
 * special_tokens_map.json, generation_config.json and config.json for the special tokens and the chat
 * template; or all of it from the metadata of a GGUF file. Known: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM,
 * Mistral Nemo) and SentencePiece-style BPE with byte fallback (Llama 2, Mistral, Gemma, Phi-3). "truncation" and "padding" of the file are ignored: they are settings of
 * whoever saved it. QL_ERR_UNSUPPORTED names a component that is not known. Caller owns *out. */
QL_API ql_status ql_tokenizer_open(ql_tokenizer **out, const char *model, ql_error *err);
QL_API void ql_tokenizer_close(ql_tokenizer *tokenizer); /* NULL is fine */

typedef enum ql_encode_flags {
    QL_ENCODE_PLAIN = 0,
    QL_ENCODE_SPECIALS = 1, /* add what the tokenizer puts around a text: BOS, as a rule */
    QL_ENCODE_LITERAL = 2,  /* "</s>" in the text is four characters, not the special token */
    QL_ENCODE_CONTINUE = 4, /* the text goes on from other text: no dummy space in front */
} ql_encode_flags;

/* Appends the ids of text[length] to *ids. QL_ERR_FORMAT names the byte offset where the text is not
 * UTF-8; *ids is then as it was. Added tokens that are not special ("<tool_call>") are always found. */
QL_API ql_status ql_tokenizer_encode(ql_tokenizer *tokenizer, const char *text, size_t length, unsigned flags,
                                     ql_ids *ids, ql_error *err);

typedef enum ql_decode_flags {
    QL_DECODE_PLAIN = 0,
    QL_DECODE_SKIP_SPECIALS = 1, /* special tokens leave no text */
    QL_DECODE_CONTINUE = 2,      /* the text goes on from other text: keep a leading space */
} ql_decode_flags;

/* Appends the text of ids[count] to *text. Bytes that are no UTF-8 become U+FFFD. QL_ERR_ARG on an id
 * below 0; an id that the vocabulary does not have (models pad their embeddings) leaves no text. */
QL_API ql_status ql_tokenizer_decode(const ql_tokenizer *tokenizer, const int32_t *ids, size_t count, unsigned flags,
                                     ql_text *text, ql_error *err);

/* Decodes while tokens arrive: text comes out as soon as it is whole, never half a character. */
typedef struct ql_decoder ql_decoder;

/* The tokenizer must outlive the decoder. flags as for ql_tokenizer_decode. Caller owns *out. */
QL_API ql_status ql_decoder_create(ql_decoder **out, const ql_tokenizer *tokenizer, unsigned flags, ql_error *err);
/* Takes one id and appends to *text what became whole, maybe nothing. */
QL_API ql_status ql_decoder_push(ql_decoder *decoder, int32_t id, ql_text *text, ql_error *err);
/* Ends the text: appends what was held back, broken characters as U+FFFD. The decoder starts anew. */
QL_API ql_status ql_decoder_finish(ql_decoder *decoder, ql_text *text, ql_error *err);
QL_API void ql_decoder_destroy(ql_decoder *decoder); /* NULL is fine */

QL_API size_t ql_tokenizer_vocab(const ql_tokenizer *tokenizer); /* highest id + 1, added tokens included */
QL_API int32_t ql_tokenizer_bos(const ql_tokenizer *tokenizer);  /* -1 if there is none; so the next three */
QL_API int32_t ql_tokenizer_eos(const ql_tokenizer *tokenizer);
QL_API int32_t ql_tokenizer_pad(const ql_tokenizer *tokenizer);
QL_API int32_t ql_tokenizer_unk(const ql_tokenizer *tokenizer);
QL_API bool ql_tokenizer_adds_bos(const ql_tokenizer *tokenizer); /* with QL_ENCODE_SPECIALS */

/* The token as the vocabulary spells it, NUL-terminated, or NULL. Belongs to the tokenizer. */
QL_API const char *ql_tokenizer_token(const ql_tokenizer *tokenizer, int32_t id);
/* The id of a token spelled as the vocabulary does, or -1. */
QL_API int32_t ql_tokenizer_id(const ql_tokenizer *tokenizer, const char *token);

/* The ids that end an answer: EOS, every eos_token_id of generation_config.json and config.json, and the
 * known ends of a turn ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", ...). Belongs to the tokenizer. */
QL_API const int32_t *ql_tokenizer_ends(const ql_tokenizer *tokenizer, size_t *count);
QL_API bool ql_tokenizer_is_end(const ql_tokenizer *tokenizer, int32_t id);

/* One turn of a chat; content need not end in a NUL. The role is "system", "developer", "user", "assistant", "tool", or
 * one that the model's template speaks of. */
typedef struct ql_message {
    const char *role;
    const char *content;
    size_t length; /* bytes of content */
} ql_message;

/* A rendered chat: text, and how it is cut. Zeroed is empty; free it with ql_chat_free. */
typedef struct ql_chat_piece {
    size_t begin, end; /* bytes of the text; the pieces follow each other without gaps */
    bool literal;      /* somebody's words: special tokens in it are not recognized */
    bool learn;        /* part of an answer: what follows the prompt for it, up to its end token */
} ql_chat_piece;

typedef struct ql_chat {
    ql_text text;
    ql_chat_piece *pieces;
    size_t count, capacity;
    size_t unstable; /* answers that stand behind another text than the template would have prompted with: it is not
                      * prefix-stable for this chat. Their words and end tokens are learned all the same. */
} ql_chat;

QL_API void ql_chat_free(ql_chat *chat); /* leaves it empty */

/* Whether the model carries a chat template. */
QL_API bool ql_tokenizer_has_chat_template(const ql_tokenizer *tokenizer);

/* The names of the templates that are known by name, comma-separated: "chatml, llama2, llama3, zephyr". */
QL_API const char *ql_chat_template_names(void);

/* Renders messages[count] with the model's own chat template, run as Hugging Face's transformers runs it, or, when
 * `name` is not NULL, with the known template of that name or the Jinja file at that path; with add_prompt the header
 * of an answer to come is put at the end. What is learned is what the template puts into {% generation %}, or else each
 * answer from where its prompt ends to its end token. Dates are those of SOURCE_DATE_EPOCH, or 26 July 2024, so that a
 * run can be repeated. *chat must be empty; caller owns what it gets. QL_ERR_UNSUPPORTED names a construct of the
 * template that is not supported, and its line; QL_ERR_ARG when the template refuses the chat. */
QL_API ql_status ql_chat_render(ql_tokenizer *tokenizer, const char *name, const ql_message *messages, size_t count,
                                bool add_prompt, ql_chat *chat, ql_error *err);

/* The same as token ids, appended to *ids. When learn is not NULL it must have held one byte for each id in
 * *ids; it grows with them: 1 where the token belongs to an answer, 0 elsewhere. Any BOS is in it.
 * A prompt and its answer are encoded apart, as they are when the model answers. */
typedef struct ql_marks {
    uint8_t *data;
    size_t count, capacity;
} ql_marks;

QL_API void ql_marks_free(ql_marks *marks); /* leaves it empty */
QL_API ql_status ql_chat_encode(ql_tokenizer *tokenizer, const char *name, const ql_message *messages, size_t count,
                                bool add_prompt, ql_ids *ids, ql_marks *learn, ql_error *err);

#ifdef __cplusplus
}
#endif
#endif
