#include <assert.h>

#include "base/cpu.h"
#include "base/workers.h"
#include "model/ops.h"
#include "model/ops_kernels.h"

enum { TOKENS = 16 }; /* a piece of work */

typedef struct embed_job {
    const ql_weight *table;
    const ql_row_kernels *kernels;
    float scale;
    size_t m, ldy;
    const int32_t *ids;
    float *y;
} embed_job;

static void embed_tokens(void *ctx, size_t index, size_t worker)
{
    const embed_job *job = ctx;
    (void)worker;
    size_t end = (index + 1) * TOKENS < job->m ? (index + 1) * TOKENS : job->m;
    for (size_t t = index * TOKENS; t < end; t++) {
        assert(job->ids[t] >= 0 && (size_t)job->ids[t] < ql_weight_rows(job->table));
        ql_weight_dequantize(job->table, (size_t)job->ids[t], 1, job->y + t * job->ldy, job->ldy);
        if (job->scale != 1)
            job->kernels->scale(ql_weight_cols(job->table), job->y + t * job->ldy, job->scale);
    }
}

void ql_embed(const ql_weight *table, float scale, size_t m, const int32_t *ids, float *y, size_t ldy,
              ql_workers *workers)
{
    embed_job job = {table, ql_ops_select(ql_cpu_features())->rows, scale, m, ldy, ids, y};
    ql_parallel(workers, (m + TOKENS - 1) / TOKENS, embed_tokens, &job);
}
