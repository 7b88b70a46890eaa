/* OpenBLAS: sgemm as it is linked or given by path, by its Haswell kernels, and in bf16 where it was built so. */
#define _GNU_SOURCE
#include <cblas.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sendfile.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "base/half.h"
#include "baseline.h"

typedef struct openblas {
    void (*sgemm)(enum CBLAS_ORDER, enum CBLAS_TRANSPOSE, enum CBLAS_TRANSPOSE, blasint m, blasint n, blasint k, float,
                  const float *, blasint, const float *, blasint, float, float *, blasint);
    void (*sbgemm)(enum CBLAS_ORDER, enum CBLAS_TRANSPOSE, enum CBLAS_TRANSPOSE, blasint m, blasint n, blasint k, float,
                   const uint16_t *, blasint, const uint16_t *, blasint, float, float *, blasint);
    void (*set_threads)(int);
    char *(*kernels)(void);
} openblas;

static openblas plain, haswell;
static const char *plain_file; /* where `plain` was found */

typedef struct product {
    const openblas *blas;
    blasint m, inputs, outputs, ldw;
    bool transposed;
    float *w, *y;
    const float *x;
    uint16_t *narrow_w, *narrow_x;
} product;

static bool functions(openblas *blas, void *library)
{
    const library_function wanted[] = {{"cblas_sgemm", &blas->sgemm},
                                       {"openblas_set_num_threads", &blas->set_threads},
                                       {"openblas_get_corename", &blas->kernels}};
    const library_function narrow[] = {{"cblas_sbgemm", &blas->sbgemm}};
    library_functions(library, narrow, 1);
    return library_functions(library, wanted, 3);
}

/* OpenBLAS chooses its kernels when it is loaded: another copy of the same file, under another name, chooses anew. */
static void *load_again(const char *path, const char *core)
{
    struct stat file;
    int from = open(path, O_RDONLY), copy = memfd_create("openblas", MFD_CLOEXEC);
    void *library = NULL;
    if (from >= 0 && copy >= 0 && fstat(from, &file) == 0) {
        ssize_t sent = 1;
        while (sent > 0)
            sent = sendfile(copy, from, NULL, (size_t)file.st_size);
        char name[32];
        snprintf(name, sizeof name, "/proc/self/fd/%d", copy);
        setenv("OPENBLAS_CORETYPE", core, 1);
        library = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
        unsetenv("OPENBLAS_CORETYPE");
    }
    if (from >= 0)
        close(from);
    return library; /* its file stays open: a name that was used again would be taken for this library */
}

/* A copy of the library with the kernels of a given core. */
static bool with_core(const char *core, openblas *out)
{
    void *library = plain_file ? load_again(plain_file, core) : NULL;
    openblas other = {0};
    if (!library || !functions(&other, library) || strcmp(other.kernels(), core) != 0)
        return false;
    *out = other;
    return true;
}

/* It knows processors by their models: one that it does not know has its slowest kernels, which would be no peer. */
static bool has_wide_kernels(const openblas *blas)
{
    static const char *const cores[] = {"SkylakeX", "Cooperlake", "SapphireRapids"};
    for (size_t i = 0; i < sizeof cores / sizeof *cores; i++)
        if (strcmp(blas->kernels(), cores[i]) == 0)
            return true;
    return false;
}

static const char *find_plain(const libraries *where)
{
    static const char *const linked[] = {"libopenblas.so.0", NULL};
    if (!plain.sgemm) {
        void *library = library_open(where->openblas, linked);
        if (!library || !functions(&plain, library))
            return NULL;
        Dl_info info;
        plain_file = dladdr(*(void **)&plain.sgemm, &info) ? info.dli_fname : NULL;
        if ((ql_cpu_features() & QL_CPU_AVX512) && !has_wide_kernels(&plain))
            with_core("SkylakeX", &plain);
    }
    return plain.kernels();
}

