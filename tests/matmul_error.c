#include "matmul_error.h"

#include "kern/decode.h"
#include "kern/few.h"
#include "kern/gemv.h"
#include "kern/kernels.h"

bool case_in_fixed_point(const ql_matmul_kernel *kernel, const ql_product *p)
{
#ifdef __x86_64__
    return ql_way_of(kernel, p)->tile == ql_gemv_int16_tile;
#else
    (void)kernel, (void)p;
    return false;
#endif
}

size_t case_byte_run(const ql_matmul_kernel *kernel, const ql_product *p)
{
#ifdef __x86_64__
    void (*tile)(const ql_product *, ql_tile, void *) = ql_way_of(kernel, p)->tile;
    if (tile != ql_gemv_int8_tile && tile != ql_few_int8_tile)
        return QL_AMX_INT8_PART;
#else
    (void)kernel, (void)p;
#endif
    return QL_BLOCK;
}

static double magnitude(const float *x, size_t count)
{
    float largest = 0;
    for (size_t i = 0; i < count; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    return (double)largest;
}

/* Of the `run` numbers that column l begins. */
static double run_magnitude(const ql_product *p, size_t i, size_t l, size_t run)
{
    return magnitude(p->x + i * p->ldx + l, p->w->k - l < run ? p->w->k - l : run);
}

/* No table, or one of small integers, which become integers without an error. */
static bool whole(const float *table)
{
    bool all = true;
    for (int i = 0; table && i < 16; i++)
        all = all && fabsf(table[i]) <= 64 && table[i] == rintf(table[i]);
    return all;
}

static double scale_at(const ql_wview *w, size_t j, size_t l)
{
    return fabs((double)ql_wview_scale(w, j * ql_row_groups(w) + l / w->format.group));
}

/* The largest that the scales of the run that column l begins, and codes, can make. */
static double code_magnitude(const ql_wview *w, size_t j, size_t l, size_t run)
{
    double largest = 0;
    for (size_t at = l; at < w->k && at < l + run; at++)
        largest = fmax(largest, scale_at(w, j, at));
    return largest * (w->table ? magnitude(w->table, 16) : 127);
}

/* x is off by 1/254 of the largest of its run, a weight by 1/254 of the largest that its scale and table can make; in
 * runs longer than a block, which have one factor of W too, by that of the largest scale of the run. */
double case_byte_error(const ql_product *p, const weight_case *c, size_t i, size_t j, size_t run)
{
    const ql_wview *w = p->w;
    const double step = whole(w->table) ? 0 : magnitude(w->table, 16) / 254;
    double error = 0, of_x = 0, of_run = 0;
    for (size_t l = 0; l < w->k; l++) {
        if (l % run == 0) {
            of_x = run_magnitude(p, i, l, run) / 254;
            of_run = code_magnitude(w, j, l, run) / 254;
        }
        double of_w = run > QL_BLOCK ? of_run : step * scale_at(w, j, l);
        error += fabs((double)p->x[i * p->ldx + l]) * of_w + (fabs(c->values[j * w->k + l]) + of_w) * of_x;
    }
    return 1.01 * error;
}

/* Numbers are off by half a unit. The largest x that shares a scale, and the largest of a table, have at least 2^13
 * units (x at most 2^14 - 1: it is off by one just below 2^14, where the unit below is twice its own). The largest x of
 * a block of one token has more than 16319, a table's 127 * 256, and each product loses that of its low digits, at most 2^14,
 * which is 0 where a factor is a small integer. */
double case_fixed_error(const ql_product *p, const weight_case *c, size_t i, size_t j)
{
    const ql_wview *w = p->w;
    const bool digits = p->m == 1 && w->table;
    const double table_unit = whole(w->table) ? 0 : magnitude(w->table, 16) / (digits ? 127 * 256 : 1 << 13);
    const size_t run = digits ? QL_BLOCK : w->format.group;
    double error = 0, x_unit = 0;
    for (size_t l = 0; l < w->k; l++) {
        if (l % run == 0)
            x_unit = run_magnitude(p, i, l, run) / (digits ? 16319 : 1 << 13);
        double w_unit = table_unit * scale_at(w, j, l), lost = digits ? (1 << 14) * x_unit * w_unit : 0;
        error += fabs((double)p->x[i * p->ldx + l]) * w_unit / 2 +
                 (fabs(c->values[j * w->k + l]) + w_unit / 2) * x_unit / 2 + lost;
    }
    return 1.01 * error;
}
