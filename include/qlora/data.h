/* Data sets for fine-tuning: text and JSON lines become samples of token ids, each with a mark on
 * the tokens that are learned. */
#ifndef QLORA_DATA_H
#define QLORA_DATA_H

#include "qlora/base.h"
#include "qlora/text.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ql_data_format {
    QL_DATA_AUTO,  /* .txt: text; .jsonl, .ndjson: JSON lines; .json: refused; others: JSON lines if they start with "{" */
    QL_DATA_TEXT,  /* one text, packed */
    QL_DATA_JSONL, /* an object a line */
} ql_data_format;

typedef enum ql_bos {
    QL_BOS_AUTO,   /* as the tokenizer does */
    QL_BOS_NEVER,  /* chats keep a BOS that their template writes */
    QL_BOS_ALWAYS, /* QL_ERR_ARG when the tokenizer has none */
} ql_bos;

typedef struct ql_data_options {
    size_t sequence;           /* T, the most targets of a sample; at least 1 */
    ql_data_format format;     /* default QL_DATA_AUTO */
    ql_bos bos;                /* default QL_BOS_AUTO */
    const char *chat_template; /* as `name` of ql_chat_render; NULL: the model's own */
    bool mask_prompt;          /* default true: prompts, users and systems are read, not learned */
} ql_data_options;

/* T = 512 and the defaults above. */
QL_API ql_data_options ql_data_options_defaults(void);

/* One sample of 2 to T + 1 tokens. Its inputs are ids[0 .. length-2], its targets ids[1 .. length-1]:
 * the model reads ids[i-1] and is asked for ids[i]. That target counts in the loss where learn[i] is
 * 1; learn[0] is always 0. Every sample has at least one target that counts. */
typedef struct ql_sample {
    const int32_t *ids;
    const uint8_t *learn;
    size_t length;
} ql_sample;

typedef struct ql_data_stats {
    size_t samples;
    size_t tokens;    /* of all samples */
    size_t learned;   /* targets that count */
    size_t longest;   /* tokens of the longest sample */
    size_t truncated; /* samples cut to T + 1 tokens */
    size_t skipped;   /* lines with nothing to learn within T + 1 tokens: not among the samples; 0 in a held-out part */
} ql_data_stats;

/* Immutable once opened or split: threads may share it. */
typedef struct ql_dataset ql_dataset;

/* Reads the whole file and tokenizes it.
 *
 * Text: tokenized whole and cut into samples of T targets, the last one shorter. With a BOS each sample is BOS and
 * the next T tokens; without one it is T + 1 tokens, the first of which is the last target of the sample before.
 * So every token of the text is a target once (without a BOS: all but the very first).
 *
 * JSON lines, an object a line, blank lines ignored; the keys of the first one say which kind:
 *   {"text": ...}                    a document: BOS if any, the text, EOS; all of it is learned
 *   {"prompt": ..., "completion": ...}  the completion and an EOS are learned
 *   {"messages": [{"role": ..., "content": ...}, ...]}  every answer of the assistant with its end token is learned.
 *     Messages may have "tool_calls" and "reasoning_content"; beside them may stand "tools" (a list, or a string that
 *     holds one), "documents", and "chat_template_kwargs" (more variables of the template: {"enable_thinking": false})
 * Samples are cut after T + 1 tokens, and counted. Special tokens spelled out in a text, prompt or completion are
 * recognized, in messages they are not.
 *
 * Errors name file, line and, for bytes that are not UTF-8, the byte. QL_ERR_FORMAT when nothing is there to learn.
 * The tokenizer is not needed afterwards. Caller owns *out. */
QL_API ql_status ql_dataset_open(ql_dataset **out, const char *path, ql_tokenizer *tokenizer,
                                 const ql_data_options *options, ql_error *err);
/* Samples that the caller tokenized, whole; they are copied. Those without a learned token are skipped;
 * QL_ERR_FORMAT when that leaves none. Caller owns *out. */
QL_API ql_status ql_dataset_from_samples(ql_dataset **out, const ql_sample *samples, size_t count, ql_error *err);

QL_API void ql_dataset_close(ql_dataset *dataset); /* NULL is fine */

/* Whether it is one text, packed. */
QL_API bool ql_dataset_packed(const ql_dataset *dataset);

QL_API size_t ql_dataset_count(const ql_dataset *dataset);
/* Sample index in [0, count). Its arrays belong to the data set. */
QL_API ql_sample ql_dataset_sample(const ql_dataset *dataset, size_t index);
QL_API ql_data_stats ql_dataset_stats(const ql_dataset *dataset);

/* Sentences for the user: samples cut or skipped, no end token. Belong to the data set. */
QL_API size_t ql_dataset_warnings(const ql_dataset *dataset);
QL_API const char *ql_dataset_warning(const ql_dataset *dataset, size_t index);

/* Moves a part, 0 < fraction < 1, into a second data set. seed NULL: the last part, of a text in tokens (both parts
 * are packed anew, so they share no token), of JSON lines in samples. Otherwise samples drawn by the seed.
 * Rounded to nearest, at least one sample; QL_ERR_ARG when either part would be empty. Caller owns *held_out. */
QL_API ql_status ql_dataset_split(ql_dataset *dataset, double fraction, const uint64_t *seed, ql_dataset **held_out,
                                  ql_error *err);

/* Writes a permutation of [0, count) to order[count]: Fisher-Yates, a function of (seed, epoch, count) alone. */
QL_API void ql_dataset_order(const ql_dataset *dataset, uint64_t seed, uint64_t epoch, size_t *order);

#ifdef __cplusplus
}
#endif
#endif
