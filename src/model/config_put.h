/* Writing what config_gguf.c reads. */
#ifndef QL_SRC_MODEL_CONFIG_PUT_H
#define QL_SRC_MODEL_CONFIG_PUT_H

#include "io/gguf_write.h"
#include "qlora/model.h"

enum { QL_MAX_HALF = 128 }; /* frequencies of the rotation: heads have 256 elements at most */

/* What the architecture is called in GGUF files. */
const char *ql_model_config_gguf_arch(const ql_model_config *config);

/* Whether rows of q and k lie in pairs there: element i of a head's first half before element i of the second. */
bool ql_model_config_pairs(const ql_model_config *config);

/* Appends general.architecture and the sizes and constants of the model. */
void ql_model_config_put_gguf(ql_gguf_meta *meta, const ql_model_config *config);

/* What Llama 3's scaling divides each frequency of the rotation by, [head_dim / 2]: the tensor rope_freqs.weight.
 * false: there is no such scaling. */
bool ql_model_config_divisors(const ql_model_config *config, float *divisors);

#endif
