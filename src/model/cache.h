/* The file of packed weights of ql_model_open_cached(). */
#ifndef QL_SRC_MODEL_CACHE_H
#define QL_SRC_MODEL_CACHE_H

#include "model/model.h"

typedef struct ql_cache ql_cache;

/* Looks for the file of that model, whose config, format and files are set. What is wrong with it is said in
 * public->reason and no error: QL_ERR_MEMORY and a folder that cannot be made are. The caller frees *out, but
 * ql_cache_finish() gives what the weights lie in to the model. */
ql_status ql_cache_open(ql_cache **out, ql_model_cache *public, const ql_model *model, const char *path,
                        ql_workers *workers, ql_error *err);

/* The weight `name` from the file; false when there is none. A NULL cache has none. */
bool ql_cache_take(const ql_cache *cache, ql_weight **out, const char *name, size_t n, size_t k);

/* Remembers a weight that was made, if it owns its memory. */
ql_status ql_cache_keep(ql_cache *cache, const char *name, const ql_weight *weight, ql_error *err);

/* After all weights were loaded: the model owns the file that was used, or one is written. A file that cannot be written
 * is said in public->reason. */
void ql_cache_finish(ql_cache *cache, ql_model *model, ql_workers *workers);
void ql_cache_free(ql_cache *cache); /* NULL is fine */

#endif
