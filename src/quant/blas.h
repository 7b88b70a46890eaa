/* OpenBLAS within our own threads: its threads would only fight them. */
#ifndef QL_SRC_QUANT_BLAS_H
#define QL_SRC_QUANT_BLAS_H

#include <cblas.h>
#include <stdbool.h>

/* Holds OpenBLAS to one thread if it is to be called; returns what ql_blas_release() wants. */
static inline int ql_blas_hold(bool called)
{
    int threads = called ? openblas_get_num_threads() : 1;
    if (threads != 1)
        openblas_set_num_threads(1);
    return threads;
}

static inline void ql_blas_release(int threads)
{
    if (threads != 1)
        openblas_set_num_threads(threads);
}

#endif
