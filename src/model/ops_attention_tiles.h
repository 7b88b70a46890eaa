/* Attention by AMX tiles (FlashAttention, Dao 2023). The tokens of all sequences are one stream in blocks of 32, and
 * what is multiplied is rounded to bf16 and laid into tiles once, for every head and block that multiplies by it. What
 * a query sees is a range of positions: from the first in its sequence and window up to its own. Only where such a
 * border crosses a block are scores hidden one by one.
 *
 * Scores are turned, keys by queries, so that a lane is a query: no sum or maximum goes across lanes, and the weights
 * come out as the next product wants them. q is packed times `fold`, which makes scores exponents of 2. */
#ifndef QL_SRC_MODEL_OPS_ATTENTION_TILES_H
#define QL_SRC_MODEL_OPS_ATTENTION_TILES_H

#include "base/workers.h"
#include "model/ops.h"

enum { QL_TILES_BLOCK = 32 /* tokens */, QL_TILES_PARTS = 4 };

/* Keys that one task of the backward pass goes through; its share of dq is added to the other parts' after. */
typedef struct ql_tiles_part {
    size_t first, end; /* blocks of keys */
    size_t queries;    /* blocks of queries from `first` on, of which each sees one of the keys */
    size_t share;      /* where its share of dq begins, in blocks of all heads */
} ql_tiles_part;

/* One call. Arrays of the caller's first, then what is packed: [head or kv head][block][pad x 32] but where it says
 * otherwise. "turned": lines are dimensions, else tokens; "pairs": two tokens in a word, else two dimensions. */
typedef struct ql_tiles {
    size_t heads, kv_heads, group, head_dim, pad; /* pad: head_dim in whole tiles */
    size_t queries, first, tokens, blocks;        /* query row 0 is at position `first` of the tokens (keys) */
    float scale, fold, cap;                       /* cap: the soft cap as an exponent of 2; 0: none */
    const float *q, *k, *v, *o, *dout, *lse;
    float *out, *lse_out, *dq, *dk, *dv;
    size_t ldq, ldkv, ldo, lddo, lddq, lddkv; /* ldo: of o, or of out */

    int32_t *from; /* [(blocks + 1) * 32] the first position that one sees; it never falls */
    uint16_t *k_rows, *k_turned_pairs, *v_rows, *v_turned_pairs;
    uint16_t *q_turned, *q_pairs, *dout_turned, *dout_pairs;
    float *exponent, *delta;  /* [heads][blocks * 32], in the order of lanes: lse as an exponent of 2; sum of o dout */
    size_t *last;             /* [blocks] the last block of queries that see one of the block's keys */
    float *dk_sums, *dv_sums; /* [splits][kv head][block][pad x 32] */
    float *dq_shares;
    size_t splits, parts; /* of a group's heads, and of the keys */
    ql_tiles_part part[QL_TILES_PARTS];
    size_t head_shift, kv_shift; /* what is packed of head h, and its dq_shares, lie at the place of head h - shift */
    bool by_head;                /* blocks of a head are packed one after another, not heads of a block */
} ql_tiles;

/* The factor of q: scores become exponents of 2, or the soft cap's argument. */
static inline float ql_tiles_fold(float scale, float softcap)
{
    return softcap > 0 ? scale / softcap : scale * 0x1.715476p+0f;
}

/* What is compiled for tiles. */
typedef struct ql_tiles_kernels {
    size_t scratch;                                              /* bytes a worker */
    void (*pack_kv)(const ql_tiles *t, size_t kv, size_t block); /* k_rows and v_turned_pairs */
    void (*forward)(const ql_tiles *t, size_t head, size_t block, void *scratch);
    /* All that the backward pass multiplies by, and delta. */
    void (*pack_kv_back)(const ql_tiles *t, size_t kv, size_t block);
    void (*pack_head_back)(const ql_tiles *t, size_t head, size_t block);
    /* dk_sums and dv_sums of a part's keys, added to with `more`, and its share of dq. */
    void (*backward)(const ql_tiles *t, size_t head, size_t split, const ql_tiles_part *part, bool more, void *scratch);
    void (*finish_head)(const ql_tiles *t, size_t head, size_t block); /* dq from its shares */
    void (*finish_kv)(const ql_tiles *t, size_t kv, size_t block);     /* dk and dv from their sums */
} ql_tiles_kernels;

extern const ql_tiles_kernels ql_tiles_amx, ql_tiles_dots, /* vdpbf16ps on the same tiles */
    ql_tiles_emulated;                                     /* AMX's over tiles in plain C, for tests */

/* The best of this processor; NULL where it has neither. */
const ql_tiles_kernels *ql_tiles_select(uint32_t features);

/* Whether attention goes by tiles: this processor has them, and `config` allows their rounding. */
bool ql_attention_rounds(const ql_attention *config);

/* As of ops.h, where that is so. */
ql_scratch ql_tiles_scratch(const ql_attention *config, size_t m, bool backward);
void ql_tiles_forward(const ql_attention *config, const float *q, size_t ldq, const float *k, const float *v,
                      size_t ldkv, float *o, size_t ldo, float *lse, ql_workers *workers);
void ql_tiles_backward(const ql_attention *config, const ql_attention_grads *g, ql_workers *workers);
void ql_tiles_decode(const ql_attention *config, size_t pos, size_t n, const float *q, size_t ldq, const float *k,
                     const float *v, size_t ldkv, float *o, size_t ldo, ql_workers *workers);

#endif
