#include "quant/matmul.h"

#include <cblas.h>

#include "base/cpu.h"
#include "base/workers.h"
#include "quant/weight.h"

/* Below so many multiplications, or so many numbers to pack, waking other threads costs more than they help. */
static const size_t least_products = 1u << 19, least_packed = 1u << 16;

typedef struct job {
    const ql_way *way;
    const ql_product *product;
    ql_plan plan;
    size_t tiles_across; /* tiles side by side along the outputs */
    ql_then then;        /* run is NULL: nothing */
    ql_workers *workers;
} job;

static size_t pieces(size_t length, size_t piece)
{
    return (length + piece - 1) / piece;
}

static void pack_piece(void *ctx, size_t index, size_t worker)
{
    const job *j = ctx;
    (void)worker;
    ql_way_pack(j->way, j->product, j->plan, index);
}

static void compute_tile(void *ctx, size_t index, size_t worker)
{
    const job *j = ctx;
    const ql_product *p = j->product;
    size_t outputs = ql_product_outputs(p);
    ql_tile t = {.row = index / j->tiles_across * j->plan.rows, .col = index % j->tiles_across * j->plan.cols};
    t.rows = p->m - t.row < j->plan.rows ? p->m - t.row : j->plan.rows;
    t.cols = outputs - t.col < j->plan.cols ? outputs - t.col : j->plan.cols;
    ql_way_tile(j->way, p, t, ql_worker_scratch(j->workers, worker));
    if (j->then.run)
        j->then.run(j->then.self, t);
}

/* ---- x in bf16, for kernels that do not read it so: widened beside what they pack ---- */

enum { WIDE_ROWS = 16 };

static size_t wide_offset(ql_plan plan)
{
    return (plan.packed + QL_ALIGN - 1) / QL_ALIGN * QL_ALIGN;
}

typedef struct widening {
    const ql_product *p;
    float *wide;
} widening;

static void widen_rows(void *ctx, size_t index, size_t worker)
{
    const widening *wider = ctx;
    const ql_product *p = wider->p;
    size_t inputs = ql_product_inputs(p), end = (index + 1) * WIDE_ROWS < p->m ? (index + 1) * WIDE_ROWS : p->m;
    (void)worker;
    for (size_t row = index * WIDE_ROWS; row < end; row++)
        for (size_t i = 0; i < inputs; i++)
            wider->wide[row * inputs + i] = ql_bf16_to_f32(p->narrow[row * p->ldx + i]);
}

static bool reads_narrow(const ql_matmul_kernel *kernel, const ql_product *p)
{
    return kernel->reads_narrow && kernel->reads_narrow(p);
}

static ql_product widened(const ql_matmul_kernel *kernel, const ql_product *p, ql_workers *workers)
{
    ql_product wide = *p;
    if (!p->narrow || reads_narrow(kernel, p) || !p->m)
        return wide;
    ql_plan plan = ql_kernel_plan(kernel, p, ql_workers_count(workers));
    widening wider = {p, (float *)(void *)((char *)ql_shared_scratch(workers) + wide_offset(plan))};
    ql_parallel(workers, pieces(p->m, WIDE_ROWS), widen_rows, &wider);
    wide.narrow = NULL;
    wide.x = wider.wide;
    wide.ldx = ql_product_inputs(p);
    return wide;
}

ql_scratch ql_product_scratch(const ql_matmul_kernel *kernel, const ql_product *p, size_t threads)
{
    ql_plan plan = ql_kernel_plan(kernel, p, threads);
    size_t wide = p->narrow ? wide_offset(plan) - plan.packed + p->m * ql_product_inputs(p) * sizeof(float) : 0;
    return (ql_scratch){.shared = plan.packed + wide, .worker = plan.scratch};
}

