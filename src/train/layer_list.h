/* The linear layers of a model's blocks under their Hugging Face names. */
#ifndef QL_SRC_TRAIN_LAYER_LIST_H
#define QL_SRC_TRAIN_LAYER_LIST_H

#include "qlora/adapter.h"
#include "model/model.h"

enum { QL_LAYER_NAME = 64 };

/* Entry i is module i % QL_MODULES of block i / QL_MODULES. Zeroed is empty. */
typedef struct ql_layer_list {
    size_t count;
    ql_adapter_module *modules;
    char (*names)[QL_LAYER_NAME]; /* "model.layers.0.self_attn.q_proj" */
} ql_layer_list;

/* Free the list also after an error. */
ql_status ql_layer_list_make(ql_layer_list *list, const ql_model_config *config, ql_error *err);
void ql_layer_list_free(ql_layer_list *list);

/* The names for target_modules of a config whose adapted layers are names[count], of `modules` (bits): "q_proj" when
 * every block has it, whole names when blocks differ. Returns how many went to targets, count at most. */
size_t ql_layer_targets(const ql_model_config *config, unsigned modules, const char *const *names, size_t count,
                        const char **targets);

/* The adapters of a folder for a model of that shape, without the model: fp32 masters. Zeroed is empty. */
typedef struct ql_layer_adapters {
    ql_layer_list list;
    ql_adapter_file *file;
    ql_adapter_config config;  /* as the file says; strings are the file's */
    ql_adapter_shape *shapes;  /* [list.count], rank 0: no adapter */
    const ql_adapter **layers; /* [list.count], NULL: no adapter */
    ql_adapters *set;
} ql_layer_adapters;

/* Free them also after an error. */
ql_status ql_layer_adapters_read(ql_layer_adapters *out, const char *dir, const ql_model_config *config, ql_error *err);
void ql_layer_adapters_free(ql_layer_adapters *adapters);

#endif
