/* Which tensors a merged model has, and where they come from. */
#ifndef QL_SRC_TRAIN_MERGE_PLAN_H
#define QL_SRC_TRAIN_MERGE_PLAN_H

#include "model/config_put.h"
#include "qlora/convert.h"
#include "qlora/io.h"
#include "train/layer_list.h"

#define QL_NO_PLACE SIZE_MAX

/* Where a tensor that is written comes from. */
typedef struct ql_merge_entry {
    const ql_tensor *source; /* NULL: the divisors of the rotation, which are computed */
    bool bnb;                /* its values are in bitsandbytes' codes of that name; source has no data */
    size_t place;            /* in adapters.list; QL_NO_PLACE: no weight of a linear layer of a block */
    size_t pairs_of;         /* head_dim when its rows go out in GGUF's pairs; else 0 */
} ql_merge_entry;

/* Zeroed is empty. */
typedef struct ql_merge_plan {
    bool from_gguf, to_gguf;
    ql_merge_options options;
    ql_model_config config;
    ql_tensors *source;
    ql_layer_adapters adapters;
    size_t count, longest; /* tensors written, the longest row of one */
    ql_tensor *tensors;    /* [count] as written: name, type and shape */
    ql_merge_entry *entries;
    ql_tensor *meant;      /* [count] the sources of matrices in bitsandbytes' codes */
    char (*names)[QL_LAYER_NAME + 32];
    float divisors[QL_MAX_HALF];
} ql_merge_plan;

/* Opens model and adapter and decides on the rest; options, from_gguf and to_gguf are set. Free it also after an error.
 */
ql_status ql_merge_plan_make(ql_merge_plan *plan, const char *model, const char *adapter, ql_error *err);
void ql_merge_plan_free(ql_merge_plan *plan);

#endif
