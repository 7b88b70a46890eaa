/* Gradient norm, AdamW and learning-rate schedules over a set of adapters. */
#ifndef QLORA_OPTIM_H
#define QLORA_OPTIM_H

#include "qlora/base.h"
#include "qlora/lora.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The 2-norm of all gradients: a double sum in a fixed order, whatever the number of threads.
 * QL_ERR_VALUE when it is not finite; *norm is set all the same. */
QL_API ql_status ql_grad_norm(double *norm, const ql_adapters *set, ql_workers *workers, ql_error *err);

/* What torch.nn.utils.clip_grad_norm_ multiplies the gradients by: min(1, max_norm / (norm + 1e-6)).
 * 1 when max_norm is 0 (no clipping). */
QL_API double ql_clip_factor(double norm, double max_norm);

/* What the moments are kept in. */
typedef enum ql_optim {
    QL_OPTIM_ADAMW,      /* fp32: 8 bytes a parameter */
    QL_OPTIM_ADAMW_8BIT, /* 8 bits in blocks of 256 that share a scale: 2.03 bytes a parameter */
} ql_optim;

/* "adamw", "adamw8bit"; QL_ERR_ARG names them. */
QL_API ql_status ql_optim_parse(ql_optim *out, const char *name, ql_error *err);
QL_API const char *ql_optim_name(ql_optim kind);

typedef struct ql_adamw_options {
    ql_optim kind;
    double beta1, beta2, eps, weight_decay; /* 0.9, 0.999, 1e-8, 0 */
    double b_ratio; /* what is not A learns with so many times the rate (LoRA+: Hayou et al. 2024); 1 */
} ql_adamw_options;
QL_API ql_adamw_options ql_adamw_options_defaults(void);

/* AdamW (Loshchilov & Hutter 2019) as torch.optim.AdamW computes it: decoupled decay, bias correction, eps
 * added to the corrected root. A step's update comes from its moments before they are rounded to 8 bits. Plain, so
 * that a checkpoint can save and restore it. */
typedef struct ql_adamw {
    ql_adamw_options options;
    size_t count;
    uint64_t step;            /* steps done */
    float *m, *v;             /* [count]; NULL with 8 bits */
    uint8_t *m8, *v8;         /* [count]; NULL with fp32 */
    float *m_scale, *v_scale; /* [(count + 255) / 256] */
    void *memory;             /* all of these, owned */
} ql_adamw;

/* Zeroed moments for `count` parameters; betas in [0, 1), eps > 0, weight_decay >= 0 and b_ratio > 0 or QL_ERR_ARG.
 * On error *out is zeroed. Free with ql_adamw_free. */
QL_API ql_status ql_adamw_init(ql_adamw *out, size_t count, const ql_adamw_options *options, ql_error *err);
QL_API size_t ql_adamw_bytes(ql_optim kind, size_t count); /* that the moments take */
QL_API void ql_adamw_free(ql_adamw *opt);                  /* NULL and zeroed are fine */

/* One step with gradients grad_scale * set->grad, in one pass: moments, masters and fp16 values. The
 * gradients stay as they are. The set has opt->count parameters. */
QL_API void ql_adamw_step(ql_adamw *opt, ql_adapters *set, double lr, double grad_scale, ql_workers *workers);

/* transformers' get_{constant,linear,cosine}_schedule_with_warmup. */
typedef enum ql_schedule { QL_SCHEDULE_CONSTANT, QL_SCHEDULE_LINEAR, QL_SCHEDULE_COSINE } ql_schedule;

/* "constant", "linear", "cosine"; QL_ERR_ARG names them. */
QL_API ql_status ql_schedule_parse(ql_schedule *out, const char *name, ql_error *err);
QL_API const char *ql_schedule_name(ql_schedule schedule);

/* What the learning rate is multiplied by in step `step` (0 for the first) of `steps`. */
QL_API double ql_schedule_factor(ql_schedule schedule, size_t step, size_t warmup_steps, size_t steps);

/* ceil(steps * ratio), as transformers' warmup_ratio; ratio in [0, 1]. */
QL_API size_t ql_warmup_steps(double ratio, size_t steps);

#ifdef __cplusplus
}
#endif
#endif
