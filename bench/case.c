/* The data of a measurement. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/rng.h"
#include "base/workers.h"
#include "bench.h"

size_t past_cache(void)
{
    long last = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return last > 0 ? 3 * (size_t)last : (size_t)192 << 20;
}

static float *random_floats(size_t count, uint64_t stream)
{
    float *x = ql_alloc(count * sizeof *x);
#pragma omp parallel for if (x)
    for (size_t i = 0; i < (x ? count : 0); i += 4) {
        uint32_t bits[4];
        ql_philox(1, stream, i / 4, bits);
        for (size_t j = 0; j < 4 && i + j < count; j++)
            x[i + j] = ql_uniform(bits[j]) * 2 - 1;
    }
    return x;
}

/* ggml's blocks of random values, or where nothing encodes them of random codes. */
static ql_status random_blocks(ql_weight **out, ql_code code, const char *name, const float *x, shape s, ql_error *err)
{
    ql_ggml_block type = ql_ggml_block_of(code);
    size_t count = s.n * s.k / type.elements, bytes = count * type.bytes;
    uint8_t *blocks = ql_alloc(bytes);
    if (!blocks)
        return QL_ERR_MEMORY;
    const uint16_t scale = ql_f32_to_f16(0.01f);
    uint32_t bits[4];
    ql_status status = type.elements == 32 ? ql_blocks_encode(code, name, x, s.n * s.k, blocks, err) : QL_OK;
    for (size_t i = 0; i < bytes && type.elements == 256; i++) {
        if (i % 16 == 0)
            ql_philox(1, 5, i / 16, bits);
        blocks[i] = (uint8_t)(bits[i % 16 / 4] >> i % 4 * 8);
    }
    for (size_t i = 0; i < count && type.elements == 256; i++) {
        memcpy(blocks + i * type.bytes + (code == QL_CODE_Q6_K ? 208 : 0), &scale, 2);
        if (code != QL_CODE_Q6_K)
            memcpy(blocks + i * type.bytes + 2, &scale, 2);
    }
    if (!status)
        status = ql_weight_from_blocks(out, code, name, blocks, bytes, s.n, s.k, true, err);
    free(blocks);
    return status;
}

static ql_status make_weight(ql_weight **out, const bench_case *c, const options *o, const char *name, ql_workers *workers,
                             ql_error *err)
{
    ql_format format;
    ql_code code;
    shape s = c->shape;
    if (ql_code_of_blocks(&code, name))
        return random_blocks(out, code, name, c->dense, s, err);
    ql_status status = ql_format_parse(&format, name, o->group, o->double_quant, err);
    return status ? status : ql_weight_quantize(out, format, name, c->dense, QL_F32, s.k, s.n, s.k, workers, err);
}

bool case_weights(bench_case *c, const options *o, const char *name, shape s, ql_error *err)
{
    *c = (bench_case){.shape = s, .cold = o->cold, .dense = random_floats(s.n * s.k, 1)};
    ql_workers *workers;
    if (!c->dense || ql_workers_create(&workers, 0, err) != QL_OK)
        return false;
    bool made;
    do {
        made = make_weight(&c->weights[c->copies], c, o, name, workers, err) == QL_OK;
        c->copies += made;
    } while (made && o->cold && c->copies < MOST && c->copies * ql_weight_bytes(c->weights[0]) < past_cache());
    ql_workers_destroy(workers);
    if (!made)
        return false;
    ql_weight_dequantize(c->weights[0], 0, s.n, c->dense, s.k);
    c->stream_bytes = (ql_weight_bytes(c->weights[0]) + 4095) / 4096 * 4096;
    c->stream = ql_alloc(c->stream_bytes * c->copies);
    return c->stream != NULL;
}

bool case_inputs(bench_case *c, bool transposed, size_t m, size_t threads, ql_error *err)
{
    c->transposed = transposed;
    c->m = m;
    c->threads = threads;
    c->x = random_floats(m * case_inputs_of(c), 2);
    c->y = ql_alloc(m * case_outputs_of(c) * sizeof *c->y);
    if (ql_workers_create(&c->workers, threads, err) != QL_OK)
        return false;
    return c->x && c->y;
}

void case_free_inputs(bench_case *c)
{
    free(c->x);
    free(c->y);
    ql_workers_destroy(c->workers);
    c->x = c->y = NULL;
    c->workers = NULL;
}

void case_free_weights(bench_case *c)
{
    for (size_t i = 0; i < c->copies; i++)
        ql_weight_destroy(c->weights[i]);
    free(c->dense);
    free(c->stream);
    *c = (bench_case){0};
}

bool case_right(const bench_case *c, const char *name, const float *dense, unsigned rounded)
{
    enum { SAMPLE = 400 };
    size_t inputs = case_inputs_of(c), outputs = case_outputs_of(c);
    double unit = rounded & QL_ROUND_BF16 ? 0x1p-7 + 0x1p-16 : 0, gamma = (double)(inputs + 4) * 0x1p-24;
    ql_rng rng = {.seed = 3};
    for (int s = 0; s < SAMPLE; s++) {
        size_t i = ql_rng_below(&rng, (uint32_t)c->m), j = ql_rng_below(&rng, (uint32_t)outputs);
        double sum = 0, size = 0, weights = 0, largest = 0;
        for (size_t l = 0; l < inputs; l++) {
            double w = (double)dense[c->transposed ? l * c->shape.k + j : j * c->shape.k + l];
            double term = (double)c->x[i * inputs + l] * w;
            sum += term;
            size += fabs(term);
            weights += fabs(w);
            largest = fmax(largest, fabs(w));
        }
        /* Bytes: x is off by 1/254 of 1 at most, and W of what its group can have, half as much again as it has here. */
        double bytes = rounded & QL_ROUND_INT8 ? (weights + 1.5 * largest * (double)inputs) / 254 : 0;
        double got = (double)c->y[i * outputs + j];
        if (!(fabs(got - sum) <= (gamma + unit) * size + bytes)) {
            fprintf(stderr, "%s is wrong: m %zu n %zu k %zu%s: [%zu][%zu] is %.9g, not %.9g\n", name, c->m, c->shape.n,
                    c->shape.k, c->transposed ? " transposed" : "", i, j, got, sum);
            return false;
        }
    }
    return true;
}
