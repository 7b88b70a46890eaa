/* What the files that read a model's configuration share. */
#ifndef QL_SRC_MODEL_CONFIG_H
#define QL_SRC_MODEL_CONFIG_H

#include "io/json.h"
#include "model/model.h"

/* Reads quantization_config into c->quantized and c->partly; QL_ERR_UNSUPPORTED names any other quantization. */
ql_status ql_model_config_quantized(ql_model_config *c, const ql_json_at *root, ql_error *err);

#endif
