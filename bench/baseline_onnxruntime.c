/* onnxruntime: its product with weights in 4 bits, in fp32 with a scale for every 32 and with x in bytes and a scale for
 * every 128, as measured elsewhere. The declarations follow its C interface: a table of functions whose places stay. */
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "baseline.h"
#include "onnx_model.h"

enum { VERSION = 17, ERRORS_ONLY = 3, PLAIN_ALLOCATOR = 0, DEFAULT_MEMORY = 0, FLOAT = 1 };

/* What fails returns an object that says why, what succeeds NULL. */
typedef struct functions {
    void *unused_0[2];
    const char *(*message)(const void *status); /* place 2 */
    void *(*create_env)(int level, const char *name, void **out);
    void *unused_4[4];
    void *(*create_session)(const void *env, const void *model, size_t bytes, const void *options, void **out); /* 8 */
    void *(*run)(void *session, const void *options, const char *const *names, const void *const *values, size_t count,
                 const char *const *output_names, size_t output_count, void **outputs);
    void *(*create_options)(void **out);
    void *unused_11[13];
    void *(*set_threads)(void *options, int threads); /* 24 */
    void *unused_25[24];
    void *(*create_tensor)(const void *memory, void *data, size_t bytes, const int64_t *sizes, size_t dims, int type,
                           void **out); /* 49 */
    void *unused_50[19];
    void *(*create_memory_info)(int allocator, int kind, void **out); /* 69 */
    void *unused_70[23];
    void (*release_status)(void *); /* 93 */
    void (*release_memory_info)(void *);
    void (*release_session)(void *);
    void (*release_value)(void *);
    void *unused_97[3];
    void (*release_options)(void *); /* 100 */
} functions;

typedef struct entry {
    const functions *(*functions_of)(uint32_t version);
    const char *(*version)(void);
} entry;

static const functions *ort;
static void *env, *memory_info;
static char version[40];

static bool fine(void *status)
{
    if (!status)
        return true;
    fprintf(stderr, "onnxruntime: %s\n", ort->message(status));
    ort->release_status(status);
    return false;
}

static const char *find(const libraries *where)
{
    static const char *const names[] = {"libonnxruntime.so", "libonnxruntime.so.1", NULL};
    const entry *(*get)(void);
    void *library = ort ? NULL : library_open(where->onnxruntime, names);
    if (library && library_functions(library, &(library_function){"OrtGetApiBase", &get}, 1)) {
        snprintf(version, sizeof version, "%s", get()->version());
        ort = get()->functions_of(VERSION);
        if (ort && (!fine(ort->create_env(ERRORS_ONLY, "bench", &env)) ||
                    !fine(ort->create_memory_info(PLAIN_ALLOCATOR, DEFAULT_MEMORY, &memory_info))))
            ort = NULL;
    }
    return ort ? version : NULL;
}

typedef struct product {
    void *session, *x, *y;
    float *out;
    size_t count; /* of out */
} product;

static void release(void *self)
{
    product *p = self;
    ort->release_value(p->x);
    ort->release_value(p->y);
    ort->release_session(p->session);
    free(p->out);
    free(p);
}

static bool open_session(product *p, const onnx_product *what, size_t threads)
{
    size_t bytes;
    void *settings = NULL;
    uint8_t *model = onnx_model(what, &bytes);
    bool opened = model && fine(ort->create_options(&settings)) && fine(ort->set_threads(settings, (int)threads)) &&
                  fine(ort->create_session(env, model, bytes, settings, &p->session));
    ort->release_options(settings);
    free(model);
    return opened;
}

static bool bind(product *p, const bench_case *c)
{
    size_t n = c->shape.n, k = c->shape.k;
    p->count = c->m * n;
    p->out = ql_alloc(p->count * sizeof *p->out);
    return p->out &&
           fine(ort->create_tensor(memory_info, c->x, c->m * k * sizeof *c->x, (int64_t[]){(int64_t)c->m, (int64_t)k}, 2,
                                   FLOAT, &p->x)) &&
           fine(ort->create_tensor(memory_info, p->out, p->count * sizeof *p->out,
                                   (int64_t[]){(int64_t)c->m, (int64_t)n}, 2, FLOAT, &p->y));
}

static void *prepare(const bench_case *c, float *held, size_t group, int accuracy)
{
    size_t n = c->shape.n, k = c->shape.k;
    if (k % group != 0)
        return NULL;
    product *p = calloc(1, sizeof *p);
    uint8_t *codes = ql_alloc(n * k / 2);
    float *scales = ql_alloc(n * (k / group) * sizeof *scales);
    bool made = p && codes && scales;
    if (made) {
        int4_groups(held, n, k, group, codes, scales);
        onnx_product what = {c->m, n, k, group, accuracy, codes, scales};
        made = open_session(p, &what, c->threads) && bind(p, c);
    }
    free(codes);
    free(scales);
    if (made || !p)
        return p;
    release(p);
    return NULL;
}

static void *prepare_float(const bench_case *c, float *held)
{
    return prepare(c, held, 32, 1);
}

static void *prepare_bytes(const bench_case *c, float *held)
{
    return prepare(c, held, 128, 4);
}

static void multiply(void *self)
{
    product *p = self;
    fine(ort->run(p->session, NULL, (const char *[]){"x"}, (const void *[]){p->x}, 1, (const char *[]){"y"}, 1, &p->y));
}

static void fetch(void *self, float *y)
{
    const product *p = self;
    memcpy(y, p->out, p->count * sizeof *y);
}

const baseline baseline_onnxruntime = {
    .name = "onnxruntime", .weights = "4/32", .bits = 5, .roof = QL_CPU_AVX2 | QL_CPU_AVX512, .forward_only = true,
    .find = find, .prepare = prepare_float, .multiply = multiply, .fetch = fetch, .release = release};
const baseline baseline_onnxruntime_bytes = {
    .name = "onnxruntime", .weights = "4/128", .bits = 4.25, .rounded = QL_ROUND_INT8, .forward_only = true,
    .roof = QL_CPU_AVX2 | QL_CPU_AVX512 | QL_CPU_AVX512_VNNI, .find = find, .prepare = prepare_bytes,
    .multiply = multiply, .fetch = fetch, .release = release};
