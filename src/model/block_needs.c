/* What a pass over the linear layers of blocks needs. */
#include "model/pass.h"

#include "base/workers.h"

static void need_linears(const ql_block *block, ql_module first, size_t count, const ql_block_size *size,
                         ql_scratch *need, size_t *work)
{
    const ql_linear *layer[QL_LINEARS];
    size_t present = 0;
    for (size_t i = 0; i < count; i++)
        if (block->linear[first + i].base)
            layer[present++] = &block->linear[first + i];
    size_t floats = ql_linears_work(layer, present, size->tokens, size->dropout);
    *need = ql_scratch_max(*need, ql_linears_scratch(layer, present, size->tokens, size->threads));
    *work = *work > floats ? *work : floats;
}

static bool alike(const ql_linear *a, const ql_linear *b)
{
    if (!a->base || !b->base)
        return a->base == b->base;
    const ql_adapter none = {.r = 0}, *c = a->adapter ? a->adapter : &none, *d = b->adapter ? b->adapter : &none;
    ql_format f = ql_weight_format(a->base), g = ql_weight_format(b->base);
    return f.code == g.code && f.scale == g.scale && f.group == g.group && f.flat == g.flat &&
           ql_weight_kernel(a->base) == ql_weight_kernel(b->base) &&
           ql_weight_rows(a->base) == ql_weight_rows(b->base) && ql_weight_cols(a->base) == ql_weight_cols(b->base) &&
           c->r == d->r && c->dora == d->dora;
}

/* Most blocks of a model are, and the needs of one take a millisecond to find out. */
static bool blocks_alike(const ql_block *a, const ql_block *b)
{
    for (int i = 0; i < QL_MODULES; i++)
        if (!alike(&a->linear[i], &b->linear[i]))
            return false;
    return true;
}

static void block_needs(const ql_block *block, const ql_block_size *size, ql_scratch *need, size_t *work)
{
    need_linears(block, QL_Q, QL_WITH_Q, size, need, work);
    need_linears(block, QL_O, 1, size, need, work);
    need_linears(block, QL_GATE, QL_WITH_GATE, size, need, work);
    need_linears(block, QL_DOWN, 1, size, need, work);
}

void ql_blocks_need(const ql_block *blocks, size_t count, const ql_block_size *size, ql_scratch *need, size_t *work)
{
    for (size_t i = 0; i < count; i++)
        if (i == 0 || !blocks_alike(&blocks[i - 1], &blocks[i]))
            block_needs(&blocks[i], size, need, work);
}
