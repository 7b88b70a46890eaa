/* How a data set is kept, and how samples get into it. */
#ifndef QL_SRC_TEXT_DATASET_H
#define QL_SRC_TEXT_DATASET_H

#include "qlora/data.h"

typedef struct ql_entry {
    size_t begin, length; /* of ids and learn */
    bool cut;
} ql_entry;

enum { QL_MAX_WARNINGS = 8 };

struct ql_dataset {
    ql_ids ids;
    ql_marks learn;
    ql_entry *entries; /* [count] */
    size_t count, capacity, skipped;
    size_t sequence; /* T */
    int32_t bos;     /* in front of each sample of a packed text; -1: none */
    ql_ids stream;   /* a packed text, to be packed anew by a split */
    char *warnings[QL_MAX_WARNINGS];
    size_t warning_count;
};

/* Appends a sample, cut to T + 1 tokens; one without a target that counts is skipped. learn NULL: all is learned. */
ql_status ql_dataset_add(ql_dataset *dataset, const int32_t *ids, const uint8_t *learn, size_t length, ql_error *err);

/* Packs the stream into samples, in place of those that are there. */
ql_status ql_dataset_pack(ql_dataset *dataset, ql_error *err);

#endif
