/* Looking into files: what is in them, and what is wrong with them. Nothing is trained and nothing is written. */
#ifndef QLORA_INSPECT_H
#define QLORA_INSPECT_H

#include "qlora/data.h"
#include "qlora/io.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What was found: a fault keeps the file from being used, a warning is worth a look. */
typedef struct ql_finding {
    bool fault;
    char *text; /* a sentence */
} ql_finding;

/* Zeroed is empty; the owner frees it with ql_findings_free. */
typedef struct ql_findings {
    ql_finding *at;
    size_t count, capacity;
} ql_findings;

QL_API size_t ql_findings_faults(const ql_findings *findings);
QL_API void ql_findings_free(ql_findings *findings); /* leaves it empty */

/* A data set as a run with samples of `sequence` targets would meet it. Lengths are tokens of samples before they are
 * cut; samples are the lines that have something to learn, or the pieces of a packed text. */
enum { QL_REVIEW_BINS = 32 };
typedef struct ql_data_review {
    bool packed; /* one text, cut to fit: no sample is too long */
    size_t samples, tokens, learned, sequence;
    size_t shortest, median, p90, p99, longest;
    size_t bins[QL_REVIEW_BINS]; /* [i]: samples of 2^i to 2^(i+1) - 1 tokens */
    size_t skipped;    /* lines with nothing to learn */
    size_t too_long;   /* samples that are cut */
    size_t lost;       /* learned tokens that are cut away */
    size_t emptied;    /* samples with nothing left to learn when they are cut */
    size_t no_end;     /* samples that learn no end token, text apart */
    size_t empty;      /* samples that learn nothing but an end token */
    size_t double_bos; /* samples that begin with two BOS */
    size_t unknown;    /* unknown tokens */
    size_t twice;      /* samples that are there already */
} ql_data_review;

/* Reads the file as ql_dataset_open does, but whole: *data has the samples uncut (those of a packed text at their
 * length). What is worth a warning goes to *findings, sentences for the user. Caller owns *data. */
QL_API ql_status ql_data_review_open(ql_dataset **data, ql_data_review *review, ql_findings *findings, const char *path,
                                     ql_tokenizer *tokenizer, const ql_data_options *options, ql_error *err);

/* Something that a file says of itself. */
typedef struct ql_fact {
    char *name;
    char *text;    /* NULL: it is a number */
    double number; /* of a text 0 */
} ql_fact;

typedef struct ql_facts {
    ql_fact *at;
    size_t count, capacity;
} ql_facts;

/* What is in a file or folder. */
typedef struct ql_inspection ql_inspection;

typedef struct ql_inspect_options {
    bool values;    /* read every weight, and report those that are not finite */
    size_t threads; /* 0: one for each CPU */
} ql_inspect_options;

/* Looks into a Hugging Face folder, a PEFT adapter's folder, a .safetensors file or an index of several, a GGUF file, a
 * checkpoint, a config.json or a tokenizer.json. Damage is a fault among the findings; an error is what keeps it from
 * being looked at at all: no such file (QL_ERR_IO), or none of these kinds (QL_ERR_UNSUPPORTED). Caller owns *out. */
QL_API ql_status ql_inspect(ql_inspection **out, const char *path, const ql_inspect_options *options, ql_error *err);
QL_API void ql_inspection_close(ql_inspection *inspection); /* NULL is fine */

/* "model", "gguf", "adapter", "safetensors", "checkpoint", "config", "tokenizer". */
QL_API const char *ql_inspection_kind(const ql_inspection *inspection);
QL_API const ql_facts *ql_inspection_facts(const ql_inspection *inspection);
QL_API const ql_facts *ql_inspection_metadata(const ql_inspection *inspection); /* arrays and long texts shortened */
QL_API const ql_findings *ql_inspection_findings(const ql_inspection *inspection);
QL_API const ql_tensors *ql_inspection_tensors(const ql_inspection *inspection); /* NULL: none */

#ifdef __cplusplus
}
#endif
#endif
