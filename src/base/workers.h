/* Parallel loops over the caller's workers. */
#ifndef QL_SRC_BASE_WORKERS_H
#define QL_SRC_BASE_WORKERS_H

#include "qlora/base.h"

/* Runs task(ctx, i, worker) for i in [0, count). A NULL `workers` runs it on this thread. */
void ql_parallel(ql_workers *workers, size_t count, ql_task *task, void *ctx);

/* From now on the time is that of `part`: for the thread that drives the work, not inside of tasks. */
void ql_mark(ql_workers *workers, ql_part part);

/* Scratch memory, aligned to a cache line, at least as large as what was reserved. */
void *ql_shared_scratch(ql_workers *workers);
void *ql_worker_scratch(ql_workers *workers, size_t worker);

/* Asserts, in a debug build, that `need` was reserved. */
bool ql_scratch_fits(const ql_workers *workers, ql_scratch need);

/* Bytes that reserving `need` takes for so many threads. */
size_t ql_scratch_bytes(ql_scratch need, size_t threads);

static inline ql_scratch ql_scratch_max(ql_scratch a, ql_scratch b)
{
    return (ql_scratch){a.shared > b.shared ? a.shared : b.shared, a.worker > b.worker ? a.worker : b.worker};
}

#endif