static void run(const ql_matmul_kernel *kernel, ql_product *p, ql_then then, ql_workers *workers)
{
    if (p->m == 0)
        return;
    p->packed = ql_shared_scratch(workers);
    job j = {.way = ql_way_of(kernel, p), .product = p, .plan = ql_kernel_plan(kernel, p, ql_workers_count(workers)), .then = then,
             .workers = workers};
    size_t inputs = ql_product_inputs(p), outputs = ql_product_outputs(p);
    j.tiles_across = pieces(outputs, j.plan.cols);
    assert(ql_scratch_fits(workers, (ql_scratch){.shared = j.plan.packed, .worker = j.plan.scratch}));
    int blas_threads = 1;
    if (kernel->blas) { /* our threads call it; its own would only fight them */
        blas_threads = openblas_get_num_threads();
        if (blas_threads != 1)
            openblas_set_num_threads(1);
    }
    ql_parallel(p->m * inputs < least_packed ? NULL : workers, j.plan.packs, pack_piece, &j);
    ql_parallel(p->m * inputs * outputs < least_products ? NULL : workers,
                pieces(p->m, j.plan.rows) * j.tiles_across, compute_tile, &j);
    if (blas_threads != 1)
        openblas_set_num_threads(blas_threads);
}

void ql_product_run(const ql_matmul_kernel *kernel, const ql_product *p, ql_workers *workers)
{
    ql_product wide = widened(kernel, p, workers);
    run(kernel, &wide, (ql_then){0}, workers);
}

void ql_matmul_then(const ql_weight *w, bool transposed, size_t m, const float *x, size_t ldx, float *y, size_t ldy,
                    bool add, ql_then then, ql_workers *workers)
{
    ql_product p = {.w = &w->view, .transposed = transposed, .m = m, .x = x, .ldx = ldx, .y = y, .ldy = ldy, .add = add};
    run(w->kernel, &p, then, workers);
}

ql_scratch ql_matmul_scratch(const ql_weight *w, size_t m, size_t threads)
{
    ql_product forward = {.w = &w->view, .m = m}, backward = {.w = &w->view, .m = m, .transposed = true};
    return ql_scratch_max(ql_product_scratch(w->kernel, &forward, threads),
                          ql_product_scratch(w->kernel, &backward, threads));
}

void ql_matmul(const ql_weight *w, size_t m, const float *x, size_t ldx, float *y, size_t ldy, bool add,
               ql_workers *workers)
{
    ql_product p = {.w = &w->view, .m = m, .x = x, .ldx = ldx, .y = y, .ldy = ldy, .add = add};
    ql_product_run(w->kernel, &p, workers);
}

void ql_matmul_t(const ql_weight *w, size_t m, const float *dy, size_t lddy, float *dx, size_t lddx, bool add,
                 ql_workers *workers)
{
    ql_product p = {.w = &w->view, .transposed = true, .m = m, .x = dy, .ldx = lddy, .y = dx, .ldy = lddx, .add = add};
    ql_product_run(w->kernel, &p, workers);
}

ql_scratch ql_matmul_bf16_scratch(const ql_weight *w, size_t m, size_t threads)
{
    static const uint16_t some;
    ql_product forward = {.w = &w->view, .m = m, .narrow = &some}, backward = forward;
    backward.transposed = true;
    return ql_scratch_max(ql_product_scratch(w->kernel, &forward, threads),
                          ql_product_scratch(w->kernel, &backward, threads));
}

void ql_matmul_bf16(const ql_weight *w, bool transposed, size_t m, const uint16_t *x, size_t ldx, float *y, size_t ldy,
                    bool add, ql_workers *workers)
{
    ql_product p = {.w = &w->view, .transposed = transposed, .m = m, .narrow = x, .ldx = ldx, .y = y, .ldy = ldy, .add = add};
    ql_product_run(w->kernel, &p, workers);
}

const char *ql_weight_kernel(const ql_weight *w)
{
    return w->kernel->name;
}

void ql_weight_allow_bf16(ql_weight *w, bool allow)
{
    w->kernel = ql_matmul_select(&w->view, ql_cpu_features(), allow ? QL_ROUND_BF16 : 0);
}

void ql_weight_allow_int8(ql_weight *w, bool allow)
{
    w->kernel = ql_matmul_select(&w->view, ql_cpu_features(), allow ? QL_ROUND_INT8 : 0);
}
