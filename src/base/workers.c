#include "base/workers.h"

#include <stdlib.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/cpus.h"
#include "base/error.h"
#include "base/team.h"

enum { MAX_THREADS = 1024 };

struct ql_workers {
    size_t threads;
    ql_parallel_for *run;
    void *self;
    ql_team *team; /* ours, or NULL */
    ql_scratch size;
    char *memory; /* shared part, then one part a worker */
    ql_part_times *times; /* NULL: nobody asks */
};

static ql_status make(ql_workers **out, size_t threads, ql_parallel_for *run, void *self, ql_error *err)
{
    *out = NULL;
    if (threads > MAX_THREADS)
        return ql_fail(err, QL_ERR_ARG, "threads: %zu is more than %d", threads, MAX_THREADS);
    ql_workers *workers = calloc(1, sizeof *workers);
    if (!workers)
        return ql_fail(err, QL_ERR_MEMORY, "workers: out of memory");
    workers->threads = threads;
    workers->run = run;
    workers->self = self;
    *out = workers;
    return QL_OK;
}

ql_status ql_workers_create(ql_workers **out, size_t threads, ql_error *err)
{
    ql_status status = make(out, threads ? threads : ql_usable_cpus(), ql_team_run, NULL, err);
    if (status)
        return status;
    ql_workers *workers = *out;
    workers->self = workers->team = ql_team_create(workers->threads);
    if (workers->team)
        return QL_OK;
    ql_workers_destroy(workers);
    *out = NULL;
    return ql_fail(err, QL_ERR_MEMORY, "workers: out of memory");
}

ql_status ql_workers_adopt(ql_workers **out, size_t threads, ql_parallel_for *run, void *self, ql_error *err)
{
    if (!run || !threads) {
        *out = NULL;
        return ql_fail(err, QL_ERR_ARG, "workers: a parallel-for of the caller's needs a function and its threads");
    }
    return make(out, threads, run, self, err);
}

static size_t round_up(size_t bytes)
{
    /* Odd multiples of a line keep the workers' parts from aliasing in the cache. */
    size_t lines = (bytes + QL_ALIGN - 1) / QL_ALIGN;
    return (lines | 1) * QL_ALIGN;
}

static ql_scratch rounded(ql_scratch need)
{
    return (ql_scratch){.shared = round_up(need.shared), .worker = round_up(need.worker)};
}

size_t ql_scratch_bytes(ql_scratch need, size_t threads)
{
    ql_scratch size = rounded(need);
    return size.shared + size.worker * threads;
}

ql_status ql_workers_reserve(ql_workers *workers, ql_scratch need, ql_error *err)
{
    if (ql_scratch_fits(workers, need))
        return QL_OK;
    ql_scratch size = rounded(ql_scratch_max(workers->size, need));
    char *memory = ql_alloc(size.shared + size.worker * workers->threads);
    if (!memory)
        return ql_fail(err, QL_ERR_MEMORY, "scratch memory: %zu bytes for %zu threads are not to be had",
                       size.shared + size.worker * workers->threads, workers->threads);
    free(workers->memory);
    workers->memory = memory;
    workers->size = size;
    return QL_OK;
}

void ql_parallel(ql_workers *workers, size_t count, ql_task *task, void *ctx)
{
    if (workers && workers->threads > 1 && count > 1) {
        workers->run(workers->self, count, task, ctx);
        return;
    }
    for (size_t i = 0; i < count; i++)
        task(ctx, i, 0);
}

const char *ql_part_name(ql_part part)
{
    static const char *const names[QL_PARTS] = {"other",    "matmul forward", "matmul backward", "attention",
                                                "adapters", "loss and head",  "optimizer"};
    return names[part];
}

void ql_mark(ql_workers *workers, ql_part part)
{
    if (!workers || !workers->times)
        return;
    ql_part_times *times = workers->times;
    double now = ql_seconds();
    times->seconds[times->now] += now - times->since;
    times->now = part;
    times->since = now;
}

void ql_workers_time(ql_workers *workers, ql_part_times *times)
{
    ql_mark(workers, QL_PART_OTHER);
    workers->times = times;
    if (times) {
        times->now = QL_PART_OTHER;
        times->since = ql_seconds();
    }
}

bool ql_scratch_fits(const ql_workers *workers, ql_scratch need)
{
    return need.shared <= workers->size.shared && need.worker <= workers->size.worker;
}

void *ql_shared_scratch(ql_workers *workers)
{
    return workers->memory;
}

void *ql_worker_scratch(ql_workers *workers, size_t worker)
{
    if (!workers->memory)
        return NULL;
    return workers->memory + workers->size.shared + workers->size.worker * worker;
}

size_t ql_workers_count(const ql_workers *workers)
{
    return workers ? workers->threads : 1;
}

size_t ql_workers_bytes(const ql_workers *workers)
{
    return workers && workers->memory ? workers->size.shared + workers->size.worker * workers->threads : 0;
}

void ql_workers_destroy(ql_workers *workers)
{
    if (!workers)
        return;
    ql_team_destroy(workers->team);
    free(workers->memory);
    free(workers);
}
