/* Adapters for other programs, and adapters merged into their model. */
#ifndef QLORA_CONVERT_H
#define QLORA_CONVERT_H

#include "qlora/base.h"
#include "qlora/quant.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where an adapter goes. */
typedef enum ql_export {
    QL_EXPORT_PEFT, /* a folder of Hugging Face's PEFT, normalized: plain names, no regular expressions */
    QL_EXPORT_GGUF, /* a file for llama.cpp: F32, rows of q and k in its order, one alpha */
    QL_EXPORT_MLX,  /* a folder of mlx-lm: A and B transposed, one rank and one scale */
} ql_export;

/* Rewrites the PEFT adapter in `adapter` for another program. Of `model` only config.json is read. DoRA goes to PEFT and
 * MLX; GGUF has no word for it (QL_ERR_UNSUPPORTED: merge it instead). Each file appears
 * whole or not at all. What the target cannot say is folded into B (an alpha or a scaling of a layer's own) or padded
 * with zeros (MLX: ranks that differ), so that every layer's s B A stays; values are fp32 throughout. */
QL_API ql_status ql_adapter_export(ql_export target, const char *adapter, const char *model, const char *output,
                                   ql_error *err);

typedef struct ql_merge_options {
    bool as_stored;  /* true: every tensor keeps the type that it has in the model */
    ql_code type;    /* otherwise QL_CODE_F32, F16 or BF16; in GGUF files also Q8_0, Q4_0 or Q4_1 */
    bool quantized;  /* false: add to the weights as stored; true: to what is left of them in `format`, which is
                        what the adapter was trained on; linear layers without an adapter are taken from it too */
    ql_format format;
    bool gguf;       /* write a GGUF file also of a Hugging Face folder; of a GGUF file it always is one */
} ql_merge_options;
QL_API ql_merge_options ql_merge_options_defaults(void);

typedef struct ql_merge_report {
    size_t tensors, merged;  /* written, and those of them that an adapter changed */
    size_t bytes;            /* of the tensors written */
    double max_error;        /* the largest difference between an fp32 value and what it was rounded to */
    char max_error_at[192];  /* its tensor; empty when nothing was rounded */
} ql_merge_report;

/* Writes W + s B A as a Hugging Face folder: model.safetensors, the tokenizer's files as they are, and config.json
 * with the element type. Computed row by row in fp32 and written as it is made: memory holds the adapter and no more
 * than one tensor. Each file appears whole or not at all, config.json last. Merging B = 0 into the model's own types
 * gives its bits. QL_ERR_VALUE names a value too large for F16; QL_ERR_ARG when `output` is the model itself.
 *
 * When `model` is a GGUF file, `output` is one too: with its metadata, tokenizer and order of rows; vectors keep their
 * type, and rows that are no whole blocks become F16. QL_ERR_UNSUPPORTED names a tensor of a type that is not encoded
 * here (Q4_K, ...) when no other is chosen.
 *
 * With options->gguf a folder becomes a GGUF file: architecture and tokenizer in its metadata (QL_ERR_UNSUPPORTED when
 * the format cannot say what tokenizer.json does), q and k in llama.cpp's order, vectors as F32; with Q4_0 or Q4_1
 * embedding and LM head are Q8_0.
 *
 * workers may be NULL; the result does not depend on them. */
QL_API ql_status ql_merge(ql_merge_report *report, const char *model, const char *adapter, const char *output,
                          const ql_merge_options *options, ql_workers *workers, ql_error *err);

#ifdef __cplusplus
}
#endif
#endif
