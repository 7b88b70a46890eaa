/* Frozen weights in block formats, and the two products of a linear layer taken straight from them.
 *
 * Callers need not know how the codes are laid out: a weight is packed once, and the same copy
 * serves y = x W^T, dx = dy W and decoding. Nothing here opens a file. */
#ifndef QLORA_QUANT_H
#define QLORA_QUANT_H

#include "qlora/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How one element is coded. A code stands for the value of the format that is nearest to x / scale; the scale
 * is rounded to the format's precision first. NF4 and FP4: the scale is the group's largest magnitude.
 * INT8: largest / 127, ties to even. INT4: codes -8..7 and the scale among largest / {7, 7.5, 8, 8.5, 9}
 * whose squared error is least (on normal values a fifth below that of largest / 7, within 2 % of a signed
 * scale such as q4_0's, which double quantization could not hold). */
typedef enum ql_code {
    QL_CODE_F32,  /* dense: as they are, no quantization ("none") */
    QL_CODE_F16,  /* dense fp16 */
    QL_CODE_BF16, /* dense bf16 */
    QL_CODE_INT8, /* signed 8-bit integers, symmetric */
    QL_CODE_INT4, /* signed 4-bit integers, symmetric */
    QL_CODE_NF4,  /* 4-bit NormalFloat (Dettmers et al. 2023), bitsandbytes' table */
    QL_CODE_FP4,  /* 4-bit float, bitsandbytes' table */
    QL_CODE_Q8_0, /* from here on: ggml's blocks, whose scales lie among their codes; of 32 values */
    QL_CODE_Q4_0,
    QL_CODE_Q4_1,
    QL_CODE_Q4_K, /* of 256 values */
    QL_CODE_Q5_K,
    QL_CODE_Q6_K,
} ql_code;

/* How the scale of a group is stored. Scales are not negative. FP16 scales reach from 2^-24 (a group that is not
 * zero never gets a scale of zero, but below about 6e-5 they lose precision) to 65504; a larger one is refused. */
typedef enum ql_scale {
    QL_SCALE_NONE,       /* dense codes have none, ggml's blocks none apart */
    QL_SCALE_F16,        /* one fp16 a group */
    QL_SCALE_DQ,         /* double quantization: an unsigned 8-bit code a group, and for each 256
                            groups (of the row-major [n][groups] array) an fp16 step and offset:
                            scale = fma(code, step, offset) in fp32, within half a step, which is
                            1/255 of the range of those scales; groups of zeros do not count */
    QL_SCALE_F32,        /* bitsandbytes: one fp32 absmax a group */
    QL_SCALE_BNB_NESTED, /* bitsandbytes' nested quantization: map[code] * absmax2 + offset */
} ql_scale;

/* A weight format. Groups run along k; a row may end in a partial group. With `flat` they run over
 * the row-major matrix and cross row ends, as bitsandbytes' blocks do. */
typedef struct ql_format {
    ql_code code;
    ql_scale scale;
    uint32_t group; /* elements that share a scale: 32, 64, 128, 256 (bitsandbytes: 32..4096) */
    bool flat;
} ql_format;

/* NF4, groups of 64, double quantization. */
QL_API ql_format ql_format_default(void);

/* "nf4", "fp4", "int4", "int8", or "bnb-nf4" and "bnb-fp4" as bitsandbytes lays them out, with group and double_quant;
 * or "none"/"f32", "f16", "bf16".
 * QL_ERR_ARG names the formats there are. */
QL_API ql_status ql_format_parse(ql_format *out, const char *name, uint32_t group, bool double_quant, ql_error *err);

/* Writes a name such as "nf4 g64 dq" into text; returns text. */
QL_API const char *ql_format_describe(ql_format format, char text[48]);

/* The bytes that a weight W[n][k] holds, by class; exact: ql_weight_bytes() of the real one agrees. Rows of codes
 * are padded to 64 elements, and each array to a cache line. Blocks of bitsandbytes' nested scales are 256. */
typedef struct ql_weight_size {
    size_t codes, scales; /* bytes; scales include the double-quantization constants */
} ql_weight_size;
QL_API ql_status ql_format_size(ql_weight_size *out, ql_format format, size_t n, size_t k, ql_error *err);

/* A frozen weight W[n][k]. Immutable, so threads may share it. */
typedef struct ql_weight ql_weight;

/* Quantizes src[n][k], rows ld elements of `type` (F32, F16, BF16) apart, threaded; src need not be aligned.
 * `name` is used in messages. The caller owns *out; NULL on error. QL_ERR_VALUE names the row and
 * column of the first NaN, infinity or value too large for a dense format, or the row and group of the
 * first scale too large for FP16. workers may be NULL (one thread); the result does not depend on them.
 * `flat` is dropped where groups end with the rows. */
QL_API ql_status ql_weight_quantize(ql_weight **out, ql_format format, const char *name, const void *src,
                                    ql_dtype type, size_t ld, size_t n, size_t k, ql_workers *workers, ql_error *err);

/* A dense weight that borrows src (contiguous, aligned to its type) instead of copying: src must
 * outlive it. It owns no bytes. Not checked for NaN. */
QL_API ql_status ql_weight_borrow(ql_weight **out, const void *src, ql_dtype type, size_t n, size_t k, ql_error *err);

/* A weight of ggml's blocks, QL_CODE_Q8_0 to QL_CODE_Q6_K, multiplied as they are: k / block of them a row, rows one
 * after another, nothing aligned, as in a GGUF file. It borrows them (they must outlive it, and it owns no bytes), or
 * copies them with `copy`. Values are bit for bit what ggml dequantizes. QL_ERR_SHAPE when a row is no whole blocks
 * or `bytes` is not what W[n][k] takes. Scales are not checked for NaN. */
QL_API ql_status ql_weight_from_blocks(ql_weight **out, ql_code code, const char *name, const void *blocks,
                                       size_t bytes, size_t n, size_t k, bool copy, ql_error *err);

/* x[count] in ggml's blocks, with the bits of its quantize_row_*_ref functions: Q8_0, Q4_0 or Q4_1; others are
 * QL_ERR_UNSUPPORTED. count: whole blocks of 32, else QL_ERR_SHAPE. QL_ERR_VALUE names a NaN or an infinity. */
QL_API ql_status ql_blocks_encode(ql_code code, const char *name, const float *x, size_t count, void *blocks,
                                  ql_error *err);

/* "Q8_0" or "q8_0" and so on; false for names that are none of ggml's blocks here. */
QL_API bool ql_code_of_blocks(ql_code *out, const char *name);

/* A 4-bit weight as bitsandbytes stores it: packed nibbles (first element in the high one), flattened
 * row-major, fp32 absmax a block, or nested: 8-bit codes of absmax with absmax2 a nested_block, a
 * 256-entry map and an offset. Values are bit for bit what bitsandbytes dequantizes. */
typedef struct ql_bnb_source {
    ql_code code; /* QL_CODE_NF4 or QL_CODE_FP4 */
    uint32_t block, nested_block; /* nested_block 0: not nested */
    const uint8_t *packed;        /* (n*k + 1) / 2 bytes */
    const float *absmax;          /* [blocks], not nested */
    const uint8_t *absmax_codes;  /* [blocks], nested */
    const float *absmax2;         /* [ceil(blocks / nested_block)] */
    const float *map;             /* [256] */
    float offset;
} ql_bnb_source;
QL_API ql_status ql_weight_from_bnb(ql_weight **out, const char *name, const ql_bnb_source *src, size_t n, size_t k,
                                    ql_error *err);

/* The other way, for a weight of bitsandbytes' formats: writes (n*k + 1) / 2 bytes to packed and points the
 * rest of *out into the weight. QL_ERR_UNSUPPORTED for other formats. */
QL_API ql_status ql_weight_to_bnb(const ql_weight *w, ql_bnb_source *out, uint8_t *packed, ql_error *err);

QL_API size_t ql_weight_rows(const ql_weight *w); /* n: outputs */
QL_API size_t ql_weight_cols(const ql_weight *w); /* k: inputs */
QL_API ql_format ql_weight_format(const ql_weight *w);
QL_API size_t ql_weight_bytes(const ql_weight *w); /* bytes it owns, codes and scales */
QL_API const char *ql_weight_kernel(const ql_weight *w); /* the kernel that multiplies it */

/* Lets products round x and W to bf16, with fp32 sums, where this processor is faster that way: each term
 * may then be off by 2^-7 of itself. With AMX, y = x W^T of up to eight tokens rounds to fixed point instead, which as a
 * whole loses less: an element of x may be off by 2^-12 of the largest of those that share its scale of W, or of its 64,
 * usually 2^-14; a 4-bit weight by 2^-13 of the largest that its scale and table can make. Off at first; weights stored
 * in F32 stay as they are. Not while other threads use w. */
QL_API void ql_weight_allow_bf16(ql_weight *w, bool allow);

/* For inference: lets y = x W^T round x to 8 bits with a factor for every 64 of them, and the values of a 4-bit code to
 * 8 bits (INT4's stay exact), where this processor is faster that way. An element of x may be off by 1/254 of the
 * largest of its 64, a weight by 1/254 of the largest that its group can have. More than sixteen tokens on processors
 * with AMX have a factor for every 512 instead, in x and in each row of W. Takes the place of ql_weight_allow_bf16();
 * dx = dy W stays in fp32 or, with AMX, rounds to bf16. Off at first. Not while other threads use w. */
QL_API void ql_weight_allow_int8(ql_weight *w, bool allow);

QL_API void ql_weight_destroy(ql_weight *w);       /* NULL is fine */

/* dst[rows][k] = rows [row, row + rows) of W in fp32, ld floats apart. */
QL_API void ql_weight_dequantize(const ql_weight *w, size_t row, size_t rows, float *dst, size_t ld);

/* Scratch that the two products below need for up to m tokens; reserve it before calling them. */
QL_API ql_scratch ql_matmul_scratch(const ql_weight *w, size_t m, size_t threads);

/* y[m][n] = x[m][k] W^T, or y += with `add`. ldx, ldy: floats between rows. x and y do not overlap.
 * The result does not depend on the number of threads. */
QL_API void ql_matmul(const ql_weight *w, size_t m, const float *x, size_t ldx, float *y, size_t ldy, bool add,
                      ql_workers *workers);

/* dx[m][k] = dy[m][n] W, or dx += with `add`. */
QL_API void ql_matmul_t(const ql_weight *w, size_t m, const float *dy, size_t lddy, float *dx, size_t lddx, bool add,
                        ql_workers *workers);

/* The same, forward or transposed, of x or dy in bf16, ldx numbers between rows: bit for bit what their fp32 values
 * give. Kernels of AMX read it as it is, for others it is widened in the scratch, of which these products need more. */
QL_API ql_scratch ql_matmul_bf16_scratch(const ql_weight *w, size_t m, size_t threads);
QL_API void ql_matmul_bf16(const ql_weight *w, bool transposed, size_t m, const uint16_t *x, size_t ldx, float *y,
                           size_t ldy, bool add, ql_workers *workers);

#ifdef __cplusplus
}
#endif
#endif
