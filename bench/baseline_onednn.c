/* oneDNN 3: its matmul with weights in bf16, and in 4 bits with a scale for every 64 where the version has them.
 * x and the result are bf16, as its users have them; weights are put into the order that it wishes beforehand.
 * The declarations follow its C interface as documented. */
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "baseline.h"

enum { CPU = 1, IN_ORDER = 1, ANY_ORDER = 1, BF16 = 2, F32 = 3, S4 = 11, FPMATH_BF16 = 1, WEIGHTS_MD = 131 };
enum { ARG_SRC = 1, ARG_DST = 17, ARG_WEIGHTS = 33, ARG_SCALES = 4096 };
enum { GROUP = 64, MOST_OBJECTS = 32 };

typedef struct argument {
    int index;
    void *memory;
} argument;

typedef struct version {
    int major, minor, patch;
} version;

static struct {
    const version *(*version)(void);
    int (*engine_create)(void **, int kind, size_t index);
    int (*stream_create)(void **, void *engine, unsigned flags);
    int (*stream_wait)(void *);
    int (*md_by_strides)(void **, int dims, const int64_t *sizes, int type, const int64_t *strides);
    int (*md_by_tag)(void **, int dims, const int64_t *sizes, int type, int tag);
    int (*md_destroy)(void *);
    int (*memory_create)(void **, const void *md, void *engine, void *place);
    int (*memory_destroy)(void *);
    int (*matmul)(void **, void *engine, const void *x, const void *w, const void *bias, const void *y, const void *attr);
    int (*reorder)(void **, const void *from, void *engine, const void *to, void *engine_too, const void *attr);
    const void *(*query_md)(const void *pd, int what, int index);
    int (*pd_destroy)(void *);
    int (*primitive_create)(void **, const void *pd);
    int (*primitive_destroy)(void *);
    int (*execute)(const void *primitive, void *stream, int count, const argument *);
    int (*attr_create)(void **);
    int (*attr_destroy)(void *);
    int (*set_scales)(void *attr, int arg, int mask, int dims, const int64_t *group, int type);
    int (*set_fpmath)(void *attr, int mode, int of_integers_too);
    void (*set_threads)(int);
    void *engine, *stream;
} dnnl;

static void *open_library(const libraries *where)
{
    static const char *const names[] = {"libdnnl.so.3", "libdnnl.so", NULL};
    static void *library;
    if (!library)
        library = library_open(where->onednn, names);
    return library;
}

static const char *find(const libraries *where)
{
    static char text[48];
    const library_function wanted[] = {
        {"dnnl_version", &dnnl.version}, {"dnnl_engine_create", &dnnl.engine_create},
        {"dnnl_stream_create", &dnnl.stream_create}, {"dnnl_stream_wait", &dnnl.stream_wait},
        {"dnnl_memory_desc_create_with_strides", &dnnl.md_by_strides},
        {"dnnl_memory_desc_create_with_tag", &dnnl.md_by_tag}, {"dnnl_memory_desc_destroy", &dnnl.md_destroy},
        {"dnnl_memory_create", &dnnl.memory_create}, {"dnnl_memory_destroy", &dnnl.memory_destroy},
        {"dnnl_matmul_primitive_desc_create", &dnnl.matmul}, {"dnnl_reorder_primitive_desc_create", &dnnl.reorder},
        {"dnnl_primitive_desc_query_md", &dnnl.query_md}, {"dnnl_primitive_desc_destroy", &dnnl.pd_destroy},
        {"dnnl_primitive_create", &dnnl.primitive_create}, {"dnnl_primitive_destroy", &dnnl.primitive_destroy},
        {"dnnl_primitive_execute", &dnnl.execute}, {"dnnl_primitive_attr_create", &dnnl.attr_create},
        {"dnnl_primitive_attr_destroy", &dnnl.attr_destroy}, {"omp_set_num_threads", &dnnl.set_threads}};
    void *library = open_library(where);
    if (!library || !library_functions(library, wanted, sizeof wanted / sizeof *wanted) || dnnl.version()->major != 3)
        return NULL;
    if (!dnnl.engine && (dnnl.engine_create(&dnnl.engine, CPU, 0) || dnnl.stream_create(&dnnl.stream, dnnl.engine, IN_ORDER)))
        return NULL;
    const version *v = dnnl.version();
    snprintf(text, sizeof text, "%d.%d.%d", v->major, v->minor, v->patch);
    return text;
}

