#define _GNU_SOURCE
#include "text/scores.h"

#include <stdlib.h>

#include "base/error.h"
#include "text/utf8.h"

enum { MOST_BYTES = 1024 };

static int by_score(const void *a, const void *b, void *scores)
{
    double x = ((const double *)scores)[*(const int32_t *)a], y = ((const double *)scores)[*(const int32_t *)b];
    return x > y ? -1 : x < y;
}

/* Calls for each way to cut the token in two that are tokens; counts them, and puts them in if merges are given. */
static size_t cut(ql_merges *merges, const ql_vocab *vocab, const double *scores, int32_t id, uint32_t rank)
{
    size_t length = 0, found = 0;
    const char *text = ql_vocab_text(vocab, id, &length);
    for (size_t at = 0; text && at < length;) {
        at += ql_utf8_next(text + at, length - at).length;
        if (at >= length)
            break;
        int32_t left = ql_vocab_find(vocab, text, at), right = ql_vocab_find(vocab, text + at, length - at);
        if (left < 0 || right < 0 || scores[left] == QL_NO_SCORE || scores[right] == QL_NO_SCORE)
            continue;
        found++;
        if (merges)
            ql_merges_put(merges, (ql_merge){left, right, id, rank});
    }
    return found;
}

static ql_status check(const ql_vocab *vocab, const double *scores, ql_error *err)
{
    for (size_t id = 0; id < vocab->count; id++) {
        size_t length = 0;
        ql_vocab_text(vocab, (int32_t)id, &length);
        if (isnan(scores[id]))
            return ql_fail(err, QL_ERR_FORMAT, "the score of token %zu is NaN", id);
        if (length > MOST_BYTES && scores[id] != QL_NO_SCORE)
            return ql_fail(err, QL_ERR_UNSUPPORTED, "token %zu has %zu bytes; the most are %d", id, length, MOST_BYTES);
    }
    return QL_OK;
}

ql_status ql_merges_by_score(ql_merges *merges, const ql_vocab *vocab, const double *scores, ql_error *err)
{
    ql_status status = check(vocab, scores, err);
    if (status)
        return status;
    int32_t *order = malloc(vocab->count * sizeof *order);
    size_t count = 0, used = 0;
    for (size_t id = 0; order && id < vocab->count; id++) {
        if (scores[id] == QL_NO_SCORE)
            continue;
        order[used++] = (int32_t)id;
        count += cut(NULL, vocab, scores, (int32_t)id, 0);
    }
    ql_merges_free(merges);
    status = order ? ql_merges_reserve(merges, count, err) : ql_fail(err, QL_ERR_MEMORY, "scores: out of memory");
    if (!status && used)
        qsort_r(order, used, sizeof *order, by_score, (void *)(uintptr_t)scores);
    uint32_t rank = 0;
    for (size_t i = 0; i < used && !status; i++) {
        rank += i > 0 && scores[order[i]] != scores[order[i - 1]];
        cut(merges, vocab, scores, order[i], rank);
    }
    free(order);
    return status;
}
