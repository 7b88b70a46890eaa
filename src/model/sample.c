/* Choosing the next token from its logits. */
#include <math.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/rng.h"
#include "qlora/model.h"

typedef struct candidate {
    float logit;
    int32_t token;
} candidate;

ql_sampling ql_sampling_defaults(void)
{
    return (ql_sampling){.temperature = 0.8, .top_p = 0.95};
}

/* Highest logit first; the lower token among equals, so that the order is total. */
static int by_logit(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return x->token < y->token ? -1 : 1;
}

static int32_t greedy(const float *logits, size_t vocab)
{
    size_t best = 0;
    for (size_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

/* Draws from sorted candidates: the top_k first, of those the fewest whose probability reaches top_p. */
static int32_t draw(const candidate *sorted, size_t count, const ql_sampling *s, double uniform)
{
    size_t kept = s->top_k && s->top_k < count ? s->top_k : count;
    double total = 0, cut = 0;
    for (size_t i = 0; i < kept; i++)
        total += exp(((double)sorted[i].logit - sorted[0].logit) / s->temperature);
    size_t nucleus = 0;
    while (nucleus < kept && (nucleus == 0 || cut < s->top_p * total))
        cut += exp(((double)sorted[nucleus++].logit - sorted[0].logit) / s->temperature);
    double left = uniform * cut;
    for (size_t i = 0; i < nucleus; i++) {
        left -= exp(((double)sorted[i].logit - sorted[0].logit) / s->temperature);
        if (left < 0)
            return sorted[i].token;
    }
    return sorted[nucleus - 1].token;
}

ql_status ql_sample_token(int32_t *token, const float *logits, size_t vocab, const ql_sampling *s, size_t position,
                          ql_error *err)
{
    if (!vocab || !(s->temperature >= 0) || !(s->top_p > 0 && s->top_p <= 1))
        return ql_fail(err, QL_ERR_ARG, "sampling: temperature must be at least 0 and top_p in (0, 1]");
    for (size_t i = 0; i < vocab; i++)
        if (!isfinite(logits[i]))
            return ql_fail(err, QL_ERR_VALUE, "the logit of token %zu at position %zu is not finite", i, position);
    if (s->temperature == 0) {
        *token = greedy(logits, vocab);
        return QL_OK;
    }
    candidate *sorted = malloc(vocab * sizeof *sorted);
    if (!sorted)
        return ql_fail(err, QL_ERR_MEMORY, "sampling: out of memory");
    for (size_t i = 0; i < vocab; i++)
        sorted[i] = (candidate){logits[i], (int32_t)i};
    qsort(sorted, vocab, sizeof *sorted, by_logit);
    uint32_t bits[4];
    ql_philox(s->seed, 0x73616d70, position, bits);
    *token = draw(sorted, vocab, s, (bits[0] * 0x1p32 + bits[1]) * 0x1p-64);
    free(sorted);
    return QL_OK;
}
