/* What the processor can do at most, measured by the shortest loops that do it. */
#ifndef QL_BENCH_ROOF_H
#define QL_BENCH_ROOF_H

#include <stddef.h>
#include <stdint.h>

#include "qlora/base.h"
#include "stats.h"

typedef struct roof {
    const char *name;
    uint32_t cpu;                                 /* QL_CPU_ bits that it needs */
    double (*work)(size_t rounds);                /* multiplies and adds from registers; returns the operations */
    uint64_t (*read)(const void *p, size_t bytes); /* reads every line once; bytes: multiple of 1024 */
} roof;

extern const roof roof_portable, roof_avx2, roof_avx512, roof_avx512_bf16, roof_avx512_int8, roof_amx_int8, roof_amx;

/* The roof of a kernel that needs these bits. */
const roof *roof_for(uint32_t cpu);

/* The fastest reader that this processor has. */
const roof *roof_reader(uint32_t features);

/* Operations a second of all workers at work at once for `seconds`. */
double roof_rate(const roof *r, ql_workers *workers, bench_clock *clock, double seconds);

/* Bytes a second, likewise; each worker reads a part of its own of `copies` streams in turn, over and over. */
typedef struct roof_streams {
    const char *data;
    size_t bytes, copies; /* bytes of one stream */
} roof_streams;
double roof_read_rate(const roof *r, const roof_streams *s, ql_workers *workers, bench_clock *clock, double seconds);

#endif
