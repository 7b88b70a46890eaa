/* A model of two small layers and adapters for it, whose numbers FP16 holds exactly: exported and merged. */
#ifndef QL_TESTS_CONVERT_CASE_H
#define QL_TESTS_CONVERT_CASE_H

#include "qlora/adapter.h"
#include "qlora/model.h"
#include "support.h"

enum { LAYERS = 2, HIDDEN = 32, INTER = 48, HEADS = 4, KV = 2, DIM = 8, VOCAB = 64, MODULES = LAYERS * QL_MODULES };
enum { CASES = 7, RANK = 4 };

extern const char *const hf_names[QL_MODULES];
extern const size_t inputs[QL_MODULES], outputs[QL_MODULES];

typedef char path_text[512];

/* FOLDER/NAME in `path`. */
const char *in(path_text path, const char *folder, const char *name);

typedef struct adapter_case {
    const char *arch;
    bool rslora, patterns;
    double alpha;
} adapter_case;

extern const adapter_case cases[CASES];

/* Of module i of MODULES. */
double scaling_of(const adapter_case *c, size_t i);

/* A folder that holds config.json, no weights, and an adapter; and what the adapter holds. */
typedef struct fixture {
    char *folder;
    path_text model, adapter, output;
    ql_adapters *set;
    ql_error err;
} fixture;

void setup(fixture *f, const adapter_case *c, bool zero); /* zero: B is 0 */
void teardown(fixture *f);

/* Element (row, col) of s B A, and the sum of its terms' magnitudes. */
double delta(const ql_adapter *a, double scaling, size_t row, size_t col, double *magnitude);

#endif
