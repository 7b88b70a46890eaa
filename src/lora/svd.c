/* A few random combinations of W's rows are multiplied by W and W^T until they span what its largest singular values
 * span; what W does to that small space is solved exactly. Vectors are rows, so that every product is one of a weight
 * with a few tokens. */
#include "lora/svd.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/rng.h"
#include "base/workers.h"
#include "lora/dot.h"
#include "lora/streams.h"

enum { MORE = 10, POWERS = 16, SWEEPS = 40 };

static void add_scaled(float *x, double factor, const float *y, size_t count)
{
    for (size_t j = 0; j < count; j++)
        x[j] += (float)factor * y[j];
}

/* Gram and Schmidt, each row twice. A row that the others span becomes 0. */
static void orthonormalize(float *x, size_t rows, size_t count)
{
    for (size_t i = 0; i < rows; i++) {
        float *row = x + i * count;
        double before = sqrt(ql_dot(row, row, count));
        for (int again = 0; again < 2; again++)
            for (size_t j = 0; j < i; j++)
                add_scaled(row, -ql_dot(row, x + j * count, count), x + j * count, count);
        double norm = sqrt(ql_dot(row, row, count));
        float inverse = norm > 1e-6 * before ? (float)(1 / norm) : 0;
        for (size_t j = 0; j < count; j++)
            row[j] *= inverse;
    }
}

/* Turns rows and columns p and q of the symmetric g so that g[p][q] is 0, and the rows of t along with them. */
static void rotate(double *g, double *t, size_t l, size_t p, size_t q)
{
    double angle = (g[q * l + q] - g[p * l + p]) / (2 * g[p * l + q]);
    double tangent = (angle >= 0 ? 1 : -1) / (fabs(angle) + sqrt(angle * angle + 1));
    double c = 1 / sqrt(tangent * tangent + 1), s = tangent * c;
    for (size_t i = 0; i < l; i++) {
        double x = g[i * l + p], y = g[i * l + q];
        g[i * l + p] = c * x - s * y;
        g[i * l + q] = s * x + c * y;
    }
    for (size_t i = 0; i < l; i++) {
        double x = g[p * l + i], y = g[q * l + i];
        g[p * l + i] = c * x - s * y;
        g[q * l + i] = s * x + c * y;
        x = t[p * l + i], y = t[q * l + i];
        t[p * l + i] = c * x - s * y;
        t[q * l + i] = s * x + c * y;
    }
}

/* Jacobi's method: the rows of t become the eigenvectors of g, its diagonal their values. */
static void diagonalize(double *g, double *t, size_t l)
{
    for (size_t i = 0; i < l * l; i++)
        t[i] = i % (l + 1) == 0;
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        bool turned = false;
        for (size_t p = 0; p < l; p++)
            for (size_t q = p + 1; q < l; q++)
                if (fabs(g[p * l + q]) > 1e-14 * sqrt(fabs(g[p * l + p] * g[q * l + q])) && g[p * l + q] != 0) {
                    rotate(g, t, l, p, q);
                    turned = true;
                }
        if (!turned)
            return;
    }
}

typedef struct space {
    size_t n, k, l;
    float *x, *y;  /* [l][k], [l][n] */
    double *g, *t; /* [l][l] */
} space;

static space carve(ql_arena *arena, size_t n, size_t k, size_t l)
{
    return (space){n,
                   k,
                   l,
                   ql_take(arena, l * k, float),
                   ql_take(arena, l * n, float),
                   ql_take(arena, l * l, double),
                   ql_take(arena, l * l, double)};
}

/* y becomes an orthonormal basis of what W's largest singular values reach, x = y W. */
static void project(const ql_weight *w, const space *a, uint64_t seed, uint64_t stream, ql_workers *workers)
{
    ql_rng rng = {.seed = seed, .stream = stream};
    for (size_t i = 0; i < a->l * a->k; i++)
        a->x[i] = ql_uniform(ql_rng_next(&rng)) - 0.5f;
    for (int power = 0; power <= POWERS; power++) {
        ql_matmul(w, a->l, a->x, a->k, a->y, a->n, false, workers);
        orthonormalize(a->y, a->l, a->n);
        ql_matmul_t(w, a->l, a->y, a->n, a->x, a->k, false, workers);
        if (power < POWERS)
            orthonormalize(a->x, a->l, a->k);
    }
}

static size_t largest(const space *a, bool *taken)
{
    size_t best = a->l;
    for (size_t i = 0; i < a->l; i++)
        if (!taken[i] && (best == a->l || a->g[i * (a->l + 1)] > a->g[best * (a->l + 1)]))
            best = i;
    taken[best] = true;
    return best;
}

static void combine(float *out, const double *factors, const float *rows, size_t l, size_t count)
{
    for (size_t j = 0; j < count; j++)
        out[j] = 0;
    for (size_t i = 0; i < l; i++)
        add_scaled(out, factors[i], rows + i * count, count);
}

static void solve(const space *a, size_t rank, bool *taken, float *u, float *s, float *v)
{
    for (size_t i = 0; i < a->l; i++)
        for (size_t j = 0; j < a->l; j++)
            a->g[i * a->l + j] = ql_dot(a->x + i * a->k, a->x + j * a->k, a->k);
    diagonalize(a->g, a->t, a->l);
    for (size_t i = 0; i < rank; i++) {
        size_t from = largest(a, taken);
        double value = a->g[from * (a->l + 1)];
        s[i] = (float)sqrt(value > 0 ? value : 0);
        combine(u + i * a->n, a->t + from * a->l, a->y, a->l, a->n);
        combine(v + i * a->k, a->t + from * a->l, a->x, a->l, a->k);
        for (size_t j = 0; j < a->k; j++)
            v[i * a->k + j] *= s[i] > 0 ? 1 / s[i] : 0;
    }
}

ql_status ql_svd(const ql_weight *w, size_t rank, uint64_t seed, uint64_t stream, float *u, float *s, float *v,
                 ql_workers *workers, ql_error *err)
{
    size_t n = ql_weight_rows(w), k = ql_weight_cols(w), least = n < k ? n : k;
    size_t l = rank + MORE < least ? rank + MORE : least;
    assert(rank && rank <= least);
    ql_arena arena = {0};
    carve(&arena, n, k, l);
    char *memory = ql_alloc(arena.used);
    bool *taken = calloc(l, sizeof *taken);
    ql_status status = memory && taken
                           ? ql_workers_reserve(workers, ql_matmul_scratch(w, l, ql_workers_count(workers)), err)
                           : ql_fail(err, QL_ERR_MEMORY, "singular values: out of memory");
    if (!status) {
        arena = (ql_arena){.base = memory};
        space a = carve(&arena, n, k, l);
        project(w, &a, seed, stream, workers);
        solve(&a, rank, taken, u, s, v);
    }
    free(taken);
    free(memory);
    return status;
}
