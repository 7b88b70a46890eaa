/* A weight as the rooms above the kernels see it: the view that kernels read, and the one allocation
 * that holds everything the view points to. */
#ifndef QL_SRC_QUANT_WEIGHT_H
#define QL_SRC_QUANT_WEIGHT_H

#include "base/arena.h"
#include "kern/matmul.h"
#include "qlora/quant.h"

enum { QL_BNB_NESTED_BLOCK = 256 }; /* blocks of absmax that share an absmax2 */

struct ql_weight {
    ql_wview view;
    void *memory; /* NULL when the codes are borrowed */
    size_t bytes; /* of memory */
    const ql_matmul_kernel *kernel;
};

static inline const ql_wview *ql_weight_view(const ql_weight *w)
{
    return &w->view;
}

/* What a 4-bit code means and how the nearest value is found. */
typedef struct ql_codebook {
    float table[16];      /* value of a code */
    float thresholds[15]; /* ascending; the rank of x is the number of thresholds strictly below it */
    uint8_t codes[16];    /* the code of a rank */
    uint8_t zero;         /* the code of 0.0 */
} ql_codebook;

/* NULL for a code that is not 4-bit. */
const ql_codebook *ql_codebook_of(ql_code code);

static inline bool ql_code_is_dense(ql_code code)
{
    return code == QL_CODE_F32 || code == QL_CODE_F16 || code == QL_CODE_BF16;
}

/* The element type of a dense code. */
ql_dtype ql_code_dtype(ql_code code);

/* Checks format and shape, and brings the format to its normal form: dense codes have no scale or
 * group, and blocks that do not cross row ends are not `flat`. */
ql_status ql_format_check(ql_format *format, const char *name, size_t n, size_t k, ql_error *err);

/* Fills in a view of W[n][k] for a checked format and takes its arrays from the arena, codes first;
 * *code_bytes becomes the arena's bytes up to there. nested_block counts for nested scales only. */
void ql_wview_carve(ql_wview *view, ql_arena *arena, size_t *code_bytes, ql_format format, uint32_t nested_block,
                    size_t n, size_t k);

/* A weight of zero bytes with its kernel chosen; the caller fills in codes, padding and scales. */
ql_status ql_weight_create(ql_weight **out, ql_format format, uint32_t nested_block, const char *name, size_t n,
                           size_t k, ql_error *err);

/* What, besides its bytes, tells a weight that was packed: the same numbers describe it in a file. Change
 * QL_PACKED_LAYOUT whenever the order or meaning of the bytes of ql_wview_carve() or of these numbers does. */
enum { QL_PACKED_LAYOUT = 1 };
typedef struct ql_packing {
    ql_format format;
    uint32_t nested_block;
    float nested_offset;
    size_t n, k;
} ql_packing;
ql_packing ql_weight_packing(const ql_weight *w);

/* A weight over the bytes of one that owns its memory, which outlive it. QL_ERR_SHAPE when there are not as many as
 * the packing needs. The caller owns *out. */
ql_status ql_weight_from_packed(ql_weight **out, const ql_packing *packing, const char *name, const void *data,
                                size_t bytes, ql_error *err);

/* A weight without its numbers, of the same shape, kernel and bytes: for planning. It holds nothing, and is not to
 * be read or multiplied. */
ql_status ql_weight_plan(ql_weight **out, ql_format format, const char *name, size_t n, size_t k, ql_error *err);

/* The view's arrays for the functions that fill them; only the owner of a weight may write. */
static inline void *ql_writable(const void *array)
{
    return (void *)(uintptr_t)array;
}

/* The number of elements from (row, col) on that share a scale, within the row; *group becomes the
 * index of that scale. */
static inline size_t ql_wview_run(const ql_wview *w, size_t row, size_t col, size_t *group)
{
    size_t size = w->format.group, at = w->format.flat ? row * w->k + col : col;
    *group = w->format.flat ? at / size : row * w->groups + col / size;
    size_t run = size - at % size;
    return run < w->k - col ? run : w->k - col;
}

/* Scales of the whole weight. */
static inline size_t ql_wview_scales(const ql_wview *w)
{
    return w->format.flat ? w->groups : w->n * w->groups;
}

#endif