static const char *find_sbgemm(const libraries *where)
{
    const char *kernels = find_plain(where);
    return plain.sbgemm ? kernels : NULL;
}

static const char *find_haswell(const libraries *where)
{
    if (!haswell.sgemm && find_plain(where))
        with_core("Haswell", &haswell);
    return haswell.sgemm ? "Haswell" : NULL;
}

static void release(void *self)
{
    product *p = self;
    free(p->w);
    free(p->y);
    free(p->narrow_w);
    free(p->narrow_x);
    free(p);
}

static void *prepare(const openblas *blas, const bench_case *c, const float *held)
{
    size_t inputs = case_inputs_of(c), outputs = case_outputs_of(c), count = inputs * outputs;
    product *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    *p = (product){.blas = blas, .m = (blasint)c->m, .inputs = (blasint)inputs, .outputs = (blasint)outputs,
                   .ldw = (blasint)c->shape.k, .transposed = c->transposed, .x = c->x,
                   .w = ql_alloc(count * sizeof *p->w), .y = ql_alloc(c->m * outputs * sizeof *p->y)};
    if (!p->w || !p->y) {
        release(p);
        return NULL;
    }
    memcpy(p->w, held, count * sizeof *p->w);
    blas->set_threads((int)c->threads);
    return p;
}

static void *prepare_plain(const bench_case *c, float *held)
{
    return prepare(&plain, c, held);
}

static void *prepare_haswell(const bench_case *c, float *held)
{
    return prepare(&haswell, c, held);
}

static uint16_t *narrowed(const float *x, size_t count)
{
    uint16_t *narrow = ql_alloc(count * sizeof *narrow);
    for (size_t i = 0; narrow && i < count; i++)
        narrow[i] = ql_f32_to_bf16(x[i]);
    return narrow;
}

static void *prepare_sbgemm(const bench_case *c, float *held)
{
    product *p = prepare(&plain, c, held);
    if (!p)
        return NULL;
    p->narrow_w = narrowed(held, c->shape.n * c->shape.k);
    p->narrow_x = narrowed(c->x, c->m * case_inputs_of(c));
    if (p->narrow_w && p->narrow_x)
        return p;
    release(p);
    return NULL;
}

static void multiply(void *self)
{
    const product *p = self;
    p->blas->sgemm(CblasRowMajor, CblasNoTrans, p->transposed ? CblasNoTrans : CblasTrans, p->m, p->outputs, p->inputs,
                   1.0f, p->x, p->inputs, p->w, p->ldw, 0.0f, p->y, p->outputs);
}

static void multiply_narrow(void *self)
{
    const product *p = self;
    p->blas->sbgemm(CblasRowMajor, CblasNoTrans, p->transposed ? CblasNoTrans : CblasTrans, p->m, p->outputs,
                    p->inputs, 1.0f, p->narrow_x, p->inputs, p->narrow_w, p->ldw, 0.0f, p->y, p->outputs);
}

static void fetch(void *self, float *y)
{
    const product *p = self;
    memcpy(y, p->y, (size_t)p->m * (size_t)p->outputs * sizeof *y);
}

const baseline baseline_sgemm = {
    .name = "openblas", .weights = "f32", .bits = 32, .roof = QL_CPU_AVX2 | QL_CPU_AVX512, .find = find_plain,
    .prepare = prepare_plain, .multiply = multiply, .fetch = fetch, .release = release};
const baseline baseline_haswell = {
    .name = "openblas-avx2", .weights = "f32", .bits = 32, .roof = QL_CPU_AVX2, .find = find_haswell,
    .prepare = prepare_haswell, .multiply = multiply, .fetch = fetch, .release = release};
const baseline baseline_sbgemm = {
    .name = "openblas", .weights = "bf16", .bits = 16, .rounded = QL_ROUND_BF16,
    .roof = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_BF16 | QL_CPU_AMX_BF16, .find = find_sbgemm,
    .prepare = prepare_sbgemm, .multiply = multiply_narrow, .fetch = fetch, .release = release};
