/* adapter_config.json, apart from the tensors. */
#ifndef QL_SRC_TRAIN_ADAPTER_CONFIG_H
#define QL_SRC_TRAIN_ADAPTER_CONFIG_H

#include "io/json.h"
#include "qlora/adapter.h"

/* A parsed and accepted config. `json` owns all strings; `path` is borrowed. */
typedef struct ql_peft_config {
    json_t *json;
    const char *path;
    ql_adapter_config common;
} ql_peft_config;

/* Zeroes *out on error. */
ql_status ql_peft_config_read(ql_peft_config *out, const char *path, ql_error *err);
void ql_peft_config_free(ql_peft_config *config);

/* What the config says of one module. */
typedef struct ql_peft_target {
    bool adapted;
    size_t rank;
    double scaling;
} ql_peft_target;
ql_status ql_peft_target_of(const ql_peft_config *config, const char *module, ql_peft_target *out, ql_error *err);

/* QL_ERR_UNSUPPORTED when a name of target_modules is the name of none of these modules. */
ql_status ql_peft_targets_exist(const ql_peft_config *config, const ql_adapter_module *modules, size_t count,
                                ql_error *err);

/* names[set->layers]: the modules of the set, for those whose rank or scaling is not the config's. */
ql_status ql_peft_config_write(const char *path, const ql_adapter_config *config, const ql_adapters *set,
                               const char *const *names, ql_error *err);

#endif
