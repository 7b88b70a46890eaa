#include "chain_case.h"

#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "kern/kernels.h"

static ql_plan copy_plan(const ql_product *p, size_t threads)
{
    size_t products = 0;
    (void)threads;
    for (const ql_product *q = p; q; q = q->next)
        products++;
    return (ql_plan){.rows = 16 * products, .cols = 32, .packed = p->m * ql_product_inputs(p) * sizeof(float),
                     .packs = p->m, .scratch = products * sizeof(float)};
}

static size_t copy_packed(const ql_product *p)
{
    return copy_plan(p, 1).packed;
}

atomic_int chain_case_packed;

static void copy_pack(const ql_product *p, ql_plan plan, size_t token)
{
    size_t inputs = ql_product_inputs(p);
    (void)plan;
    chain_case_packed++;
    float *packed = (float *)p->packed + token * inputs;
    if (!p->narrow)
        memcpy(packed, p->x + token * p->ldx, inputs * sizeof(float));
    for (size_t i = 0; p->narrow && i < inputs; i++)
        packed[i] = ql_bf16_to_f32(p->narrow[token * p->ldx + i]);
}

/* Rounds to bf16, as the kernels do for which this stands. */
static void round_pack(const ql_product *p, ql_plan plan, size_t token)
{
    size_t inputs = ql_product_inputs(p);
    float *packed = (float *)p->packed + token * inputs;
    copy_pack(p, plan, token);
    for (size_t i = 0; i < inputs; i++)
        packed[i] = ql_bf16_to_f32(ql_f32_to_bf16(packed[i]));
}

static void add_up(const ql_product *p, ql_tile t, float *y, void *scratch)
{
    float *sums = scratch;
    for (const ql_product *q = p; q; q = q->next) {
        ql_product own = *q;
        own.narrow = NULL;
        own.x = q->packed, own.ldx = ql_product_inputs(q);
        own.y = y, own.ldy = p->ldy, own.add = q != p || p->add;
        ql_way_tile(ql_matmul_scalar.ways, &own, t, NULL);
        *sums++ = 0; /* as much scratch as was planned */
    }
}

static void copy_tile(const ql_product *p, ql_tile t, void *scratch)
{
    float *wide = p->narrow_y ? malloc((t.row + t.rows) * p->ldy * sizeof *wide) : NULL;
    add_up(p, t, wide ? wide : p->y, scratch);
    for (size_t row = t.row; wide && row < t.row + t.rows; row++)
        for (size_t i = row * p->ldy + t.col; i < row * p->ldy + t.col + t.cols; i++)
            p->narrow_y[i] = ql_f32_to_bf16(wide[i]);
    free(wide);
}

/* y, too, is rounded to what bf16 holds. */
static void round_tile(const ql_product *p, ql_tile t, void *scratch)
{
    add_up(p, t, p->y, scratch);
    for (size_t row = t.row; row < t.row + t.rows; row++)
        for (size_t i = row * p->ldy + t.col; !p->transposed && i < row * p->ldy + t.col + t.cols; i++)
            p->y[i] = ql_bf16_to_f32(ql_f32_to_bf16(p->y[i]));
}

static const ql_way copy_way = {.fits = ql_takes_everything, .packed = copy_packed, .plan = copy_plan,
                                .pack = copy_pack, .tile = copy_tile, .chains = true, .packs_alike = true,
                                .pack_tokens = 1};

static bool reads_narrow(const ql_product *p)
{
    (void)p;
    return true;
}

const ql_matmul_kernel chain_case_kernel = {.name = "chaining scalar", .accepts = ql_accepts_everything,
                                            .ways = &copy_way, .way_count = 1, .reads_narrow = reads_narrow,
                                            .bf16_inputs = true};

static const ql_way round_way = {.fits = ql_takes_everything,
                                 .packed = copy_packed,
                                 .plan = copy_plan,
                                 .pack = round_pack,
                                 .tile = copy_tile,
                                 .chains = true,
                                 .packs_alike = true};
const ql_matmul_kernel chain_rounds_kernel = {.name = "chaining, rounding scalar",
                                              .accepts = ql_accepts_everything,
                                              .ways = &round_way,
                                              .way_count = 1,
                                              .bf16_inputs = true};
static const ql_way round_both_way = {.fits = ql_takes_everything,
                                      .packed = copy_packed,
                                      .plan = copy_plan,
                                      .pack = round_pack,
                                      .tile = round_tile,
                                      .chains = true,
                                      .packs_alike = true};
const ql_matmul_kernel chain_rounds_both_kernel = {.name = "chaining, twice rounding scalar",
                                                   .accepts = ql_accepts_everything,
                                                   .ways = &round_both_way,
                                                   .way_count = 1,
                                                   .bf16_inputs = true};
const ql_matmul_kernel chain_reads_kernel = {.name = "chaining scalar of bf16",
                                             .accepts = ql_accepts_everything,
                                             .ways = &round_way,
                                             .way_count = 1,
                                             .reads_narrow = reads_narrow,
                                             .bf16_inputs = true};
