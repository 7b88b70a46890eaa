/* Learning-rate schedules with linear warm-up. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "qlora/optim.h"

static const char *const names[] = {
    [QL_SCHEDULE_CONSTANT] = "constant", [QL_SCHEDULE_LINEAR] = "linear", [QL_SCHEDULE_COSINE] = "cosine"};
enum { SCHEDULES = sizeof names / sizeof *names };

ql_status ql_schedule_parse(ql_schedule *out, const char *name, ql_error *err)
{
    for (int i = 0; i < SCHEDULES; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (ql_schedule)i;
            return QL_OK;
        }
    }
    return ql_fail(err, QL_ERR_ARG, "schedule \"%.40s\" is not known; there are constant, linear and cosine", name);
}

const char *ql_schedule_name(ql_schedule schedule)
{
    assert((size_t)schedule < SCHEDULES);
    return names[schedule];
}

double ql_schedule_factor(ql_schedule schedule, size_t step, size_t warmup_steps, size_t steps)
{
    if (step < warmup_steps)
        return (double)step / (double)warmup_steps;
    double left = steps > warmup_steps ? (double)(steps - warmup_steps) : 1;
    double done = (double)(step - warmup_steps) / left;
    switch (schedule) {
    case QL_SCHEDULE_LINEAR:
        return step < steps ? (double)(steps - step) / left : 0;
    case QL_SCHEDULE_COSINE: {
        const double pi = 3.14159265358979323846;
        return 0.5 * (1 + cos(pi * done));
    }
    case QL_SCHEDULE_CONSTANT:
        break;
    }
    return 1;
}

size_t ql_warmup_steps(double ratio, size_t steps)
{
    assert(ratio >= 0 && ratio <= 1);
    return (size_t)ceil((double)steps * ratio);
}
