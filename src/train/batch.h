/* Samples of a data set, one after another without padding, as one batch. */
#ifndef QL_SRC_TRAIN_BATCH_H
#define QL_SRC_TRAIN_BATCH_H

#include "model/pass.h"
#include "qlora/data.h"

typedef struct ql_batcher {
    const ql_dataset *data;
    size_t samples;  /* at most in a batch */
    size_t tokens;   /* at most in a batch */
    size_t longest;  /* inputs of the longest sample */
    int32_t *ids, *target;
    uint32_t *position;
    size_t *start;
    char *memory;
} ql_batcher;

/* Room for any `samples` samples of the data set. QL_ERR_SHAPE when the data does not fit the model: an id
 * outside of its vocabulary or a sample longer than its positions. */
ql_status ql_batcher_init(ql_batcher *batcher, const ql_dataset *data, size_t samples, const ql_model_config *config,
                          ql_error *err);
/* Bytes of its arrays for that many samples of so many inputs at most. */
size_t ql_batcher_bytes(size_t samples, size_t longest);
void ql_batcher_free(ql_batcher *batcher); /* zeroed is fine */

/* The batch of samples order[count], or 0 .. count-1 from `first` when order is NULL. Valid until the next call. */
ql_batch ql_batcher_fill(ql_batcher *batcher, const size_t *order, size_t first, size_t count);

/* Targets that count in these samples. */
size_t ql_batcher_learned(const ql_batcher *batcher, const size_t *order, size_t first, size_t count);

#endif
