/* Formats, shapes and matrices that the tests of the quant room share. */
#ifndef QL_TESTS_QUANT_CASE_H
#define QL_TESTS_QUANT_CASE_H

#include "base/rng.h"
#include "qlora/quant.h"
#include "quant/weight.h"
#include "support.h"

enum {
    FORMATS = 15,
    QUANTIZED = 12, /* the first ones; dense formats follow: bf16, f16, f32 */
    GROUPS = 4,
    SHAPES = 9,
    TYPES = 3,
};

/* What ql_format_parse() takes. */
typedef struct format_name {
    const char *name;
    bool twice;
} format_name;
extern const format_name formats[FORMATS];
extern const uint32_t groups[GROUPS];
extern const size_t shapes[SHAPES][2];
extern const ql_dtype types[TYPES];

ql_format format_of(int which, uint32_t group);

/* dst[i] = x as type; returns what became of it. */
float to_type(void *dst, ql_dtype type, size_t i, float x);

/* About normal, within 4.2 of zero. */
float normal(ql_rng *rng);

/* A matrix W[n][k], rows ld apart, with what its type made of the values in fp32, packed. The scale of its
 * rows varies, some elements stand out and one group in nine is zero. */
typedef struct matrix {
    size_t n, k, ld;
    ql_dtype type;
    void *src;
    float *values;
} matrix;

matrix matrix_make(size_t n, size_t k, ql_dtype type, uint64_t seed);
void matrix_free(matrix a);

ql_weight *quantize(ql_format format, matrix a, ql_workers *workers);

#endif
