/* Numbers that are not finite: found, and named by layer and sample. */
#ifndef QL_SRC_TRAIN_HEALTH_H
#define QL_SRC_TRAIN_HEALTH_H

#include "train/trainer.h"

/* QL_ERR_VALUE names the first adapter with a number that is not finite in FP16. */
ql_status ql_health_adapters(const ql_trainer *trainer, ql_error *err);

/* After a forward pass with a logit that is not finite, of token `bad` of the batch whose first sample is
 * order[first]: QL_ERR_VALUE with the sample and the part of the model where it began. */
ql_status ql_health_logits(ql_trainer *trainer, const ql_batch *batch, size_t bad, size_t first,
                           const ql_dropout *dropout, ql_error *err);

/* After gradients of samples order[first .. first + count) that are not finite: QL_ERR_VALUE with the layer where
 * the backward pass met it first and the sample; finding that computes the gradients of each again. */
ql_status ql_health_gradients(ql_trainer *trainer, size_t first, size_t count, double norm, ql_error *err);

#endif
