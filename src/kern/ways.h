/* A kernel may have several ways to multiply, by the number of tokens and the kind of weight. */
#ifndef QL_SRC_KERN_WAYS_H
#define QL_SRC_KERN_WAYS_H

#include "kern/matmul.h"

typedef struct ql_way {
    bool (*fits)(const ql_product *p);
    /* Bytes of packed x for the most tokens that would come this way, were p of no more than p->m tokens. */
    size_t (*packed)(const ql_product *p);
    ql_plan (*plan)(const ql_product *p, size_t threads);
    void (*pack)(const ql_product *p, ql_plan plan, size_t index, void *packed);
    void (*tile)(const ql_product *p, ql_tile t, const void *packed, void *scratch);
} ql_way;

/* The first that fits; the last one of a kernel's takes everything. */
static inline const ql_way *ql_way_of(const ql_way *ways, const ql_product *p)
{
    while (!ways->fits(p))
        ways++;
    return ways;
}

/* Its plan, with enough packed x for fewer tokens too, whatever way those go. */
static inline ql_plan ql_ways_plan(const ql_way *ways, size_t count, const ql_product *p, size_t threads)
{
    ql_plan plan = ql_way_of(ways, p)->plan(p, threads);
    for (size_t i = 0; i < count; i++) {
        size_t packed = ways[i].packed(p);
        plan.packed = plan.packed > packed ? plan.packed : packed;
    }
    return plan;
}

#endif