static const char *find_s4(const libraries *where)
{
    const library_function wanted[] = {{"dnnl_primitive_attr_set_scales", &dnnl.set_scales},
                                       {"dnnl_primitive_attr_set_fpmath_mode_v2", &dnnl.set_fpmath}};
    const char *text = find(where);
    return text && library_functions(open_library(where), wanted, 2) ? text : NULL;
}

/* ---- products ---- */

typedef struct product {
    void *objects[MOST_OBJECTS]; /* what is to be destroyed, last first, and by what */
    int (*destroy[MOST_OBJECTS])(void *);
    size_t count;
    void *primitive, *y, *y_md;
    float *scales;
    argument arguments[4];
    int argument_count;
    size_t m, outputs;
} product;

static void *keep(product *p, void *object, int (*destroy)(void *))
{
    p->objects[p->count] = object;
    p->destroy[p->count++] = destroy;
    return object;
}

static void release(void *self)
{
    product *p = self;
    while (p->count--)
        p->destroy[p->count](p->objects[p->count]);
    free(p->scales);
    free(p);
}

/* A matrix of so many rows and columns; NULL when the library refuses it. */
static void *matrix(product *p, int type, size_t rows, size_t cols, bool by_columns)
{
    void *md;
    int64_t sizes[] = {(int64_t)rows, (int64_t)cols};
    int64_t strides[] = {by_columns ? 1 : sizes[1], by_columns ? sizes[0] : 1};
    return dnnl.md_by_strides(&md, 2, sizes, type, strides) ? NULL : keep(p, md, dnnl.md_destroy);
}

/* NULL as place: memory of its own. */
static void *memory(product *p, const void *md, void *place)
{
    void *m;
    void *where = place ? place : (void *)~(uintptr_t)0;
    return md && !dnnl.memory_create(&m, md, dnnl.engine, where) ? keep(p, m, dnnl.memory_destroy) : NULL;
}

/* False when the library cannot. */
static bool copy(const void *from_md, void *from, const void *to_md, void *to)
{
    void *pd = NULL, *primitive = NULL;
    bool done = from && to && !dnnl.reorder(&pd, from_md, dnnl.engine, to_md, dnnl.engine, NULL) &&
                !dnnl.primitive_create(&primitive, pd) &&
                !dnnl.execute(primitive, dnnl.stream, 2, (argument[]){{ARG_SRC, from}, {ARG_DST, to}}) &&
                !dnnl.stream_wait(dnnl.stream);
    if (primitive)
        dnnl.primitive_destroy(primitive);
    if (pd)
        dnnl.pd_destroy(pd);
    return done;
}

static void *matmul(product *p, const void *x, const void *w, const void *y, const void *attr)
{
    void *pd;
    if (!x || !w || !y || dnnl.matmul(&pd, dnnl.engine, x, w, NULL, y, attr))
        return NULL;
    keep(p, pd, dnnl.pd_destroy);
    if (dnnl.primitive_create(&p->primitive, pd))
        return NULL;
    keep(p, p->primitive, dnnl.primitive_destroy);
    return pd;
}

/* x W with what `given` holds of W, of type `type` for the library to order as it likes. */
static bool build(product *p, const bench_case *c, int type, const void *given_md, void *given, const void *attr)
{
    size_t inputs = case_inputs_of(c), outputs = case_outputs_of(c);
    void *any;
    if (dnnl.md_by_tag(&any, 2, (const int64_t[]){(int64_t)inputs, (int64_t)outputs}, type, ANY_ORDER))
        return false;
    keep(p, any, dnnl.md_destroy);
    void *x_md = matrix(p, BF16, c->m, inputs, false), *x32_md = matrix(p, F32, c->m, inputs, false);
    p->y_md = matrix(p, BF16, c->m, outputs, false);
    void *pd = matmul(p, x_md, any, p->y_md, attr);
    if (!pd)
        return false;
    const void *w_md = dnnl.query_md(pd, WEIGHTS_MD, 0);
    void *w = memory(p, w_md, NULL), *x = memory(p, x_md, NULL);
    p->y = memory(p, p->y_md, NULL);
    p->arguments[p->argument_count++] = (argument){ARG_SRC, x};
    p->arguments[p->argument_count++] = (argument){ARG_WEIGHTS, w};
    p->arguments[p->argument_count++] = (argument){ARG_DST, p->y};
    return p->y && copy(x32_md, memory(p, x32_md, c->x), x_md, x) && copy(given_md, given, w_md, w);
}

