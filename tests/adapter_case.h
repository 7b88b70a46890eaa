/* What the tests of adapter folders share: the reference adapters, the modules of two models, reading. */
#ifndef QL_TESTS_ADAPTER_CASE_H
#define QL_TESTS_ADAPTER_CASE_H

#include "qlora/adapter.h"
#include "support.h"

enum { LAYERS = 5, PARTS = 7, MODULES = LAYERS * PARTS, REFERENCES = 4 };

extern const char *const part_names[PARTS];

typedef struct reference_case {
    const char *folder;
    size_t rank;
    double alpha;
    unsigned parts; /* bit i: part_names[i] */
} reference_case;

extern const reference_case references[REFERENCES];

/* The linear layers of stories260K, MODULES of them: hidden 64, 8 heads of which 4 are key/value heads, MLP 172. */
const ql_adapter_module *stories(void);

/* Two modules, q of 6 -> 4 and v of 6 -> 3; names as PEFT has them. */
extern const ql_adapter_module small[2];

/* DIR/NAME in a static buffer (4 in turn). */
char *join(const char *dir, const char *name);

/* Opens the adapter of `small` in `dir` and plans it; the adapters' shapes on success. */
ql_status plan_small(const char *dir, ql_adapter_shape shapes[2], ql_error *err);

/* What the folder holds for modules[count], at most MODULES. */
ql_adapters *load(const char *dir, const ql_adapter_module *modules, size_t count, bool trainable);

#endif
