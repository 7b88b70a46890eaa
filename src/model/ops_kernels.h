/* The inner loops of ops.h, compiled once for each instruction set: rows and panels by raw pointers. */
#ifndef QL_SRC_MODEL_OPS_KERNELS_H
#define QL_SRC_MODEL_OPS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One row each; see ops.h for what may overlap. */
typedef struct ql_row_kernels {
    float (*rmsnorm)(size_t d, const float *x, const float *w, float eps, float *y); /* returns rstd */
    void (*rmsnorm_backward)(size_t d, const float *x, const float *w, float rstd, const float *dy, float *dx,
                             bool add);
    void (*rotate)(size_t half, const float *cos, const float *sin, bool inverse, float *x);
    void (*swiglu)(size_t d, const float *gate, const float *up, float *act);
    void (*swiglu_backward)(size_t d, const float *gate, const float *up, const float *dact, float *dgate, float *dup);
    /* The largest of x[n]; false when one is not finite. */
    bool (*highest)(size_t n, const float *x, float *max);
    /* The sum of exp(x - shift); `keep` leaves the exponentials in x. */
    double (*exp_sum)(size_t n, float *x, float shift, bool keep);
    void (*scale)(size_t n, float *x, float factor);
    float (*dot)(size_t n, const float *x, const float *y);
    void (*exponentials)(size_t n, float *x); /* x = exp(x) */
} ql_row_kernels;

/* A panel is up to `panel` queries (forward, dq) or keys (dkv) of one head; the other side streams by.
 * The panel's arrays point at its first row, the stream's at position 0 of the sequence. */
typedef struct ql_attention_panel {
    size_t head_dim;
    float scale;
    size_t first, rows; /* the panel's first position and its rows, at most `panel` */
    size_t length;      /* dkv: tokens in the sequence */
    size_t group;       /* dkv, decode: query heads of this key/value head, one after another in q, dout and out */
    const float *q, *k, *v, *o, *dout;
    const float *lse, *delta; /* dkv: of the first head, `ldlse` apart */
    float *out, *lse_out;     /* forward */
    float *dq, *dk, *dv;
    size_t ldq, ldkv, ldo, lddo, lddq, lddkv, ldlse;
} ql_attention_panel;

enum { QL_ATTENTION_STREAM = 64 }; /* stream rows that are worked on at a time */

typedef struct ql_attention_kernels {
    size_t panel; /* queries or keys a panel; a power of two that divides QL_ATTENTION_STREAM */
    void (*forward)(const ql_attention_panel *p, float *scratch);
    void (*dq)(const ql_attention_panel *p, float *scratch);
    void (*dkv)(const ql_attention_panel *p, float *scratch);
    void (*decode)(const ql_attention_panel *p, float *scratch); /* one query; out is not q */
} ql_attention_kernels;

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
size_t ql_attention_panel_floats(size_t head_dim, size_t group);

#endif
