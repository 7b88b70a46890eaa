/* A data set looked through before anything is trained on it. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "train/findings.h"

static ql_status no_memory(ql_error *err)
{
    return ql_fail(err, QL_ERR_MEMORY, "data set: out of memory");
}

static int by_size(const void *a, const void *b)
{
    const size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x > y) - (x < y);
}

static int by_hash(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void look_at(ql_data_review *r, const ql_tokenizer *t, ql_sample s)
{
    size_t learned = 0, ends = 0, kept = 0, bin = 0;
    int32_t bos = ql_tokenizer_bos(t), unk = ql_tokenizer_unk(t);
    for (size_t i = 0; i < s.length; i++) {
        learned += s.learn[i];
        kept += s.learn[i] && i <= r->sequence;
        ends += s.learn[i] && ql_tokenizer_is_end(t, s.ids[i]);
        r->unknown += unk >= 0 && s.ids[i] == unk;
    }
    while (bin + 1 < QL_REVIEW_BINS && s.length >> (bin + 1))
        bin++;
    r->bins[bin]++;
    r->tokens += s.length;
    r->learned += learned;
    r->too_long += s.length > r->sequence + 1;
    r->lost += learned - kept;
    r->emptied += learned && !kept;
    r->no_end += !r->packed && !ends;
    r->empty += !r->packed && ends && learned == ends;
    r->double_bos += bos >= 0 && s.length > 1 && s.ids[0] == bos && s.ids[1] == bos;
}

static bool measure(ql_data_review *r, const ql_dataset *data, const ql_tokenizer *t)
{
    size_t count = r->samples;
    size_t *lengths = malloc((count + 1) * sizeof *lengths);
    uint64_t *hashes = malloc((count + 1) * sizeof *hashes);
    for (size_t i = 0; lengths && hashes && i < count; i++) {
        ql_sample s = ql_dataset_sample(data, i);
        look_at(r, t, s);
        lengths[i] = s.length;
        hashes[i] = ql_hash_mix(ql_hash((const char *)s.ids, s.length * sizeof *s.ids),
                                ql_hash((const char *)s.learn, s.length));
    }
    bool fits = lengths && hashes;
    if (fits && count) {
        qsort(lengths, count, sizeof *lengths, by_size);
        qsort(hashes, count, sizeof *hashes, by_hash);
        for (size_t i = 1; i < count; i++)
            r->twice += hashes[i] == hashes[i - 1];
        r->shortest = lengths[0];
        r->median = lengths[(count - 1) / 2];
        r->p90 = lengths[(count * 9 + 9) / 10 - 1];
        r->p99 = lengths[(count * 99 + 99) / 100 - 1];
        r->longest = lengths[count - 1];
    }
    free(lengths);
    free(hashes);
    return fits;
}

static bool judge(const ql_data_review *r, const ql_dataset *data, const ql_tokenizer *t, ql_findings *f)
{
    bool fits = true;
    int32_t pad = ql_tokenizer_pad(t);
    for (size_t i = 0; i < ql_dataset_warnings(data); i++)
        fits = fits && ql_found(f, false, "%s", ql_dataset_warning(data, i));
    if (!r->packed && r->too_long)
        fits =
            fits && ql_found(f, false, "%zu of %zu samples have more than %zu targets: %zu learned tokens are cut away",
                             r->too_long, r->samples, r->sequence, r->lost);
    if (r->emptied)
        fits =
            fits && ql_found(f, false, "%zu samples have nothing to learn in their first %zu tokens and are left out",
                             r->emptied, r->sequence);
    if (r->empty)
        fits =
            fits && ql_found(f, false, "%zu samples have empty answers: nothing but an end token is learned", r->empty);
    if (r->double_bos)
        fits = fits && ql_found(f, false,
                                "%zu samples begin with two BOS tokens: one comes from the tokenizer, one stands in "
                                "the text or its template",
                                r->double_bos);
    if (r->unknown)
        fits = fits && ql_found(f, false, "%zu tokens are unknown to the tokenizer", r->unknown);
    if (r->twice)
        fits = fits && ql_found(f, false, "%zu samples are repetitions of others", r->twice);
    if (!r->packed && pad >= 0 && ql_tokenizer_is_end(t, pad))
        fits =
            fits &&
            ql_found(f, false,
                     "the padding token \"%s\" is an end token too: here ends are learned all the same, but programs "
                     "that mask padding by its id would not learn to stop",
                     ql_tokenizer_token(t, pad));
    return fits;
}

ql_status ql_data_review_open(ql_dataset **data, ql_data_review *r, ql_findings *findings, const char *path,
                              ql_tokenizer *tokenizer, const ql_data_options *options, ql_error *err)
{
    ql_data_options whole = *options;
    whole.sequence = INT32_MAX;
    ql_status status = ql_dataset_open(data, path, tokenizer, &whole, err);
    if (!status && ql_dataset_packed(*data)) {
        ql_dataset_close(*data);
        status = ql_dataset_open(data, path, tokenizer, options, err);
    }
    if (status)
        return status;
    *r = (ql_data_review){.packed = ql_dataset_packed(*data), .sequence = options->sequence};
    r->samples = ql_dataset_count(*data);
    r->skipped = ql_dataset_stats(*data).skipped;
    if (measure(r, *data, tokenizer) && judge(r, *data, tokenizer, findings))
        return QL_OK;
    ql_dataset_close(*data);
    *data = NULL;
    return no_memory(err);
}
