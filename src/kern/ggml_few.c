#include "kern/ggml_few.h"

#define JOIN(a, b) a##b
#define NAMED(a, b) JOIN(a, b)

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
enum { AT_ONCE = 4, PARTS = QL_GGML_UNIT / LANES }; /* tokens whose sums fit into registers; vectors of a unit */

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));

static inline __attribute__((always_inline)) lanes load(const float *x)
{
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}

/* Two sums a token: one by itself is a chain of dependent steps. */
static inline __attribute__((always_inline)) void row_times(const ql_product *p, ql_code code, size_t row, size_t token,
                                                            size_t tokens)
{
    const char *line = (const char *)p->w->codes + row * p->w->row_bytes;
    const float *x = p->x + token * p->ldx;
    lanes sums[AT_ONCE][2];
    for (size_t t = 0; t < tokens; t++)
        sums[t][0] = sums[t][1] = (lanes){0};
    size_t block = ql_ggml_block_of(code).elements, per_block = block / QL_GGML_UNIT;
    for (size_t at = 0; at < p->w->k; at += block, line += ql_ggml_block_of(code).bytes)
#pragma GCC unroll 8
        for (size_t u = 0; u < per_block; u++) {
            float values[QL_GGML_UNIT];
            ql_ggml_unit(code, line, u, values);
#pragma GCC unroll 4
            for (size_t part = 0; part < PARTS; part++) {
                lanes w = load(values + part * LANES);
                const float *xs = x + at + u * QL_GGML_UNIT + part * LANES;
#pragma GCC unroll 4
                for (size_t t = 0; t < tokens; t++)
                    sums[t][part % 2] += w * load(xs + t * p->ldx);
            }
        }
    for (size_t t = 0; t < tokens; t++) {
        float sum = 0, *y = p->y + (token + t) * p->ldy + row;
        lanes both = sums[t][0] + sums[t][1];
        for (size_t i = 0; i < LANES; i++)
            sum += both[i];
        *y = p->add ? *y + sum : sum;
    }
}

static inline __attribute__((always_inline)) void rows_times(const ql_product *p, ql_code code, ql_tile t)
{
    for (size_t row = t.col; row < t.col + t.cols; row++)
        for (size_t token = 0; token < p->m; token += AT_ONCE) {
            switch (p->m - token) {
            case 1:
                row_times(p, code, row, token, 1);
                break;
            case 2:
                row_times(p, code, row, token, 2);
                break;
            case 3:
                row_times(p, code, row, token, 3);
                break;
            default:
                row_times(p, code, row, token, AT_ONCE);
            }
        }
}

__attribute__((flatten)) void NAMED(ql_ggml_few_, QL_ISA)(const ql_product *p, ql_tile t, void *scratch)
{
    (void)scratch;
    switch (p->w->format.code) {
    case QL_CODE_Q8_0:
        rows_times(p, QL_CODE_Q8_0, t);
        break;
    case QL_CODE_Q4_0:
        rows_times(p, QL_CODE_Q4_0, t);
        break;
    case QL_CODE_Q4_1:
        rows_times(p, QL_CODE_Q4_1, t);
        break;
    case QL_CODE_Q4_K:
        rows_times(p, QL_CODE_Q4_K, t);
        break;
    case QL_CODE_Q5_K:
        rows_times(p, QL_CODE_Q5_K, t);
        break;
    default:
        rows_times(p, QL_CODE_Q6_K, t);
        break;
    }
}