static product *begin(const bench_case *c)
{
    product *p = calloc(1, sizeof *p);
    if (p) {
        p->m = c->m;
        p->outputs = case_outputs_of(c);
        dnnl.set_threads((int)c->threads);
    }
    return p;
}

static void *prepare(const bench_case *c, float *held)
{
    product *p = begin(c);
    if (!p)
        return NULL;
    void *md = matrix(p, F32, case_inputs_of(c), case_outputs_of(c), !c->transposed);
    if (md && build(p, c, BF16, md, memory(p, md, held), NULL))
        return p;
    release(p);
    return NULL;
}

static bool add_scales(product *p, void *attr, size_t n, size_t k)
{
    void *md = matrix(p, F32, k / GROUP, n, false), *scales = memory(p, md, p->scales);
    p->arguments[p->argument_count++] = (argument){ARG_SCALES | ARG_WEIGHTS, scales};
    return scales && !dnnl.set_scales(attr, ARG_WEIGHTS, 3, 2, (const int64_t[]){GROUP, 1}, F32) &&
           !dnnl.set_fpmath(attr, FPMATH_BF16, 1);
}

/* The codes themselves as fp32 in `whole`, from which the library packs them, and the scales by groups: [k / GROUP][n]. */
static bool encode(product *p, float *held, float *whole, size_t n, size_t k)
{
    size_t groups = k / GROUP;
    float *by_rows = ql_alloc(n * groups * sizeof *by_rows);
    uint8_t *codes = ql_alloc(n * k / 2);
    p->scales = ql_alloc(n * groups * sizeof *p->scales);
    bool enough = by_rows && codes && p->scales;
    if (enough) {
        int4_groups(held, n, k, GROUP, codes, by_rows);
        for (size_t i = 0; i < n * k; i++)
            whole[i] = (float)((codes[i / 2] >> i % 2 * 4 & 15) - 8);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < groups; j++)
                p->scales[j * n + i] = by_rows[i * groups + j];
    }
    free(by_rows);
    free(codes);
    return enough;
}

static void *prepare_s4(const bench_case *c, float *held)
{
    size_t n = c->shape.n, k = c->shape.k;
    product *p = begin(c);
    void *attr = NULL;
    float *whole = ql_alloc(n * k * sizeof *whole);
    bool made = p && whole && k % GROUP == 0 && !dnnl.attr_create(&attr) && encode(p, held, whole, n, k) &&
                add_scales(p, attr, n, k);
    if (made) {
        void *md = matrix(p, F32, k, n, true);
        made = build(p, c, S4, md, memory(p, md, whole), attr);
    }
    if (attr)
        dnnl.attr_destroy(attr);
    free(whole);
    if (made || !p)
        return p;
    release(p);
    return NULL;
}

static void multiply(void *self)
{
    const product *p = self;
    dnnl.execute(p->primitive, dnnl.stream, p->argument_count, p->arguments);
    dnnl.stream_wait(dnnl.stream);
}

static void fetch(void *self, float *y)
{
    product *p = self;
    void *md = matrix(p, F32, p->m, p->outputs, false);
    copy(p->y_md, p->y, md, memory(p, md, y));
}

enum { INSTRUCTIONS = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_BF16 | QL_CPU_AMX_BF16 };
const baseline baseline_onednn = {
    .name = "onednn", .weights = "bf16", .bits = 16, .rounded = QL_ROUND_BF16, .roof = INSTRUCTIONS, .find = find,
    .prepare = prepare, .multiply = multiply, .fetch = fetch, .release = release};
const baseline baseline_onednn_s4 = {
    .name = "onednn", .weights = "s4", .bits = 4.5, .rounded = QL_ROUND_BF16, .roof = INSTRUCTIONS,
    .forward_only = true, .find = find_s4, .prepare = prepare_s4, .multiply = multiply, .fetch = fetch,
    .release = release};
