/* What the tests of models read from files share: two threads, models as stored, their loss. */
#ifndef QL_TESTS_MODEL_SUPPORT_H
#define QL_TESTS_MODEL_SUPPORT_H

#include <stdlib.h>

#include "model/pass.h"
#include "support.h"

static ql_workers *workers;
static ql_error err;

static const ql_format none = {.code = QL_CODE_F32, .scale = QL_SCALE_NONE};

static inline void setup(void)
{
    ck_assert_ok(ql_workers_create(&workers, 2, &err), &err);
}

static inline void teardown(void)
{
    ql_workers_destroy(workers);
}

/* Mean loss over the next-token targets of one sequence. */
static inline double loss_of(const ql_model *model, const int32_t *ids, size_t count)
{
    size_t m = count - 1, start[2] = {0, m};
    uint32_t *position = malloc(m * sizeof *position);
    for (size_t i = 0; i < m; i++)
        position[i] = (uint32_t)i;
    ql_batch batch = {
        .tokens = m, .sequences = 1, .ids = ids, .target = ids + 1, .position = position, .start = start};
    ql_pass pass = {0};
    ql_loss_sum loss;
    ck_assert_ok(ql_pass_init(&pass, model, m, m, (ql_pass_kind){0}, workers, &err), &err);
    ck_assert_ok(ql_pass_run(&pass, &batch, 0, NULL, NULL, &loss, workers, &err), &err);
    ck_assert_uint_eq(loss.count, m);
    ql_pass_free(&pass);
    free(position);
    return loss.sum / (double)loss.count;
}

#endif
