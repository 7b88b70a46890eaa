/* A file being looked into. */
#ifndef QL_SRC_TRAIN_INSPECT_H
#define QL_SRC_TRAIN_INSPECT_H

#include "train/findings.h"

struct ql_inspection {
    const char *path, *kind;
    ql_facts facts, metadata;
    ql_findings findings;
    ql_tensors *tensors;
    ql_workers *workers;
    bool failed; /* out of memory */
};

/* Run out of memory, these set `failed`. */
void ql_note(ql_inspection *in, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
void ql_note_number(ql_inspection *in, const char *name, double number);
void ql_note_metadata(ql_inspection *in);
void ql_inspect_fault(ql_inspection *in, const ql_error *err); /* what an error said */
void ql_inspect_find(ql_inspection *in, bool fault, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The parts of a model at `path`: its configuration, its tensors (opened before) and its tokenizer. */
void ql_inspect_model(ql_inspection *in, const char *path);
void ql_inspect_config(ql_inspection *in, const char *path);
void ql_inspect_tokenizer(ql_inspection *in, const char *path, size_t rows); /* rows of the embedding; 0: not known */
void ql_inspect_adapter(ql_inspection *in, const char *path);
void ql_inspect_values(ql_inspection *in);

#endif
