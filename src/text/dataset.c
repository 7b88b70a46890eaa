#include "text/dataset.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/rng.h"
#include "text/grow.h"

static ql_status no_memory(ql_error *err)
{
    return ql_fail(err, QL_ERR_MEMORY, "data set: out of memory");
}

ql_status ql_dataset_add(ql_dataset *d, const int32_t *ids, const uint8_t *learn, size_t length, ql_error *err)
{
    bool cut = length > d->sequence + 1, learned = false;
    length = cut ? d->sequence + 1 : length;
    for (size_t i = 1; i < length && !learned; i++)
        learned = !learn || learn[i];
    if (!learned) {
        d->skipped++;
        return QL_OK;
    }
    if (d->count >= UINT32_MAX)
        return ql_fail(err, QL_ERR_UNSUPPORTED, "data set: more than %u samples", UINT32_MAX);
    size_t begin = d->ids.count;
    if (!ql_grow((void **)&d->entries, &d->capacity, d->count, 1, sizeof *d->entries) ||
        !ql_ids_add(&d->ids, ids, length) || !ql_marks_fill(&d->learn, 1, d->ids.count))
        return no_memory(err);
    if (learn)
        memcpy(d->learn.data + begin, learn, length);
    d->learn.data[begin] = 0;
    d->entries[d->count++] = (ql_entry){begin, length, cut};
    return QL_OK;
}

/* The tokens of stream[at ..) that make one sample: with a BOS T, without one T + 1. */
static ql_status pack_one(ql_dataset *d, size_t at, size_t length, ql_error *err)
{
    if (d->bos < 0)
        return ql_dataset_add(d, d->stream.data + at, NULL, length, err);
    size_t begin = d->ids.count;
    if (!ql_ids_add(&d->ids, &d->bos, 1) || !ql_ids_add(&d->ids, d->stream.data + at, length) ||
        !ql_marks_fill(&d->learn, 1, d->ids.count) ||
        !ql_grow((void **)&d->entries, &d->capacity, d->count, 1, sizeof *d->entries))
        return no_memory(err);
    d->learn.data[begin] = 0;
    d->entries[d->count++] = (ql_entry){begin, length + 1, false};
    return QL_OK;
}

ql_status ql_dataset_pack(ql_dataset *d, ql_error *err)
{
    size_t overlap = d->bos < 0, all = d->stream.count;
    d->ids.count = d->learn.count = d->count = 0;
    for (size_t at = 0; at + overlap < all; at += d->sequence) {
        size_t left = all - at, length = left < d->sequence + overlap ? left : d->sequence + overlap;
        ql_status status = pack_one(d, at, length, err);
        if (status)
            return status;
    }
    return QL_OK;
}

void ql_dataset_close(ql_dataset *d)
{
    if (!d)
        return;
    for (size_t i = 0; i < d->warning_count; i++)
        free(d->warnings[i]);
    ql_ids_free(&d->ids);
    ql_ids_free(&d->stream);
    ql_marks_free(&d->learn);
    free(d->entries);
    free(d);
}

ql_status ql_dataset_from_samples(ql_dataset **out, const ql_sample *samples, size_t count, ql_error *err)
{
    *out = NULL;
    ql_dataset *d = calloc(1, sizeof *d);
    if (!d)
        return no_memory(err);
    d->bos = -1;
    for (size_t i = 0; i < count; i++)
        d->sequence = samples[i].length > d->sequence + 1 ? samples[i].length - 1 : d->sequence;
    ql_status status = QL_OK;
    for (size_t i = 0; i < count && !status; i++)
        status = ql_dataset_add(d, samples[i].ids, samples[i].learn, samples[i].length, err);
    if (!status && !d->count)
        status = ql_fail(err, QL_ERR_FORMAT, "data set: none of %zu samples has a token to learn", count);
    if (status)
        ql_dataset_close(d);
    else
        *out = d;
    return status;
}

bool ql_dataset_packed(const ql_dataset *d)
{
    return d->stream.count;
}

size_t ql_dataset_count(const ql_dataset *d)
{
    return d->count;
}

ql_sample ql_dataset_sample(const ql_dataset *d, size_t index)
{
    const ql_entry *entry = &d->entries[index];
    return (ql_sample){d->ids.data + entry->begin, d->learn.data + entry->begin, entry->length};
}

