/* Every weight of a file, whether it is a finite number. */
#include <math.h>
#include <stdlib.h>

#include "base/workers.h"
#include "qlora/quant.h"
#include "train/inspect.h"

enum { PIECE = 1 << 16 };

typedef struct scan {
    const ql_tensor *tensor;
    const ql_weight *blocks; /* NULL: dense */
    size_t pieces, piece;    /* of `piece` elements */
    struct tally {
        size_t bad, first;
        bool failed;
    } * tally; /* [pieces] */
} scan;

static void scan_piece(void *ctx, size_t index, size_t worker)
{
    scan *s = ctx;
    struct tally *t = &s->tally[index];
    size_t from = index * s->piece, all = ql_tensor_elements(s->tensor);
    size_t count = all - from < s->piece ? all - from : s->piece;
    float *values = malloc(count * sizeof *values);
    (void)worker;
    t->failed = !values;
    if (values && s->blocks)
        ql_weight_dequantize(s->blocks, index, 1, values, s->piece);
    else if (values)
        t->failed = ql_tensor_read_f32(s->tensor, from, count, values, NULL) != QL_OK;
    for (size_t i = 0; values && i < count; i++)
        if (!isfinite(values[i])) {
            t->first = t->bad ? t->first : from + i;
            t->bad++;
        }
    free(values);
}

static void report(ql_inspection *in, const scan *s)
{
    size_t bad = 0, first = 0;
    for (size_t i = 0; i < s->pieces; i++) {
        first = !bad && s->tally[i].bad ? s->tally[i].first : first;
        bad += s->tally[i].bad;
        in->failed = in->failed || s->tally[i].failed;
    }
    if (bad)
        ql_inspect_find(in, true, "tensor %s: %zu of %zu values are not finite, the first is number %zu",
                        s->tensor->name, bad, ql_tensor_elements(s->tensor), first);
}

/* Whether the tensor is of floating point numbers, or of blocks that are known: then as a weight. */
static bool readable(const ql_tensor *t, ql_weight **blocks)
{
    ql_code code;
    *blocks = NULL;
    if (!t->foreign)
        return t->dtype == QL_F32 || t->dtype == QL_F16 || t->dtype == QL_BF16 || t->dtype == QL_F64;
    return t->ndim == 2 && ql_code_of_blocks(&code, t->dtype_name) &&
           ql_weight_from_blocks(blocks, code, t->name, t->data, t->bytes, t->shape[0], t->shape[1], false, NULL) ==
               QL_OK;
}

void ql_inspect_values(ql_inspection *in)
{
    size_t checked = 0;
    for (size_t i = 0; i < ql_tensors_count(in->tensors); i++) {
        const ql_tensor *t = ql_tensors_at(in->tensors, i);
        size_t elements = ql_tensor_elements(t);
        ql_weight *blocks;
        if (!elements || !readable(t, &blocks))
            continue;
        scan s = {.tensor = t, .blocks = blocks, .piece = blocks ? t->shape[1] : PIECE};
        s.pieces = (elements + s.piece - 1) / s.piece;
        s.tally = calloc(s.pieces, sizeof *s.tally);
        in->failed = in->failed || !s.tally;
        if (s.tally) {
            ql_parallel(in->workers, s.pieces, scan_piece, &s);
            report(in, &s);
            checked += elements;
        }
        free(s.tally);
        ql_weight_destroy(blocks);
        ql_tensors_release(in->tensors, t);
    }
    ql_note_number(in, "values read", (double)checked);
}
