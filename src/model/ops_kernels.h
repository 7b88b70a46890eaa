/* The inner loops of ops.h, compiled once for each instruction set: rows and panels by raw pointers. */
#ifndef QL_SRC_MODEL_OPS_KERNELS_H
#define QL_SRC_MODEL_OPS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/ops.h"

/* Exponentials added up: begins with max = -INFINITY. */
typedef struct ql_exp_sum {
    double sum;
    float max; /* of the numbers themselves */
    bool bad;  /* one was not finite */
} ql_exp_sum;

#define QL_EXP_ROUGH 5e-6

static inline ql_either ql_either_at(ql_either x, size_t at)
{
    return x.narrow ? (ql_either){.narrow = x.narrow + at} : (ql_either){.wide = x.wide + at};
}

/* gate and up of a token, in fp32 or, where they are not NULL, in bf16. */
typedef struct ql_glu_row {
    const float *gate, *up;
    const uint16_t *narrow_gate, *narrow_up;
} ql_glu_row;

/* One row each; see ops.h for what may overlap. */
typedef struct ql_row_kernels {
    /* Returns rstd. x in fp32 or, where `narrow` is not NULL, in bf16. */
    float (*rmsnorm)(size_t d, const float *x, const uint16_t *narrow, const float *w, float eps, ql_either y);
    void (*rmsnorm_backward)(size_t d, const float *x, const float *w, float rstd, const float *dy, float *dx,
                             bool add);
    void (*rmsnorm_backward_narrow)(size_t d, const uint16_t *x, const float *w, float rstd, const float *dy,
                                    float *dx); /* adds */
    void (*rotate)(size_t half, const float *cos, const float *sin, bool inverse, float *x);
    /* By ql_glu. Unless it is NULL gate and up, in fp32, go to `waiting` too. */
    void (*glu[QL_GLUS])(size_t d, const ql_glu_row *in, ql_either act, const ql_glu_waiting *waiting);
    void (*glu_backward[QL_GLUS])(size_t d, const ql_glu_row *in, const float *dact, const ql_glu_out *out);
    bool (*all_finite)(size_t n, const float *x);
    /* What exp(x - shift) and x add to *sum; `keep` leaves the exponentials in x. `rough` ones may be off by
     * QL_EXP_ROUGH of themselves and |shift| 2^-23, the others by 2 ulp and what the difference is rounded by. */
    void (*exp_sum)(size_t n, float *x, float shift, bool keep, bool rough, ql_exp_sum *sum);
    void (*softcap)(size_t n, float *x, float cap); /* x = cap tanh(x / cap) */
    /* Of capped x: exp(x - shift) times the cap's derivative where they are, 1 - (x / cap)^2. */
    void (*softcap_exp_slope)(size_t n, float *x, float cap, float shift);
    void (*scale)(size_t n, float *x, float factor);
    void (*add_scaled)(size_t n, float factor, const float *x, float *y); /* y += factor x */
    float (*dot)(size_t n, const float *x, const float *y);
    void (*exponentials)(size_t n, float *x); /* x = exp(x) */
    void (*add)(size_t n, const float *x, float *y); /* y += x */
    void (*narrow)(size_t n, const float *x, uint16_t *y); /* bf16, to nearest even */
    void (*widen)(size_t n, const uint16_t *x, float *y);
} ql_row_kernels;

/* Part of the attention of one query head. Arrays of the side that is split among the parts (queries forward,
 * keys backward and in decoding) point at the part's first row, those of the other side at position 0 of the
 * sequence; in decoding it is the one query. */
typedef struct ql_attention_part {
    size_t head_dim;
    float scale;
    size_t first, rows; /* the part's first position and its rows: at most `panel` forward, any number backward */
    size_t length;      /* backward: tokens in the sequence */
    size_t window;      /* positions that a query sees at most, in decoding no more than `rows`; SIZE_MAX: all */
    float softcap;      /* 0: none */
    size_t group;       /* decode: query heads of the key/value head, one after another in q and out */
    const float *q, *k, *v, *dout;
    const float *lse, *delta; /* backward */
    float *out, *lse_out;     /* forward, where lse_out may be NULL, and decode: [group][head_dim], [group] */
    float *dq;                /* backward: of this part's keys alone, [length - first][ql_attention_pad(head_dim)] */
    float *dk, *dv;
    size_t ldq, ldkv, ldo, lddo, lddkv;
} ql_attention_part;

enum { QL_ATTENTION_STREAM = 64 }; /* stream rows that are worked on at a time */

typedef struct ql_attention_kernels {
    size_t panel; /* queries that are worked on at a time; a power of two that divides QL_ATTENTION_STREAM */
    void (*forward)(const ql_attention_part *p, float *scratch);
    /* A part that is not the sequence's last has a multiple of QL_ATTENTION_STREAM keys. */
    void (*backward)(const ql_attention_part *p, float *scratch);
    void (*decode)(const ql_attention_part *p, float *scratch); /* one query, any number of keys; out is not q */
} ql_attention_kernels;

/* Floats between the rows of a part's dq: whole vectors of any tier. */
static inline size_t ql_attention_pad(size_t head_dim)
{
    return (head_dim + 31) / 32 * 32;
}

typedef struct ql_ops_tier {
    const char *name;
    uint32_t needs; /* QL_CPU_* bits */
    const ql_row_kernels *rows;
    const ql_attention_kernels *attention;
} ql_ops_tier;

/* Slowest first, ended by a NULL name. */
extern const ql_ops_tier ql_ops_tiers[];

/* The last tier of the list that `features` allow. */
const ql_ops_tier *ql_ops_select(uint32_t features);

/* Floats of scratch that an attention kernel needs, with any tier. */
size_t ql_attention_floats(size_t head_dim, size_t group);

#endif