ql_data_stats ql_dataset_stats(const ql_dataset *d)
{
    ql_data_stats stats = {.samples = d->count, .skipped = d->skipped};
    for (size_t i = 0; i < d->count; i++) {
        ql_sample sample = ql_dataset_sample(d, i);
        stats.tokens += sample.length;
        stats.longest = sample.length > stats.longest ? sample.length : stats.longest;
        stats.truncated += d->entries[i].cut;
        for (size_t k = 0; k < sample.length; k++)
            stats.learned += sample.learn[k];
    }
    return stats;
}

size_t ql_dataset_warnings(const ql_dataset *d)
{
    return d->warning_count;
}

const char *ql_dataset_warning(const ql_dataset *d, size_t index)
{
    return d->warnings[index];
}

static void shuffle(ql_rng rng, size_t *order, size_t count)
{
    for (size_t i = 0; i < count; i++)
        order[i] = i;
    for (size_t i = count; i > 1; i--) {
        size_t other = ql_rng_below(&rng, (uint32_t)i), kept = order[i - 1];
        order[i - 1] = order[other];
        order[other] = kept;
    }
}

/* Streams of the seed that belong to data sets; epochs count on from the first. */
enum { STREAM_SPLIT = 0x64617461, STREAM_ORDER };

void ql_dataset_order(const ql_dataset *d, uint64_t seed, uint64_t epoch, size_t *order)
{
    shuffle((ql_rng){.seed = seed, .stream = (uint64_t)STREAM_ORDER << 32 | epoch}, order, d->count);
}

/* Marks the samples to be held out; NULL when out of memory. free() it. */
static bool *choose(const ql_dataset *d, size_t held, const uint64_t *seed)
{
    bool *chosen = calloc(d->count, sizeof *chosen);
    size_t *order = malloc(d->count * sizeof *order);
    if (chosen && order) {
        if (seed)
            shuffle((ql_rng){.seed = *seed, .stream = STREAM_SPLIT}, order, d->count);
        for (size_t i = 0; i < held; i++)
            chosen[seed ? order[i] : d->count - 1 - i] = true;
    } else {
        free(chosen);
        chosen = NULL;
    }
    free(order);
    return chosen;
}

static ql_status split_samples(ql_dataset *d, size_t held, const uint64_t *seed, ql_dataset *out, ql_error *err)
{
    bool *chosen = choose(d, held, seed);
    ql_status status = chosen ? QL_OK : no_memory(err);
    for (size_t i = 0; i < d->count && !status; i++) {
        ql_sample sample = ql_dataset_sample(d, i);
        if (!chosen[i])
            continue;
        status = ql_dataset_add(out, sample.ids, sample.learn, sample.length, err);
        if (!status)
            out->entries[out->count - 1].cut = d->entries[i].cut;
    }
    if (!status) {
        size_t kept = 0;
        for (size_t i = 0; i < d->count; i++)
            if (!chosen[i])
                d->entries[kept++] = d->entries[i];
        d->count = kept;
        ql_ids_free(&d->stream); /* it is no longer what the samples hold */
    }
    free(chosen);
    return status;
}

static ql_status split_stream(ql_dataset *d, size_t held, ql_dataset *out, ql_error *err)
{
    size_t kept = d->stream.count - held;
    if (!ql_ids_add(&out->stream, d->stream.data + kept, held))
        return no_memory(err);
    ql_status status = ql_dataset_pack(out, err);
    if (status)
        return status;
    d->stream.count = kept; /* fewer samples than before: they fit into what there is */
    return ql_dataset_pack(d, err);
}

ql_status ql_dataset_split(ql_dataset *d, double fraction, const uint64_t *seed, ql_dataset **held_out, ql_error *err)
{
    *held_out = NULL;
    if (!(fraction > 0 && fraction < 1))
        return ql_fail(err, QL_ERR_ARG, "held-out fraction %g: give one between 0 and 1", fraction);
    bool stream = d->stream.count && !seed;
    size_t all = stream ? d->stream.count : d->count, least = stream && d->bos < 0 ? 2 : 1;
    double wanted = round((double)all * fraction);
    size_t held = wanted < (double)least ? least : (size_t)wanted;
    if (held >= all || all - held < least)
        return ql_fail(err, QL_ERR_ARG, "held-out fraction %g of %zu %s leaves nothing to train on", fraction, all,
                       stream ? "tokens" : "samples");
    ql_dataset *out = calloc(1, sizeof *out);
    if (!out)
        return no_memory(err);
    out->sequence = d->sequence;
    out->bos = d->bos;
    ql_status status = stream ? split_stream(d, held, out, err) : split_samples(d, held, seed, out, err);
    if (status)
        ql_dataset_close(out);
    else
        *held_out = out;
    return status;
}
