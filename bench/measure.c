/* Timing: every run of a product stands between two of its roof, so that a busy or throttled machine slows both. */
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/cpu.h"
#include "base/workers.h"
#include "baseline.h"

enum { DECODE_TOKENS = 8 };
static const double roof_seconds = 0.008;

/* A product that is ready to run: one of our kernels, or a library's own objects, a copy for each place of weights. */
typedef struct ready {
    bench_case *c;
    contender who;
    void *made[MOST];
    size_t copies;
} ready;

static void product(const ready *r, size_t copy)
{
    if (!r->who.kernel) {
        r->who.baseline->multiply(r->made[copy % r->copies]);
        return;
    }
    const bench_case *c = r->c;
    ql_product p = {.w = &c->weights[copy % c->copies]->view, .transposed = c->transposed, .m = c->m, .x = c->x,
                    .ldx = case_inputs_of(c), .y = c->y, .ldy = case_outputs_of(c)};
    ql_product_run(r->who.kernel, &p, c->workers);
}

static double time_products(const ready *r, size_t copy, size_t times)
{
    bench_clock *clock = clock_for(r->c->threads);
    double start = clock();
    for (size_t i = 0; i < times; i++)
        product(r, copy + i);
    return (clock() - start) / (double)times;
}

static void unready(ready *r)
{
    for (size_t i = 0; i < r->copies; i++)
        r->who.baseline->release(r->made[i]);
    *r = (ready){0};
}

/* A baseline of several copies of its weights when cold; its first result is checked. */
static bool ready_baseline(ready *r)
{
    const baseline *b = r->who.baseline;
    const bench_case *c = r->c;
    size_t count = c->shape.n * c->shape.k, bytes = (size_t)((double)count * b->bits / 8);
    float *held = ql_alloc(count * sizeof *held);
    if (!held || (b->forward_only && c->transposed)) {
        free(held);
        return false;
    }
    bool made = false;
    do {
        memcpy(held, c->dense, count * sizeof *held);
        made = (r->made[r->copies] = b->prepare(c, held)) != NULL;
        r->copies += made;
    } while (made && c->cold && r->copies < MOST && r->copies * bytes < past_cache());
    if (r->copies) {
        product(r, 0);
        b->fetch(r->made[0], c->y);
    }
    bool right = r->copies && case_right(c, b->name, held, b->rounded);
    free(held);
    if (!right)
        unready(r);
    return right;
}

static bool ready_kernel(ready *r)
{
    const bench_case *c = r->c;
    const ql_matmul_kernel *kernel = r->who.kernel;
    ql_product p = {.w = &c->weights[0]->view, .transposed = c->transposed, .m = c->m};
    if (ql_workers_reserve(c->workers, ql_product_scratch(kernel, &p, c->threads), NULL) != QL_OK)
        return false;
    product(r, 0);
    return case_right(c, kernel->name, c->dense, ql_kernel_rounds(kernel, &p));
}

/* What bounds the product: reading the weights or multiplying. */
typedef struct bound {
    const roof *roof;
    bool by_bytes;
    roof_streams streams;
    ql_workers *workers;
    double work; /* of one product */
} bound;

/* What a kernel multiplies by: of one that does both, bytes where it rounds to them. */
static uint32_t kernel_cpu(const bench_case *c, const ql_matmul_kernel *kernel)
{
    ql_product p = {.w = &c->weights[0]->view, .transposed = c->transposed, .m = c->m};
    return kernel->cpu & ~(ql_kernel_rounds(kernel, &p) & QL_ROUND_INT8 ? (uint32_t)QL_CPU_AMX_BF16 : 0);
}

static bound bound_of(const ready *r)
{
    const bench_case *c = r->c;
    bound b = {.workers = c->workers, .by_bytes = r->who.kernel && c->m <= DECODE_TOKENS,
               .streams = {c->stream, c->stream_bytes, c->copies}};
    uint32_t cpu = r->who.kernel ? kernel_cpu(c, r->who.kernel) : r->who.baseline->roof & ql_cpu_features();
    b.roof = b.by_bytes ? roof_reader(ql_cpu_features()) : roof_for(cpu);
    b.work = b.by_bytes ? (double)ql_weight_bytes(c->weights[0]) : case_operations(c);
    return b;
}

static double measure_roof(const bound *b)
{
    bench_clock *clock = clock_for(ql_workers_count(b->workers));
    return b->by_bytes ? roof_read_rate(b->roof, &b->streams, b->workers, clock, roof_seconds)
                       : roof_rate(b->roof, b->workers, clock, roof_seconds);
}

static timing measure(const ready *r, const bound *b, size_t runs, size_t times)
{
    double seconds[MOST_RUNS], shares[MOST_RUNS], roofs[MOST_RUNS + 1];
    roofs[0] = measure_roof(b);
    for (size_t i = 0; i < runs; i++) {
        seconds[i] = time_products(r, i * times, times);
        roofs[i + 1] = measure_roof(b);
        shares[i] = b->work / seconds[i] / ((roofs[i] + roofs[i + 1]) / 2);
    }
    spread middle = summarize(roofs, runs + 1);
    return (timing){.seconds = summarize(seconds, runs), .runs = runs, .roof = summarize(shares, runs).median,
                    .roof_figure = middle.median, .roof_width = (middle.high - middle.low) / middle.median,
                    .roof_name = b->by_bytes ? "read" : b->roof->name};
}

bool case_time(timing *out, bench_case *c, contender who, const options *o)
{
    ready r = {.c = c, .who = who};
    memset(c->y, 0xff, c->m * case_outputs_of(c) * sizeof *c->y); /* no numbers: what is not written is wrong */
    if (!(who.kernel ? ready_kernel(&r) : ready_baseline(&r)))
        return false;
    double once = time_products(&r, 1, 1);
    size_t times = (size_t)(o->seconds / (once > 1e-7 ? once : 1e-7)) + 1, runs = o->runs;
    while (o->row_seconds > 0 && runs > 3 && (double)runs * once > o->row_seconds)
        runs--;
    bound b = bound_of(&r);
    double start = ql_seconds();
    for (size_t i = 1; i <= o->tries; i++) {
        timing t = measure(&r, &b, runs, times);
        if (i == 1 || t.roof_width < out->roof_width)
            *out = t;
        out->tries = i;
        if (out->roof_width <= ROOF_MOVES || (o->row_seconds > 0 && ql_seconds() - start > o->row_seconds))
            break;
    }
    if (!who.kernel)
        unready(&r);
    return true;
}
