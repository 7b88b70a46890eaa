#include "quant/matmul.h"

#include "base/cpu.h"
#include "base/workers.h"
#include "quant/weight.h"

ql_product ql_product_of(const ql_weight *w, bool transposed, size_t m, const float *x, size_t ldx)
{
    return (ql_product){.w = &w->view, .transposed = transposed, .m = m, .x = x, .ldx = ldx, .kernel = w->kernel};
}

static ql_chain alone(const ql_matmul_kernel *kernel, ql_product *p)
{
    p->kernel = kernel;
    p->next = NULL;
    return (ql_chain){.product = p};
}

ql_scratch ql_product_scratch(const ql_matmul_kernel *kernel, const ql_product *p, size_t threads)
{
    ql_product own = *p;
    ql_chain chain = alone(kernel, &own);
    return ql_batch_scratch(&chain, 1, &(ql_packs){0}, threads);
}

void ql_product_run(const ql_matmul_kernel *kernel, const ql_product *p, ql_workers *workers)
{
    ql_product own = *p;
    ql_chain chain = alone(kernel, &own);
    ql_batch_run(&chain, 1, &(ql_packs){0}, workers);
}

void ql_matmul_then(const ql_weight *w, bool transposed, size_t m, const float *x, size_t ldx, float *y, size_t ldy,
                    bool add, ql_then then, ql_workers *workers)
{
    ql_product p = ql_product_of(w, transposed, m, x, ldx);
    p.y = y, p.ldy = ldy, p.add = add;
    ql_batch_run(&(ql_chain){&p, then}, 1, &(ql_packs){0}, workers);
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
