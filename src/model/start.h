/* How adapters that are attached begin. */
#ifndef QL_SRC_MODEL_START_H
#define QL_SRC_MODEL_START_H

#include "model/model.h"

/* Whether a model can start adapters so. */
ql_status ql_start_check(const ql_model *model, const ql_lora_options *options, ql_error *err);

/* Fills in the adapters that were just linked, as model->lora says; they hold PEFT's default. PiSSA and LoftQ change
 * the base too, and keep a copy of where they start. */
ql_status ql_start_adapters(ql_model *model, ql_error *err);

#endif
