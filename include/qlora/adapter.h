/* LoRA adapters in the files of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.
 *
 * Whatever PEFT can say and this library cannot honour (biases, other adapter types, ...) is refused
 * by name; nothing is dropped in silence. */
#ifndef QLORA_ADAPTER_H
#define QLORA_ADAPTER_H

#include "qlora/base.h"
#include "qlora/lora.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A linear layer of a model by its Hugging Face name, such as "model.layers.0.self_attn.q_proj". */
typedef struct ql_adapter_module {
    const char *name;
    size_t in_features, out_features;
} ql_adapter_module;

/* The fields of adapter_config.json. Strings are borrowed. */
typedef struct ql_adapter_config {
    size_t rank;
    double alpha;
    bool use_rslora, use_dora;
    double dropout;
    const char *base_model;             /* base_model_name_or_path; may be NULL */
    const char *const *target_modules;  /* last parts of names: "q_proj"; only for writing */
    size_t targets;
} ql_adapter_config;

/* An adapter folder opened for reading. */
typedef struct ql_adapter_file ql_adapter_file;

/* Reads DIR/adapter_config.json and the header of DIR/adapter_model.safetensors. The caller owns *out.
 * QL_ERR_UNSUPPORTED names what cannot be honoured, QL_ERR_FORMAT what is damaged, or that the two files
 * were not saved together. */
QL_API ql_status ql_adapter_file_open(ql_adapter_file **out, const char *dir, ql_error *err);

/* rank and alpha are the defaults; a module may have others (see ql_adapter_file_plan). Strings live as
 * long as the file. */
QL_API ql_adapter_config ql_adapter_file_config(const ql_adapter_file *file);

/* Finds every tensor's module: shapes[count] receives what modules[count] need, rank 0 where there is no
 * adapter. Each targeted module has both tensors, each tensor a targeted module, each name of target_modules
 * a module, and all shapes agree; otherwise the message names the tensor and both shapes. */
QL_API ql_status ql_adapter_file_plan(const ql_adapter_file *file, const ql_adapter_module *modules, size_t count,
                                      ql_adapter_shape *shapes, ql_error *err);

/* Reads the tensors into a set whose layers are those modules that the plan gave a rank, in their order.
 * QL_ERR_VALUE names the tensor of a number that is not finite in FP16. */
QL_API ql_status ql_adapter_file_read(const ql_adapter_file *file, const ql_adapter_module *modules, size_t count,
                                      ql_adapters *set, ql_error *err);

QL_API void ql_adapter_file_close(ql_adapter_file *file); /* NULL is fine */

/* Writes both files (F32) so that PEFT loads them; names[set->layers] as in ql_adapter_module. Layers of another
 * rank or scaling than the config's are listed in rank_pattern and alpha_pattern. Each file appears whole or not at all, the tensors first; they carry the config's numbers,
 * so that tensors of one save and a config of another are found out when they are read. The folder is made
 * when it is missing. QL_ERR_VALUE names the first layer with a number that is not finite: nothing is written. */
QL_API ql_status ql_adapter_file_write(const char *dir, const ql_adapter_config *config, const ql_adapters *set,
                                       const char *const *names, ql_error *err);

#ifdef __cplusplus
}
#endif
#endif
