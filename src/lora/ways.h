/* The way of a batch of tokens down to an adapter's rank and up again, by the kernels of thin.h. */
#ifndef QL_SRC_LORA_WAYS_H
#define QL_SRC_LORA_WAYS_H

#include "lora/thin.h"
#include "qlora/lora.h"
#include "quant/matmul.h"

/* Below so many tokens making panels costs more than they help. */
enum { QL_WAYS_TOKENS = 16 };

/* One direction of a layer: forward x A^T goes down and h B^T up, backward dy B down and dh A up. */
typedef struct ql_ways {
    const ql_thin_kernels *kernels;
    const ql_adapter *adapter;
    bool backward;
    float *down, *up; /* panels */
} ql_ways;

/* Floats of the panels. */
size_t ql_ways_work(const ql_adapter *adapter);

/* With panels in `work` (aligned to 64 bytes), to be filled. */
ql_ways ql_ways_at(const ql_adapter *adapter, bool backward, float *work);
void ql_ways_fill(const ql_ways *ways, size_t count, ql_workers *workers);

/* low[m][r] = s * dropout(x) times the side that goes down. */
typedef struct ql_ways_down {
    const ql_ways *ways;
    const float *x;
    size_t ldx;
    float *low;
    const ql_dropout *dropout; /* NULL: none; what follows is for it alone */
    size_t first;              /* the place of token 0 in the batch */
    float *dropped;            /* [m][features of x] */
} ql_ways_down;
void ql_ways_go_down(const ql_ways_down *downs, size_t count, size_t m, ql_workers *workers);

/* y += low times the side that goes up: of a rectangle of y, with a ql_ways_up as a ql_then's self. */
typedef struct ql_ways_up {
    const ql_ways *ways;
    const float *low;
    float *y;
    size_t ldy;
} ql_ways_up;
void ql_ways_up_tile(const void *up, ql_tile tile);

#endif
