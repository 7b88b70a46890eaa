/* Status, errors, element types and worker threads: what every other header builds on. */
#ifndef QLORA_BASE_H
#define QLORA_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QL_API __attribute__((visibility("default")))

typedef enum ql_status {
    QL_OK = 0,
    QL_ERR_ARG,         /* an argument or option is out of range */
    QL_ERR_SHAPE,       /* shapes disagree, are empty or overflow */
    QL_ERR_VALUE,       /* NaN or infinity where a number is needed */
    QL_ERR_MEMORY,      /* out of memory */
    QL_ERR_IO,          /* the operating system refused a file operation */
    QL_ERR_FORMAT,      /* a file is damaged or is not what it says */
    QL_ERR_UNSUPPORTED, /* a valid input that this library does not handle */
} ql_status;

/* Where a failing call explains itself. Zeroed is valid; a NULL pointer is accepted everywhere. */
typedef struct ql_error {
    ql_status status;
    char message[1024]; /* one line, UTF-8, no trailing newline */
} ql_error;

/* A short English name of the status, for example "format". Never NULL. */
QL_API const char *ql_status_name(ql_status status);

/* Element types of arrays in memory and of tensors in files. */
typedef enum ql_dtype { QL_F32, QL_F16, QL_BF16, QL_I8, QL_U8, QL_I32, QL_I64, QL_F64, QL_BOOL, QL_U32 } ql_dtype;

QL_API size_t ql_dtype_size(ql_dtype type);      /* bytes an element */
QL_API const char *ql_dtype_name(ql_dtype type); /* "F32", "BF16", ... as safetensors writes them */

/* One piece of parallel work: index is in [0, count), worker in [0, threads). */
typedef void ql_task(void *ctx, size_t index, size_t worker);

/* Runs task(ctx, i, worker) once for every i in [0, count) and returns when all are done. No two
 * calls that run at the same time may share a worker number. */
typedef void ql_parallel_for(void *self, size_t count, ql_task *task, void *ctx);

/* Threads and their scratch memory. One caller at a time: it is not itself thread-safe. */
typedef struct ql_workers ql_workers;

/* The calling thread and threads - 1 others; 0 means one for each CPU that this process may run on, and no more than the
 * quota of its control group (version 2, as containers have) is worth. They start when they are first needed (in a forked child anew), block all signals, watch for the next piece of work at most 0.1 ms and
 * then sleep; no more of them are woken than there are CPUs. The caller owns *out. */
QL_API ql_status ql_workers_create(ql_workers **out, size_t threads, ql_error *err);

/* The caller's own threads: run(self, ...) is used for all parallel work. */
QL_API ql_status ql_workers_adopt(ql_workers **out, size_t threads, ql_parallel_for *run, void *self, ql_error *err);

/* Where the time of a training step goes. */
typedef enum ql_part {
    QL_PART_OTHER,     /* norms, rotation, activation functions, sums, embedding */
    QL_PART_FORWARD,   /* products with the base's linear layers, recomputed ones included */
    QL_PART_BACKWARD,  /* the transposed ones */
    QL_PART_ATTENTION, /* both ways */
    QL_PART_ADAPTERS,  /* LoRA's own products, both ways */
    QL_PART_LOSS,      /* LM head and cross-entropy, both ways */
    QL_PART_OPTIMIZER, /* zeroing gradients, their norm, AdamW, checking adapters */
    QL_PARTS
} ql_part;
QL_API const char *ql_part_name(ql_part part); /* "other", "matmul forward", ... */

/* Seconds of the caller's clock by part. Exactly one part runs at any time, so they add up to the whole. */
typedef struct ql_part_times {
    double seconds[QL_PARTS];
    ql_part now;
    double since;
} ql_part_times;

/* From now on what these workers are used for is added to *times, which the caller zeroed and keeps; NULL: no longer,
 * and what ran last is added. Without times an operation pays one comparison for it. */
QL_API void ql_workers_time(ql_workers *workers, ql_part_times *times);

/* Scratch bytes that an operation needs: once for all threads, and once for each. */
typedef struct ql_scratch {
    size_t shared, worker;
} ql_scratch;

/* Grows the scratch memory to hold at least `need`. Call it while planning, never inside a step. */
QL_API ql_status ql_workers_reserve(ql_workers *workers, ql_scratch need, ql_error *err);

QL_API size_t ql_workers_count(const ql_workers *workers);
QL_API size_t ql_workers_bytes(const ql_workers *workers); /* scratch bytes held */
QL_API void ql_workers_destroy(ql_workers *workers);       /* NULL is fine */

/* The instruction-set features this process may use, as text ("avx512 avx512-vnni ..."), after the
 * cap of the environment variable QLORA_ISA (scalar, avx2, avx512, avx512-bf16, amx). */
QL_API const char *ql_cpu_describe(void);

#ifdef __cplusplus
}
#endif
#endif
